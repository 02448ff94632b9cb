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
from tests.support.browsers.firefox import DARK, FAKE_CAMERA, program
from tests.support.server_process import Server, serving, start_server, until

IN, OUT = ".in canvas", ".out .square"
THUMBNAIL = ".strip li button"
Visit = Callable[..., Tab]


def started(home: Path, **preferences: object) -> Iterator[Driver]:
    path = program()
    if path is None:
        pytest.skip("needs Firefox")
    with driven(path, home, FAKE_CAMERA | preferences) as driver:
        yield driver


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> Iterator[Driver]:
    """One Firefox for the module."""
    yield from started(tmp_path_factory.mktemp("firefox"))


@pytest.fixture(scope="module")
def dark(tmp_path_factory) -> Iterator[Driver]:
    """One of a person who likes it dark: this Firefox is told so at its start only."""
    yield from started(tmp_path_factory.mktemp("firefox"), **DARK)


@pytest.fixture
def visit(request: pytest.FixtureRequest, server: Server) -> Iterator[Visit]:
    """Opens pages of the server, or of another, and waits until it is ready; what they did that none may do fails."""
    tabs: list[Tab] = []

    def opens(url: str = "", size: tuple[int, int] = DESKTOP, driver: str = "light") -> Tab:
        tab = request.getfixturevalue(driver).tab(size)
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


def painted(page: Tab, css: str, of: Colour, x: float = 0.5) -> None:
    """Wait until an element has a colour there; JPEG may change it a little."""
    until(lambda: bool(np.allclose(colour(page, css, x), of, atol=12)), 10)


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


