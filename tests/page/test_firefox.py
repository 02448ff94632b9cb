"""The page in the system's Firefox: each thing that it does, once. The details are tested in Chromium."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.page.conftest import DESKTOP
from tests.page.test_looks import LOOKS, SIZES
from tests.page.test_results import GREY, RED, Colour, jpeg
from tests.support.browsers.bidi import Driver, Tab, driven
from tests.support.browsers.firefox import FAKE_CAMERA, program
from tests.support.server_process import Server, serving, start_server, until

IN, OUT = ".in canvas", ".out .square"
THUMBNAIL = ".strip li button"
WHITE, BLACK = (255, 255, 255), (23, 33, 31)
DRESSES = {
    "light": {},
    "dark": {"layout.css.prefers-color-scheme.content-override": 0},
    "forced": {"browser.display.document_color_use": 2},
}
USUAL = {"layout.css.prefers-color-scheme.content-override": 2, "browser.display.document_color_use": 0}
Visit = Callable[..., Tab]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Driver]:
    """One Firefox for the module."""
    path = program()
    if path is None:
        pytest.skip("needs Firefox")
    with driven(path, tmp_path_factory.mktemp("firefox"), FAKE_CAMERA) as driver:
        yield driver


@pytest.fixture
def visit(driver: Driver, server: Server) -> Iterator[Visit]:
    """Opens pages of the server, or of another, and waits until it is ready; what they did that none may do fails."""
    tabs: list[Tab] = []

    def opens(url: str = "") -> Tab:
        tab = driver.tab(DESKTOP)
        tabs.append(tab)
        tab.goto(url or server.url)
        tab.find("[data-state=READY]")
        return tab

    yield opens
    faults = [fault for tab in tabs for fault in tab.faults]
    for tab in tabs:
        tab.close()
    assert faults == []


@pytest.fixture
def page(visit: Visit) -> Tab:
    """The page at 1280×800, its server ready."""
    return visit()


def generate(page: Tab) -> None:
    page.press("Generate")
    page.says("seed")


def size(page: Tab) -> list[int]:
    """Width and height of the input, in its own pixels."""
    return page.said(f"(({{ width, height }}) => [width, height])(document.querySelector('{IN}'))")


def colour(page: Tab, css: str, x: float = 0.5, y: float = 0.3) -> np.ndarray:
    """The colour of an element at a share of its width and height, as it is seen."""
    seen = np.asarray(Image.open(io.BytesIO(page.picture(css))).convert("RGB")).astype(int)
    height, width = seen.shape[:2]
    return seen[int(y * (height - 1)), int(x * (width - 1))]


def painted(page: Tab, css: str, of: Colour, x: float = 0.5, y: float = 0.3) -> None:
    """Wait until an element has a colour there; JPEG may change it a little."""
    until(lambda: bool(np.allclose(colour(page, css, x, y), of, atol=12)), 10)


def choose(page: Tab, path: Path, data: bytes) -> None:
    """Choose a file as the picture that goes in."""
    path.write_bytes(data)
    page.ask("input.setFiles", element=page.find(".in input[type=file]"), files=[str(path)])


def answered(page: Tab, of: Colour) -> None:
    """Answer the page's wish for a picture with one of one colour from now on."""
    image = {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg(of)).decode()}", "width": 64, "height": 64}
    told = {"images": [image], "timings": {"inference": 0.01}, "seed": 1, "nsfw_content_detected": [False]}
    body = json.dumps(f"data: {json.dumps(told)}\n\n")
    page.said(
        f"""(() => {{
          const real = window.fetch;
          window.fetch = async (url, how) => url.pathname.endsWith("/stream") ? new Response({body}) : real(url, how);
        }})()"""
    )


def saved(driver: Driver, pattern: str) -> Path:
    """The one file that has been saved under such a name, once it is whole."""

    def found() -> list[Path]:
        return [*driver.downloads.glob(pattern)] if driver.downloads.exists() else []

    until(lambda: bool(found()) and found()[0].stat().st_size > 0 and not [*driver.downloads.glob("*.part")], 20)
    [path] = found()
    return path


@pytest.fixture(params=DRESSES)
def dress(request: pytest.FixtureRequest, driver: Driver) -> Iterator[str]:
    """What a person has chosen for all pages."""
    for name, value in DRESSES[request.param].items():
        driver.prefer(name, value)
    yield request.param
    for name in DRESSES[request.param]:
        driver.prefer(name, USUAL[name])


