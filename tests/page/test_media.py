"""The camera and the screen as sources: their frames, their lights, and why there may be none."""

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import colour
from tests.page.test_sources import GREEN, WHITE, becomes, choose, picture, said, sent, shows, size
from tests.support.browsers.chromium import said_by

# Keeps every stream that the page is given, so that a test can ask whether its light is on.
KEEP = """(() => {
  window.streams = [];
  for (const name of ["getUserMedia", "getDisplayMedia"]) {
    const real = navigator.mediaDevices[name].bind(navigator.mediaDevices);
    navigator.mediaDevices[name] = async (...given) => {
      const stream = await real(...given);
      streams.push(stream);
      return stream;
    };
  }
})()"""
LIGHTS = "streams.flatMap((each) => each.getTracks()).map((each) => each.readyState)"
VERSION = 'import("/static/page/sources/source.js").then(({ source }) => source.state.version)'


def press(page: Page, name: str) -> None:
    """Press a button of the sources."""
    page.get_by_role("group", name="Source").get_by_role("button", name=name).click()


@pytest.fixture
def camera(page: Page) -> Page:
    """The page with its camera on."""
    said_by(page, KEEP)
    press(page, "Camera")
    shows(page, GREEN, 0.1, 0.9)
    return page


def lights(page: Page) -> list[str]:
    """Of each stream, whether it is live or ended."""
    return said_by(page, LIGHTS)


def hide(page: Page) -> None:
    """Tell the page that it is hidden."""
    said_by(
        page,
        """Object.defineProperty(document, "hidden", { value: true });
        document.dispatchEvent(new Event("visibilitychange"))""",
    )


def test_the_cameras_middle_square_is_sent_at_the_chosen_size(camera: Page):
    assert lights(camera) == ["live"]
    assert size(camera) == [512, 512]
    assert sent(camera).size == (512, 512)


def test_the_camera_gives_what_is_sent_and_follows_the_chosen_size(camera: Page):
    settings = "(({ width, height }) => [width, height])(streams[0].getVideoTracks()[0].getSettings())"
    assert said_by(camera, settings) == [512, 512]
    camera.get_by_text("More", exact=True).click()
    camera.get_by_label("Size sent").select_option("640")

    becomes(camera, lambda: said_by(camera, settings) == [640, 640])
    becomes(camera, lambda: size(camera) == [640, 640])


def test_each_frame_is_a_change(camera: Page):
    before = said_by(camera, VERSION)

    camera.wait_for_timeout(500)

    assert said_by(camera, VERSION) > before + 2


def test_what_is_sent_is_the_newest_frame_also_where_it_was_not_shown(camera: Page):
    seen = "document.querySelector('.in .square canvas').toDataURL()"
    begun = said_by(camera, "performance.now()")
    said_by(camera, f"performance.now = () => {begun + 1e6}")  # so that no frame after the next is due
    version = said_by(camera, VERSION)
    becomes(camera, lambda: said_by(camera, VERSION) > version + 1)
    shown = said_by(camera, seen)
    version = said_by(camera, VERSION)
    becomes(camera, lambda: said_by(camera, VERSION) > version + 5)
    assert said_by(camera, seen) == shown

    sent(camera)

    assert said_by(camera, seen) != shown


def test_a_camera_is_a_mirror_until_it_is_told_otherwise(camera: Page):
    mirror = camera.get_by_role("button", name="Mirror")
    expect(mirror).to_have_attribute("aria-pressed", "true")

    mirror.click()

    expect(mirror).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("key", ["1", "2"])
def test_the_light_goes_off_when_another_source_is_chosen_or_the_camera_again(key: str, camera: Page):
    camera.keyboard.press(key)

    expect(camera.get_by_role("button", name="Mirror")).to_be_hidden()
    expect(camera.get_by_role("button", name="Camera")).to_have_attribute("aria-pressed", "false")
    assert lights(camera) == ["ended"]


def test_the_light_goes_off_when_a_picture_is_taken(camera: Page):
    choose(camera, picture())

    expect(camera.get_by_role("button", name="Mirror")).to_be_hidden()
    assert lights(camera) == ["ended"]


