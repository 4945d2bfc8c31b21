"""What stands before every address: ids, limits, keys, headers, one line of log.

Guard is the outermost: it counts and times a request, bounds its body, and puts the security headers on every
answer. Doorkeeper, behind CORS, lets nobody in without a key where one is set.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Hashable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .settings import LOOPBACK, Limits, Settings

log = logging.getLogger(__name__)

OPEN_TO_ALL = ("/healthz", "/readyz")  # which tell nothing but that
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
FAILURE = "the server failed; its log has the request's id"
GONE = 499  # as nginx counts a client that went
CLIENTS = 10_000  # whose rates are remembered

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Refusal(Exception):
    """An answer other than the one asked for: a status, one sentence, and when to try again, if at all."""

    def __init__(self, status: int, text: str, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.status, self.text, self.reason, self.retry_after = status, text, reason, retry_after


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Visit:
    """A request as it is known to all behind the guard."""

    def __init__(self, id: str, client: Hashable, rates: Rates) -> None:
        self.id, self.client, self._rates = id, client, rates

    def pay(self, images: int) -> None:
        """Raises Refusal if the client has had more than its rate."""
        self._rates.pay(self.client, images)


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit that Guard put into the scope."""
    found: Visit = scope["pgsr"]
    return found


class Rates:
    """Images a second of each client: a bucket that fills with time, of two seconds' images. What a request
    costs above what is in it is owed."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, 2 * rate)
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # how much, when

    def pay(self, client: Hashable, images: int) -> None:
        """Raises Refusal if the bucket is empty."""
        if not self._rate:
            return
        now = time.monotonic()
        held, since = self._buckets.pop(client, (self._most, now))
        held = min(self._most, held + (now - since) * self._rate)
        refused = held <= 0
        self._buckets[client] = (held if refused else held - images, now)
        if len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if refused:
            wait = max(1.0, -held / self._rate)
            text = f"this server gives each client {self._rate:g} images a second: try again in {wait:.0f} s"
            raise Refusal(429, text, "rate", wait)


def answer(refusal: Refusal, id: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of a refusal."""
    body = json.dumps({"error": refusal.text, "request": id}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if refusal.retry_after:
        headers["retry-after"] = str(max(1, round(refusal.retry_after)))
    return {**headers, "cache-control": "no-store"}, body


async def refuse(refusal: Refusal, id: str, send: Send, more: dict[str, str] | None = None) -> None:
    """Sends a refusal as the answer."""
    headers, body = answer(refusal, id)
    raw = [(name.encode(), value.encode()) for name, value in {**headers, **(more or {})}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


# ----------------------------------------------------------------------------


class _Body:
    """A request's body on its way in: bounded in size and time. Also knows whether all of it was read."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.body
        self._until = time.monotonic() + limits.body_seconds
        self.whole = not ("content-length" in headers or "transfer-encoding" in headers)
        length = headers.get("content-length", "0")
        self.announced = int(length) if length.isdecimal() else 0

    def check(self) -> None:
        """Raises Refusal if it is announced as too long."""
        if self.announced > self._limits.body:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request is larger than {self._limits.body:,} bytes", "body")

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            text = f"the request's body took more than {self._limits.body_seconds:g} s"
            raise Refusal(408, text, "body time") from None
        if message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise self._too_large()
        return message


class _Answer:
    """An answer on its way out: what it was, and the headers that every one has."""

    def __init__(self, send: Send, id: str, body: _Body, shared: bool) -> None:
        self._send, self._id, self._body = send, id, body
        self._policy = "cross-origin" if shared else "same-origin"
        self.status, self.bytes, self.ended = 0, 0, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers.update(
                {**SECURITY, "cross-origin-resource-policy": self._policy, "x-request-id": self._id}
            )
            if not self._body.whole:  # what is left of it is nobody's
                headers["connection"] = "close"
        else:
            self.bytes += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)


class Guard:
    """The outermost application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._limits = settings.limits
        self._rates = Rates(settings.limits.rate)
        names = (*LOOPBACK, *settings.hosts) if settings.is_local else settings.hosts
        self._hosts = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, began = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        address = scope["client"][0] if scope.get("client") else ""
        scope = {**scope, "pgsr": Visit(id, address, self._rates)}
        method = scope["method"]
        if method == "HEAD":  # uvicorn leaves the body out
            scope["method"] = "GET"
        body = _Body(receive, headers, self._limits)
        out = _Answer(send, id, body, bool(self._settings.origins))
        self._metrics.open.inc()
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                self._check_host(headers)
                self._check_origin(method, headers)
                body.check()
                await self._app(scope, body.receive, out.send)
        except BaseException as raised:
            error = await self._failed(raised, out, id)
        finally:
            self._metrics.open.dec()
            self._tell(scope, method, out, id, time.perf_counter() - began, error)
        # uvicorn closes the connection of an answer without an end, so that nobody takes it for the whole.

    def _check_host(self, headers: Headers) -> None:
        """Raises Refusal for a name that is none of this server's, as of a page that had its own name point
        here (DNS rebinding)."""
        if not self._hosts:
            return
        name = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if name not in self._hosts and not re.fullmatch(r"127(\.\d{1,3}){3}", name):
            text = "this server does not go by that name: start it with --allow-host NAME"
            raise Refusal(421, text, "host")

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Raises Refusal for what another site's page sends: browsers send forms without asking first."""
        origin = headers.get("origin", "")
        own = origin.partition("://")[2] == headers.get("host", "")
        if method == "POST" and origin and not own and origin not in self._settings.origins:
            raise Refusal(403, "pages of that site may not ask here: start with --cors ORIGIN", "origin")

    async def _failed(self, error: BaseException, out: _Answer, id: str) -> BaseException | None:
        """Answers with what went wrong, if there is no answer yet; gives back what is left to raise."""
        if isinstance(error, (ClientGone, ClientDisconnect)):
            out.status, out.ended = GONE, True
            self._metrics.gone.inc()
            return None
        if isinstance(error, TimeoutError):
            text = f"this took more than {self._limits.request_seconds:g} s: ask for less at a time"
            error = Refusal(503, text, "request time", 1.0)
        if isinstance(error, asyncio.CancelledError):
            error = Refusal(503, "the server is shutting down", "shutdown", 1.0)
        if not isinstance(error, Refusal):
            if isinstance(error, Exception):
                log.error("failed", exc_info=error, extra={"fields": {"id": id}})
            error = Refusal(500, FAILURE, "failure")
        self._metrics.refused.labels(error.reason).inc()
        if out.status:
            return error
        await refuse(error, id, out.send)
        return None

    def _tell(
        self, scope: Scope, method: str, out: _Answer, id: str, seconds: float, error: BaseException | None
    ) -> None:
        route = getattr(scope.get("route"), "path", "none")
        status = out.status if error is None else 500
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if log.isEnabledFor(logging.INFO):
            fields = {
                "id": id,
                "method": method if method.isalpha() and len(method) < 12 else "other",
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 2),
                "bytes": out.bytes,
            }
            log.info("request", extra={"fields": fields})


# ----------------------------------------------------------------------------


class Doorkeeper:
    """Lets in who has a key: as a bearer's token, or as the password of HTTP's basic scheme, which browsers
    ask their user for."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_TO_ALL:
            number = self._number(Headers(scope=scope).get("authorization", ""))
            if number is None:
                self._metrics.refused.labels("key").inc()
                refusal = Refusal(401, "this server wants an API key: Authorization: Bearer KEY", "key")
                challenge = {"www-authenticate": 'Basic realm="pgsr", charset="UTF-8"'}
                await refuse(refusal, visit_of(scope).id, send, challenge)
                return
            visit_of(scope).client = number
        await self._app(scope, receive, send)

    def _number(self, authorization: str) -> int | None:
        """Which key it is. Every one is compared, each in a time that says nothing of where it differs."""
        given, found = _token(authorization), None
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(given, key):
                found = number
        return found


def _token(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