@pytest.mark.long
def test_the_page_fits_its_windows_and_is_kept_as_pictures(dress: str, visit: Visit):
    page = visit()
    generate(page)
    page.becomes("document.querySelector('.strip img')?.naturalWidth")
    LOOKS.mkdir(parents=True, exist_ok=True)
    over = []
    for width in (1440, 390, 320):
        page.resize(SIZES[width])
        (LOOKS / f"firefox-{width}-{dress}.png").write_bytes(page.picture())
        over.append(page.said("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
    (LOOKS / f"firefox-320-{dress}-whole.png").write_bytes(page.picture(whole=True))

    assert over == [0, 0, 0]
    assert page.said("matchMedia('(prefers-color-scheme: dark)').matches") == (dress == "dark")


def test_a_stroke_is_drawn_by_mouse_and_finger_and_undone(page: Tab):
    page.press("Draw")
    painted(page, IN, WHITE)
    for by, y in (("mouse", -88), ("touch", 88)):
        page.point(page.find(IN), (-100, y), (0, y), (100, y), by=by)
    painted(page, IN, BLACK)
    painted(page, IN, BLACK, y=0.7)
    page.keys("Control", "z")
    painted(page, IN, WHITE, y=0.7)

    painted(page, IN, BLACK)


@pytest.mark.long
def test_a_preview_is_shown_after_each_step_and_then_the_picture(visit: Visit, slow: Server):
    page = visit(slow.url)
    page.press("Generate")
    page.says("Step [123] of 4")
    page.find(".out progress")
    page.becomes("!document.querySelector('.out .empty')")
    page.says(r"ms, seed \d+")

    for x in (0.2, 0.5, 0.8):
        painted(page, OUT, tuple(colour(page, IN, x)), x)


def test_the_cameras_pictures_are_painted_many_times_a_second_and_recorded(page: Tab, driver: Driver):
    page.press("Camera")
    page.becomes("document.querySelector('[aria-label=Mirror]')")
    page.press("Record")
    page.press("Live")
    page.becomes("parseFloat(document.querySelector('.speed')?.textContent) >= 5")
    before = colour(page, OUT)
    until(lambda: not np.allclose(colour(page, OUT), before, atol=12), 10)
    page.press("Live")
    page.says("Live is off")
    page.press("Stop")
    page.says("The recording is saved")

    film = saved(driver, "*.webm").read_bytes()
    assert film.startswith(b"\x1a\x45\xdf\xa3")  # EBML
    assert b"\x1f\x43\xb6\x75" in film  # a cluster: there are frames


@pytest.mark.long
def test_a_file_is_taken_and_what_is_none_is_said(page: Tab, tmp_path: Path):
    choose(page, tmp_path / "a.jpg", jpeg(RED, (300, 200)))
    page.becomes(f"document.querySelector('{IN}').width === 300")
    choose(page, tmp_path / "b.jpg", b"no picture at all")

    page.says("no picture that the browser can read", ".in [role=alert]")
    assert size(page) == [300, 200]


@pytest.mark.long
def test_a_phones_picture_is_reduced_and_turned(page: Tab, tmp_path: Path):
    image = Image.new("RGB", (4032, 3024), RED)
    image.paste(GREY, (0, 0, 4032, 1512))
    exif = Image.Exif()
    exif[0x0112] = 6  # what is on top was on the right
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    choose(page, tmp_path / "a.jpg", data.getvalue())
    page.becomes(f"document.querySelector('{IN}').width === 768")

    painted(page, IN, RED, x=0.3)
    painted(page, IN, GREY, x=0.7)


def give(page: Tab, event: str, data: bytes) -> None:
    """Drop or paste: without a window Firefox has no picture on its clipboard, and no script can make such an event."""
    text = base64.b64encode(data).decode()
    page.said(
        f"""(() => {{
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0));
          data.items.add(new File([bytes], "a", {{ type: "image/jpeg" }}));
          const event = new Event("{event}", {{ bubbles: true, cancelable: true }});
          document.body.dispatchEvent(Object.assign(event, {{ dataTransfer: data, clipboardData: data }}));
        }})()"""
    )


@pytest.mark.long
def test_a_picture_is_dropped_and_pasted_anywhere(page: Tab):
    give(page, "drop", jpeg(RED))
    painted(page, IN, RED)
    give(page, "paste", jpeg(GREY))

    painted(page, IN, GREY)


@pytest.mark.long
def test_a_job_is_found_again_after_a_reload(visit: Visit, slow: Server):
    page = visit(slow.url)
    page.press("Queue")
    page.says("is being made", ".jobs")
    page.reload()

    page.says("Job", ".jobs")
    page.says(r"ms, seed \d+")


@pytest.mark.long
def test_a_result_of_the_strip_brings_everything_back_after_a_reload(page: Tab, tmp_path: Path):
    choose(page, tmp_path / "a.jpg", jpeg(GREY))
    painted(page, IN, GREY)
    generate(page)
    page.find(THUMBNAIL)
    page.reload()
    page.point(page.find(THUMBNAIL), (0, 0))

    page.says("Restored")
    painted(page, IN, GREY)
    painted(page, OUT, GREY)


@pytest.mark.long
def test_compare_shows_the_input_left_of_the_divider_and_the_difference(page: Tab, tmp_path: Path):
    choose(page, tmp_path / "a.jpg", jpeg((120, 120, 120)))
    painted(page, IN, GREY)
    answered(page, (150, 120, 90))
    generate(page)
    page.press("Compare")
    page.point(page.find(".divider"), (100, 0))
    painted(page, OUT, (120, 120, 120), x=0.65)
    painted(page, OUT, (150, 120, 90), x=0.9)
    page.press("Difference ×4")

    painted(page, OUT, (120, 0, 120))


@pytest.mark.long
def test_save_gives_the_bytes_of_the_server(page: Tab, driver: Driver):
    answered(page, RED)
    generate(page)
    page.press("Save")

    assert saved(driver, "fourstep-1.jpg").read_bytes() == jpeg(RED)


@pytest.mark.long
def test_a_grid_is_made_saved_and_closed_by_escape(page: Tab, driver: Driver):
    page.keys("g")
    page.press("Make the grid")
    page.says("The grid of 20 is done", "dialog.grid [role=status]")
    page.press("Save as PNG")
    sheet = Image.open(io.BytesIO(saved(driver, "*-grid.png").read_bytes()))
    page.keys("Escape")

    page.becomes("!document.querySelector('dialog[open]')")
    assert min(sheet.size) > 1000


@pytest.mark.long
def test_dialogs_open_and_close_by_keys_and_what_the_code_panel_shows_is_copied(page: Tab):
    page.keys("c")
    page.press("Python", "radio")
    page.says(r"fal_client\.run\(", "#code-program")
    page.press("Copy")
    page.press("Copied")
    shown = page.said("document.querySelector('#code-setup').textContent")
    page.keys("Escape")
    page.keys("?")
    page.becomes("document.querySelector('dialog[aria-label=Keys]').open")
    page.keys("Escape")
    page.point(page.find("#prompt"), (0, 0))
    page.keys("Control", "a")
    page.keys("Control", "v")

    page.becomes(f"document.querySelector('#prompt').value === {json.dumps(shown)}")


@pytest.mark.long
def test_the_pages_on_the_api_and_the_ca_are_shown(page: Tab, server: Server):
    LOOKS.mkdir(parents=True, exist_ok=True)
    for path, css in (("docs", "details.call"), ("trust", "#how .notice")):
        page.goto(f"{server.url}/{path}")
        page.find(css)
        (LOOKS / f"firefox-{path}.png").write_bytes(page.picture())


@pytest.mark.long
def test_live_with_a_key_goes_on_when_its_server_is_gone_and_back(visit: Visit, tmp_path: Path):
    keys = {"FOURSTEP_KEYS": "one:secret"}
    server = start_server("--model", "instant+jpeg", data_dir=tmp_path, env=keys)
    try:
        server.wait_ready()
        page = visit(server.url)
        page.allow("status of 401|can’t establish a connection|was interrupted")
        page.press("Generate")
        page.says("wants an API key")
        page.point(page.find(".notice input"), (0, 0))
        for letter in "one:secret":
            page.keys(letter)
        page.keys("Enter")
        page.becomes("!document.querySelector('.notice input')")
        page.press("Live")
        page.says("^Live$")
    finally:
        server.kill()
    page.says(r"again in [0-9.]+ s")
    page.says(r"Not reachable since \d+ s", ".notice.bad")
    assert "NetworkError" not in page.said("document.body.innerText")
    with serving("--model", "instant+jpeg", "--port", server.url.rpartition(":")[2], data_dir=tmp_path, env=keys):
        page.says("^Live$")
        page.find("[data-state=READY]")
        page.press("Live")


def test_a_fault_of_the_page_is_seen(page: Tab):
    faults = {
        "console.error('no')": "error: no",
        "throw new Error('thrown')": "error: Error: thrown",
        "fetch('https://example.com/').catch(() => 0)": "connect-src",
        "eval('1')": "eval() blocked by CSP",
        "document.body.setAttribute('style', 'color: red')": "blocked an inline style",
        "fetch('nothing')": "status of 404",
        "location = 'https://example.com/'": "request: https://example.com/",
    }
    for deed, fault in faults.items():
        page.said(f"(setTimeout(() => {{ {deed} }}), 0)")
        until(lambda fault=fault: any(fault in each for each in page.faults), 10)
    page.allow(".")
