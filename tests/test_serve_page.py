"""The page of pgsr-serve in a real browser: Debian's chromium, headless. Skipped where there is none; most
of it is slow (-m slow)."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import upscaling
from pgsr.machine import usable_cores
from serving import Served, serving, write_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"
)

AXE = Path(str(axe.__file__)).with_name("axe.min.js")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TABLET = {"width": 820, "height": 1180}
READY = ".tile.ready"
FRAME = 1000 / 60  # milliseconds


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model that ships."""
    with serving(tmp_path_factory.mktemp("serve"), "--batch", 8, "--max-pixels", 100_000) as found:
        yield found
        assert found.errors == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Visitor:
    """A window of its own, with what its console said."""

    def __init__(self, browser: Any, served: Served, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)  # of a machine that is busy
        self.served = served
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, hash: str = "") -> Any:
        self.page.goto("about:blank")
        self.page.goto(f"{self.served.url}/{hash}")
        self.page.wait_for_selector(READY)
        return self.page

    def findings(self) -> list[str]:
        """What axe-core objects to."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text())  # in the devtools' world, as the policy lets no script in
        result = self.page.evaluate("axe.run(document)")
        return [f"{v['id']}: {[n['html'][:120] for n in v['nodes']]}" for v in result["violations"]]

    def face(self, place: int) -> Any:
        return self.page.locator(f".tile[aria-posinset='{place + 1}']")

    def split(self) -> float:
        """How many per cent of the open face are shown as before."""
        box = self.page.locator("#viewer-compare")
        edge = "e => 100 * e.querySelector('.edge').offsetLeft / e.clientWidth"
        return float(box.evaluate(edge))

    def text(self, id: str) -> str:
        return str(self.page.locator(f"#{id}").inner_text())


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Visitor]]:
    visitors = []

    def begin(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, served, **options))
        return visitors[-1]

    yield begin
    for visitor in visitors:
        complaints = visitor.complaints
        visitor.context.close()
        assert complaints == []


# ----------------------------------------------------------------------------
# The wall.


def test_faces_appear_and_fill_the_window(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open()
    page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 18")
    assert page.title() == "Faces"
    picture = visitor.face(0).locator("img")
    assert picture.evaluate("image => image.naturalWidth") == 256
    assert "/v1/images/0/0.jpg" in picture.get_attribute("src")
    assert visitor.face(0).locator(".open").get_attribute("aria-label") == "Face 0 of seed 0"


@pytest.mark.slow
@pytest.mark.skipif(os.getloadavg()[0] > usable_cores(), reason="others use this machine: times mean nothing")
def test_the_first_face_is_there_within_a_second(visit: Callable[..., Visitor]):
    seconds = []
    for _ in range(3):
        page = visit().open()
        seconds.append(page.evaluate("performance.now()") / 1000)
    print(f"first face after {min(seconds):.2f} to {max(seconds):.2f} s")
    assert min(seconds) < 1, seconds


@pytest.mark.slow
def test_thousands_of_faces_are_a_few_elements(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open()
    count = page.locator(".tile").count()
    for top in (3_000, 150_000, 900_000, 40_000):
        page.evaluate(f"scrollTo(0, {top})")
        page.wait_for_timeout(120)
        assert page.locator(".tile").count() == count
    page.wait_for_function("""() => [...document.querySelectorAll('.tile:not([hidden])')].filter((tile) => {
        const box = tile.getBoundingClientRect();
        return box.bottom > 80 && box.top < innerHeight;
    }).every((tile) => tile.classList.contains('ready')
        && tile.querySelector('img').src.includes(`/${tile.getAttribute('aria-posinset') - 1}.jpg`))""")
    places = page.evaluate("[...document.querySelectorAll('.tile:not([hidden])')].map(t => t.ariaPosInSet)")
    assert len(set(places)) == len(places)


@pytest.mark.slow
def test_scrolling_leaves_time_for_sixty_frames_a_second(visit: Callable[..., Visitor]):
    """By Chromium's own trace: processor time of the page's main thread for each frame. By the clock, too,
    where nobody else uses the machine."""
    quiet = os.getloadavg()[0] < usable_cores()
    visitor = visit()
    page = visitor.open()
    page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 18")
    session = visitor.context.new_cdp_session(page)
    events: list[dict[str, Any]] = []
    session.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    session.send("Tracing.start", {"traceConfig": {"includedCategories": ["devtools.timeline", "toplevel"]}})
    seconds = page.evaluate("""() => new Promise((done) => {
        let left = 90, began = performance.now();
        const step = () => {
            scrollBy(0, 60);
            --left ? requestAnimationFrame(step) : done((performance.now() - began) / 1000);
        };
        requestAnimationFrame(step);
    })""")
    print(f"{90 / seconds:.1f} frames a second")
    assert not quiet or 90 / seconds > 48
    ended: list[Any] = []
    session.on("Tracing.tracingComplete", lambda data: ended.append(data))
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(20)

    def milliseconds(*names: str) -> list[float]:
        return [e["tdur"] / 1000 for e in events if e["name"] in names and "tdur" in e]

    scripts, layout = milliseconds("FireAnimationFrame"), milliseconds("UpdateLayoutTree", "Layout")
    assert len(scripts) >= 90
    assert np.percentile(scripts, 95) < FRAME / 2
    assert sum(scripts) + sum(layout) < 90 * FRAME / 2


# ----------------------------------------------------------------------------
# A face, closely.


def test_a_face_is_opened_compared_and_left(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open("#seed=5&variety=1")
    visitor.face(1).locator(".open").click()
    assert visitor.text("viewer-title") == "Face 1"
    picture = page.locator("#viewer-compare img.after")
    assert "/v1/images/5/1.png" in picture.get_attribute("src")
    page.click("#viewer-before")
    small = page.locator("#viewer-compare img.before")
    page.wait_for_function("() => document.querySelector('#viewer-compare .before').naturalWidth === 64")
    assert "stage=generator" in small.get_attribute("src")
    box = page.locator("#viewer-compare").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    for share in (0.3, 0.8):  # dragged, and shown on the way
        page.mouse.move(box["x"] + box["width"] * share, middle, steps=4)
        assert visitor.split() == pytest.approx(100 * share, abs=4)
    page.mouse.up()
    page.mouse.move(box["x"] + 1, middle)
    assert visitor.split() == pytest.approx(80, abs=4)  # let go
    page.click("#viewer-before")
    page.click("#viewer-next")
    assert visitor.text("viewer-title") == "Face 2"
    with page.expect_download() as download:
        page.click("#viewer-download")
    assert download.value.suggested_filename == "face-5-2.png"
    served = visitor.served.get("/v1/images/5/2.png?truncation=1").content
    assert Path(download.value.path()).read_bytes() == served
    page.click("#viewer .close")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.slow
def test_everything_by_keyboard(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the faces"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    label = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(label) == "Face 0 of seed 0"
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"() => {label} === 'Face 1 of seed 0'")
    for face in range(7, 44, 6):  # beyond the window
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"() => ({label} ?? '').startsWith('Face {face} ')")
    page.keyboard.press("x")
    assert visitor.text("tray-count").startswith("1 face")
    page.keyboard.press("f")
    assert visitor.text("favourite-count") == "1"
    page.keyboard.press("Enter")
    assert visitor.text("viewer-title") == "Face 43"
    page.keyboard.press("ArrowRight")
    assert visitor.text("viewer-title") == "Face 44"
    page.keyboard.press("b")
    assert page.locator("#viewer-compare input").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => ({label} ?? '').startsWith('Face 44 ')")


@pytest.mark.slow
def test_a_link_shows_just_what_one_sees(visit: Callable[..., Visitor]):
    first = visit()
    page = first.open()
    page.fill("#seed", "77")
    page.press("#seed", "Enter")
    page.fill("#variety", "0.5")
    first.face(2).locator(".open").click()
    page.click("#viewer-before")
    page.wait_for_selector("#viewer-compare img.before")
    page.click("#viewer-link")
    link = page.evaluate("navigator.clipboard.readText()")
    assert "seed=77" in link
    assert "graph=" in link
    second = visit()
    again = second.page
    again.goto(link)
    again.wait_for_selector("#viewer-compare img.before")
    sources = "[...document.querySelectorAll('#viewer-compare img')].map(image => image.src)"
    assert again.evaluate(sources) == page.evaluate(sources)
    assert again.input_value("#variety") == "0.5"


@pytest.mark.slow
def test_a_link_to_a_place_far_down(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open("#seed=3&at=6000")
    page.wait_for_function("""() => {
        const tile = document.querySelector(".tile[aria-posinset='6001']");
        const top = tile?.getBoundingClientRect().top;
        return tile?.classList.contains('ready') && top >= 0 && top < 400;
    }""")


@pytest.mark.slow
def test_a_link_of_another_model_says_so(visit: Callable[..., Visitor]):
    visitor = visit()
    visitor.open("#seed=3&graph=0123456789ab")
    assert "another model" in visitor.text("notice")


@pytest.mark.slow
def test_variety_changes_faces_in_place(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open("#seed=2&variety=1")
    page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 18")
    before = page.evaluate("document.querySelector(\".tile[aria-posinset='4'] img\").src")
    page.fill("#variety", "0.6")
    assert page.locator(READY).count() >= 18  # nothing went blank
    page.wait_for_function(
        "() => document.querySelector(\".tile[aria-posinset='4'] img\").src.includes('truncation=0.6')"
    )
    assert "truncation=1" in before
    assert visitor.text("variety-value") == "60%"


@pytest.mark.slow
def test_favourites_stay_in_the_browser(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open("#seed=8")
    page.click("#favourites")
    assert page.locator("#empty").is_visible()
    page.click("#favourites")
    page.wait_for_selector(READY)
    for place in (1, 3):
        visitor.face(place).hover()
        visitor.face(place).locator(".love").click()
    visitor.open("#seed=0")
    assert visitor.text("favourite-count") == "2"
    page.click("#favourites")
    page.wait_for_function("() => document.querySelectorAll('.tile:not([hidden])').length === 2")
    assert visitor.face(0).locator(".open").get_attribute("aria-label") == "Face 1 of seed 8"
    colours = "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
    text, behind = page.locator("#favourites").evaluate(colours)  # while the pointer is on it
    assert (text, behind) == ("rgb(248, 246, 243)", "rgb(38, 34, 30)")


# ----------------------------------------------------------------------------
# Several faces.


@pytest.mark.slow
def test_a_walk_between_selected_faces(visit: Callable[..., Visitor]):
    visitor = visit()
    page = visitor.open("#seed=4")
    page.click("#select")
    for place in (0, 2, 5):
        visitor.face(place).locator(".open").click()
    assert visitor.text("tray-count") == "3 faces"
    page.click("#tray-walk")
    page.wait_for_function("() => document.querySelector('#walk-text').textContent.startsWith('3 faces, 49')")
    assert page.input_value("#walk-place") != "48"
    shown = "document.querySelector('#walk-canvas').toDataURL()"
    page.click("#walk-play")
    page.fill("#walk-place", "0")
    first = page.evaluate(shown)
    page.fill("#walk-place", "24")
    assert page.evaluate(shown) != first
    assert "walk=4.0%2C4.2%2C4.5" in page.url or "walk=4.0,4.2,4.5" in page.url
    with page.expect_download() as download:
        page.click("#walk-download")
    with tarfile.open(download.value.path()) as archive:
        assert len(archive.getnames()) == 2 * 49
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click("#tray-download")
    with tarfile.open(download.value.path()) as archive:
        notes = [json.load(archive.extractfile(n)) for n in archive.getnames() if n.endswith("json")]  # type: ignore[arg-type]
    assert [(note["seed"], note["index"]) for note in notes] == [(4, 0), (4, 2), (4, 5)]


@pytest.mark.slow
def test_reduced_motion_keeps_still(visit: Callable[..., Visitor]):
    visitor = visit(reduced_motion="reduce")
    page = visitor.open("#seed=4&walk=4.0,4.1")
    page.wait_for_function("() => document.querySelector('#walk-text').textContent.startsWith('2 faces')")
    assert visitor.text("walk-play") == "Play"
    assert page.input_value("#walk-place") == "0"
    assert page.locator(".tile").first.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"


# ----------------------------------------------------------------------------
# A picture of one's own.


@pytest.mark.slow
def test_a_picture_is_chosen_enlarged_and_saved(visit: Callable[..., Visitor], tmp_path: Path):
    path = tmp_path / "mine.png"
    path.write_bytes(upscaling.file_of(Image.fromarray(upscaling.picture(200, 300))))
    visitor = visit()
    page = visitor.open()
    page.click("#enlarge")
    page.set_input_files("#upscale-file", path)
    page.wait_for_selector("#upscale-compare:not([hidden])")
    page.wait_for_function("() => document.querySelector('#upscale-compare .after').naturalWidth === 1200")
    assert "1200 × 800" in visitor.text("upscale-text")
    shown = page.locator("#upscale-compare").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(1.5, abs=0.01)  # nothing beside it
    with page.expect_download() as download:
        page.click("#upscale-download")
    assert download.value.suggested_filename == "mine-large.png"
    assert Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).size == (1200, 800)


def drag(visitor: Visitor, path: Path, *steps: str) -> None:
    """Drags a file over the middle of the window, as the operating system would tell the browser of it."""
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = visitor.context.new_cdp_session(visitor.page)
    for kind in steps:
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 400, "data": data})


LEAVE = """() => { // of which chromium's own events say nothing
    const transfer = new DataTransfer();
    transfer.items.add(new File(['x'], 'x.png'));
    window.dispatchEvent(new DragEvent('dragleave', {dataTransfer: transfer}));
}"""


@pytest.mark.slow
def test_pictures_are_dropped_anywhere_and_refused_with_a_sentence(
    visit: Callable[..., Visitor], tmp_path: Path
):
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    visitor = visit()
    page = visitor.open()
    small = file("small.png", upscaling.file_of(Image.fromarray(upscaling.picture(40, 30))))
    drag(visitor, small, "dragEnter", "dragOver")
    page.wait_for_selector("#drop:not([hidden])")
    page.evaluate(LEAVE)
    page.wait_for_selector("#drop", state="hidden")
    drag(visitor, small, "dragOver", "drop")
    page.wait_for_function("() => document.querySelector('#upscale-compare .after')?.naturalWidth === 120")
    assert not page.locator("#drop").is_visible()
    page.keyboard.press("Escape")
    drag(visitor, file("x.png", b"no picture"), "dragEnter", "dragOver", "drop")
    page.wait_for_function(
        "() => document.querySelector('#upscale-text').textContent.includes('cannot be read')"
    )
    large = file("large.png", upscaling.file_of(Image.new("RGB", (400, 400))))
    drag(visitor, large, "dragEnter", "dragOver", "drop")
    page.wait_for_function(
        "() => document.querySelector('#upscale-text').textContent.includes('at most 100,000')"
    )
    visitor.complaints[:] = [c for c in visitor.complaints if "422" not in c and "413" not in c]


# ----------------------------------------------------------------------------
# Everybody.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "scheme"),
    [(DESKTOP, "light"), (TABLET, "dark"), (PHONE, "dark"), (PHONE, "light")],
    ids=["desktop", "tablet", "phone-dark", "phone-light"],
)
def test_axe_finds_nothing(size: dict[str, int], scheme: str, visit: Callable[..., Visitor]):
    visitor = visit(viewport=size, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    page = visitor.open("#seed=1")
    page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 9")
    assert visitor.findings() == []
    page.click("#select")
    visitor.face(0).locator(".open").click()
    visitor.face(1).locator(".open").click()
    assert page.locator(".bar").bounding_box()["height"] < 125  # in one row, or two on a phone
    assert page.locator("#tray-walk").bounding_box()["height"] < 50  # its words in one line
    assert visitor.findings() == []
    page.click("#tray-walk")
    page.wait_for_function("() => document.querySelector('#walk-text').textContent.startsWith('2 faces')")
    assert visitor.findings() == []
    page.keyboard.press("Escape")
    page.click("#select")
    visitor.face(2).locator(".open").click()
    page.keyboard.press("b")
    assert visitor.findings() == []
    page.keyboard.press("Escape")
    page.click("#enlarge")
    assert visitor.findings() == []


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(visit: Callable[..., Visitor]):
    visitor = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page = visitor.open("#seed=1")
    wide = """[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility()
        && e.getBoundingClientRect().right > innerWidth + 1 && getComputedStyle(e).position !== 'absolute')
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(wide) == []
    page.tap("#select")
    visitor.face(0).tap()
    visitor.face(1).tap()
    assert page.evaluate(wide) == []
    assert page.locator("#tray-walk").is_visible()
    page.tap("#select")
    visitor.face(2).tap(position={"x": 90, "y": 12})  # where a pointer that hovers would find the heart
    page.wait_for_function("() => document.querySelector('#viewer-compare .after').naturalWidth === 256")
    assert page.locator("#viewer-favourite").get_attribute("aria-pressed") == "false"
    assert page.evaluate(wide) == []
    page.tap("#viewer-before")
    box = page.locator("#viewer-compare").bounding_box()
    session = visitor.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0.5), ("touchMove", 0.4), ("touchMove", 0.25), ("touchEnd", None)):
        x, y = box["x"] + box["width"] * (share or 0), box["y"] + box["height"] / 2
        points = [{"x": x, "y": y}] if share else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert visitor.split() == pytest.approx(25, abs=4)