def test_the_light_goes_off_when_the_page_is_hidden(camera: Page):
    hide(camera)

    said(camera, "The camera has stopped while the page was hidden: press Camera to go on")
    shows(camera, GREEN, 0.1, 0.9)
    assert lights(camera) == ["ended"]


def test_a_camera_that_is_pulled_out_is_said(camera: Page):
    said_by(camera, 'streams[0].getTracks()[0].dispatchEvent(new Event("ended"))')

    said(camera, "The camera has ended: press Camera to go on")


def test_a_camera_that_comes_too_late_is_let_go(page: Page):
    said_by(page, KEEP)
    said_by(
        page,
        """(() => { const real = navigator.mediaDevices.getUserMedia;
        navigator.mediaDevices.getUserMedia = async (how) => { const given = await real(how);
          await new Promise((resolve) => (window.allow = resolve)); return given; }; })()""",
    )
    press(page, "Camera")
    press(page, "Draw")

    said_by(
        page, "(async () => { while (!window.allow) await new Promise((resolve) => setTimeout(resolve)); allow(); })()"
    )

    shows(page, WHITE)
    assert lights(page) == ["ended"]


def test_a_camera_can_be_chosen_where_there_are_two(camera: Page):
    said_by(
        camera,
        """(() => { const [one] = streams[0].getTracks().map((each) => each.getSettings().deviceId);
        navigator.mediaDevices.enumerateDevices = async () =>
          [one, "other"].map((deviceId) => ({ kind: "videoinput", deviceId, label: `Camera ${deviceId.slice(0, 5)}` }));
        navigator.mediaDevices.dispatchEvent(new Event("devicechange")); })()""",
    )

    camera.get_by_label("Which camera").select_option("other")

    expect(camera.get_by_label("Which camera")).to_be_visible()
    shows(camera, GREEN, 0.1, 0.9)
    assert sorted(lights(camera)) == ["ended", "live"]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("Camera", "NotAllowedError", "The camera is not allowed: allow it beside the page's address"),
        ("Camera", "NotFoundError", "There is no camera: connect one, then press Camera again"),
        ("Camera", "NotReadableError", "The camera is in use by another program: close that"),
        ("Camera", "AbortError", "The camera gives no picture (why): press Camera again"),
        ("Screen", "NotAllowedError", "No screen was chosen: press Screen again"),
        ("Screen", "NotReadableError", "The screen can't be read"),
    ],
)
def test_no_camera_or_screen_is_said_and_the_old_picture_stays(source: str, error: str, words: str, page: Page):
    said_by(
        page,
        f"""navigator.mediaDevices.getUserMedia = navigator.mediaDevices.getDisplayMedia = async () => {{
          throw new DOMException("why", "{error}"); }}""",
    )
    choose(page, picture())
    before = colour(page.locator(".in canvas"))

    press(page, source)

    said(page, words)
    assert colour(page.locator(".in canvas")) == before
    expect(page.get_by_role("button", name="Picture", exact=True)).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("source", ["Camera", "Screen"])
def test_a_page_that_is_not_secure_says_what_would_be(source: str, page: Page):
    said_by(page, 'void Object.defineProperty(window, "isSecureContext", { value: false })')
    said_by(page, 'void Object.defineProperty(navigator, "mediaDevices", { value: undefined })')

    press(page, source)

    said(page, f"The {source.lower()} needs https, or localhost")
    expect(page.get_by_role("link", name="How to open this page by https")).to_have_attribute("href", "./trust")


def test_a_phone_that_shares_no_screen_says_so(page: Page):
    said_by(page, "navigator.mediaDevices.getDisplayMedia = undefined")

    press(page, "Screen")

    said(page, "This browser can't share a screen")


def test_the_screen_comes_at_its_own_shape_and_its_track_ends(page: Page):
    said_by(page, KEEP)
    press(page, "Screen")
    expect(page.get_by_role("button", name="Screen")).to_have_attribute("aria-pressed", "true")

    width, height = size(page)
    assert max(width, height) == 512
    press(page, "Screen")

    expect(page.get_by_role("button", name="Screen")).to_have_attribute("aria-pressed", "false")
    assert lights(page) == ["ended"]
