"""What the server says of itself, a line an event on stderr, as text or JSON.

No line holds an address, a name of a file, a query or a key: a request is told by its route, its id and its
figures.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What others log: malformed forms are their senders' affair.
LEVELS = {"": "ERROR", "uvicorn.error": "ERROR", "python_multipart": "CRITICAL", "py.warnings": "ERROR"}


class _Lines(logging.Formatter):
    """A line an event: text, or one JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "error": self.formatException(record.exc_info)}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if self._as_json:
            return json.dumps(entry)
        rest = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{time} {entry['level']} {entry['event']} {rest}".rstrip()


def set_up(as_json: bool, level: str) -> None:
    """Sends what the server and uvicorn log to stderr. uvicorn's own lines of requests, which hold addresses,
    are off."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    logging.captureWarnings(True)
    logging.root.handlers = [handler]
    for name, least in {**LEVELS, "pgsr": level.upper()}.items():
        logging.getLogger(name).setLevel(least)