# ----------------------------------------------------------------------------
# Other servers.


@pytest.mark.slow
def test_it_says_when_the_server_is_gone_and_goes_on_when_it_is_back(browser: Any, tmp_path: Path):
    model = write_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ("--model", model, "--port", port)
    with serving(tmp_path, *options) as served:
        visitor = Visitor(browser, served)
        page = visitor.open()
        served.signal(signal.SIGTERM)
        served.process.wait(300)
        page.evaluate("scrollTo(0, 100000)")
        page.wait_for_selector("#notice.shown")
        assert "does not answer" in visitor.text("notice")
    with serving(tmp_path, *options):
        page.wait_for_function("() => !document.querySelector('#notice').classList.contains('shown')")
        page.wait_for_function("""() => {
            const seen = [...document.querySelectorAll('.tile:not([hidden])')];
            return seen.length && seen.every((tile) => tile.classList.contains('ready'));
        }""")
    visitor.context.close()


@pytest.mark.slow
def test_a_server_that_is_busy_is_waited_for(browser: Any, tmp_path: Path):
    with serving(tmp_path, "--model", write_model(tmp_path / "model"), "--rate", 4) as served:
        visitor = Visitor(browser, served, viewport=PHONE)
        page = visitor.open()
        page.wait_for_selector("#notice.shown")
        assert "busy" in visitor.text("notice")
        page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 14")
        visitor.context.close()


@pytest.mark.slow
def test_the_page_with_a_key(browser: Any, tmp_path: Path):
    """The browser asks its user, and sends what was given with every picture."""
    key = "k" * 24
    with serving(tmp_path, "--model", write_model(tmp_path / "model"), key=key) as served:
        visitor = Visitor(browser, served, http_credentials={"username": "any", "password": key})
        page = visitor.open()
        page.wait_for_function(f"() => document.querySelectorAll('{READY}').length >= 6")
        assert [c for c in visitor.complaints if "401" not in c] == []
        visitor.context.close()