@pytest.mark.parametrize("width", [1440, 390, 320])
def test_the_page_fits_its_window_and_is_kept_as_a_picture(width: int, visit: Visit):
    page = visit(size=SIZES[width])
    generate(page)
    LOOKS.mkdir(parents=True, exist_ok=True)
    (LOOKS / f"firefox-{width}-light.png").write_bytes(page.picture())
    (LOOKS / f"firefox-{width}-light-whole.png").write_bytes(page.picture(whole=True))

    assert page.said("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_who_likes_it_dark_has_it_dark(visit: Visit):
    page = visit(size=SIZES[1440], driver="dark")
    generate(page)
    (LOOKS / "firefox-1440-dark.png").write_bytes(page.picture())
    page.ask("browsingContext.setViewport", viewport=dict(zip(("width", "height"), SIZES[390], strict=True)))
    (LOOKS / "firefox-390-dark.png").write_bytes(page.picture())

    assert page.said("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 23)"


@pytest.mark.parametrize("by", ["mouse", "touch"])
def test_a_stroke_is_drawn_and_undone(by: str, page: Tab):
    page.press("Draw")
    painted(page, IN, (255, 255, 255))
    page.point(page.find(IN), (-100, -88), (0, -88), (100, -88), by=by)
    painted(page, IN, (23, 33, 31))
    page.keys("Control", "z")

    painted(page, IN, (255, 255, 255))


def test_a_preview_is_shown_after_each_step_and_then_the_picture(visit: Visit, slow: Server):
    page = visit(slow.url)
    page.press("Generate")
    page.says("Step [123] of 4")
    page.find(".out progress")
    page.becomes("!document.querySelector('.out .empty')")
    page.says(r"ms, seed \d+")

    for x in (0.2, 0.5, 0.8):
        painted(page, OUT, tuple(colour(page, IN, x)), x)


def test_the_cameras_pictures_are_painted_many_times_a_second_and_recorded(page: Tab, light: Driver):
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

    film = saved(light, "*.webm").read_bytes()
    assert film.startswith(b"\x1a\x45\xdf\xa3")  # EBML
    assert b"\x1f\x43\xb6\x75" in film  # a cluster: there are frames


def test_a_file_is_taken_and_what_is_none_is_said(page: Tab, tmp_path: Path):
    choose(page, tmp_path / "a.jpg", jpeg(RED, (300, 200)))
    page.becomes(f"document.querySelector('{IN}').width === 300")
    choose(page, tmp_path / "b.jpg", b"no picture at all")

    page.says("no picture that the browser can read", ".in [role=alert]")
    assert size(page) == [300, 200]


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


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_and_pasted_anywhere(kind: str, page: Tab):
    # A Firefox without a window has no pictures on its clipboard, and lets no script make an event with one.
    text = base64.b64encode(jpeg(RED)).decode()
    page.said(
        f"""(() => {{
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0));
          data.items.add(new File([bytes], "a", {{ type: "image/jpeg" }}));
          const event = new Event("{kind}", {{ bubbles: true, cancelable: true }});
          document.body.dispatchEvent(Object.assign(event, {{ dataTransfer: data, clipboardData: data }}));
        }})()"""
    )

    painted(page, IN, RED)


def test_a_job_is_found_again_after_a_reload(visit: Visit, slow: Server):
    page = visit(slow.url)
    page.press("Queue")
    page.says("is being made", ".jobs")
    page.reload()

    page.says("Job", ".jobs")
    page.says(r"ms, seed \d+")


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


def test_save_gives_the_bytes_of_the_server(page: Tab, light: Driver):
    answered(page, RED)
    generate(page)
    page.press("Save")

    assert saved(light, "fourstep-1.jpg").read_bytes() == jpeg(RED)


def test_a_grid_is_made_saved_and_closed_by_escape(page: Tab, light: Driver):
    page.keys("g")
    page.press("Make the grid")
    page.says("The grid of 20 is done", "dialog.grid [role=status]")
    page.press("Save as PNG")
    sheet = Image.open(io.BytesIO(saved(light, "*-grid.png").read_bytes()))
    page.keys("Escape")

    page.becomes("!document.querySelector('dialog[open]')")
    assert min(sheet.size) > 1000


def test_what_the_code_panel_shows_is_copied(page: Tab):
    page.keys("c")
    page.press("Python", "radio")
    page.says(r"fal_client\.run\(", "#code-program")
    page.press("Copy")
    page.press("Copied")
    shown = page.said("document.querySelector('#code-setup').textContent")
    page.keys("Escape")
    page.point(page.find("#prompt"), (0, 0))
    page.keys("Control", "a")
    page.keys("Control", "v")

    page.becomes(f"document.querySelector('#prompt').value === {json.dumps(shown)}")


def test_the_list_of_keys_is_opened_and_closed(page: Tab):
    page.keys("?")
    page.becomes("document.querySelector('dialog[aria-label=Keys]').open")
    page.keys("Escape")

    page.becomes("!document.querySelector('dialog[open]')")


@pytest.mark.parametrize(("path", "css"), [("docs", "details.call"), ("trust", "#how .notice")])
def test_the_other_pages_are_shown(path: str, css: str, page: Tab, server: Server):
    page.goto(f"{server.url}/{path}")
    page.find(css)
    LOOKS.mkdir(parents=True, exist_ok=True)
    (LOOKS / f"firefox-{path}.png").write_bytes(page.picture())


def test_a_key_is_asked_for_and_lets_generate_and_live_go_on(visit: Visit):
    with serving("--model", "instant+jpeg", env={"FOURSTEP_KEYS": "one:secret"}) as server:
        page = visit(server.url)
        page.allow("status of 401")
        page.press("Generate")
        page.says("API key")
        page.said("document.querySelector('.notice input').focus()")
        for letter in "one:secret":
            page.keys(letter)
        page.keys("Enter")
        page.becomes("!document.querySelector('.notice input')")
        generate(page)
        page.press("Live")
        page.says("^Live$")
        page.press("Live")
        page.says("Live is off")


def test_a_server_that_is_gone_is_told_and_live_goes_on_when_it_is_back(visit: Visit, tmp_path: Path):
    server = start_server("--model", "instant+jpeg", data_dir=tmp_path)
    try:
        server.wait_ready()
        page = visit(server.url)
        page.allow("can’t establish a connection|was interrupted")
        page.press("Live")
        page.says("^Live$")
    finally:
        server.kill()
    page.says(r"again in [0-9.]+ s")
    page.says(r"Not reachable since \d+ s", ".notice.bad")
    assert "NetworkError" not in page.said("document.body.innerText")
    with serving("--model", "instant+jpeg", "--port", server.url.rpartition(":")[2], data_dir=tmp_path):
        page.says("^Live$")
        page.find("[data-state=READY]")
        page.press("Live")


@pytest.mark.parametrize(
    ("deed", "fault"),
    [
        ("console.error('no')", "error: no"),
        ("throw new Error('thrown')", "error: Error: thrown"),
        ("fetch('https://example.com/').catch(() => 0)", "connect-src"),
        ("eval('1')", "blocked a JavaScript eval"),
        ("document.body.setAttribute('style', 'color: red')", "blocked an inline style"),
        ("fetch('nothing')", "status of 404"),
        ("location = 'https://example.com/'", "request: https://example.com/"),
    ],
)
def test_a_fault_of_the_page_is_seen(deed: str, fault: str, page: Tab):
    page.said(f"(setTimeout(() => {{ {deed} }}), 0)")

    until(lambda: any(fault in each for each in page.faults), 10)
    page.allow(".")
