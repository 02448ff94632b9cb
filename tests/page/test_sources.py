"""What goes in: a picture by file, drop and paste, the camera, the screen, and what is drawn on any of them."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Request, expect

from tests.page.conftest import colour
from tests.support.browsers.chromium import said_by

RED, GREEN, BLUE, WHITE = (200, 30, 30), (0, 140, 0), (45, 125, 193), (255, 255, 255)
CANVAS = ".in canvas"


def picture(size: tuple[int, int] = (64, 64), fill: tuple[int, ...] = RED, kind: str = "PNG", **options: Any) -> bytes:
    """A file of one colour."""
    return encoded(Image.new("RGBA" if len(fill) == 4 else "RGB", size, fill), kind, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def choose(page: Page, data: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    """Choose a file by the button."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Picture", exact=True).click()
    chooser.value.set_files([{"name": name, "mimeType": kind, "buffer": data}])


def give(page: Page, event: str, data: bytes, kind: str = "image/png", *, target: str = "document.body") -> None:
    """Drop or paste a file, as the browser tells of it."""
    text = base64.b64encode(data).decode()
    holder = "clipboardData" if event == "ClipboardEvent" else "dataTransfer"
    name = "paste" if event == "ClipboardEvent" else "drop"
    said_by(
        page,
        f"""(() => {{
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0));
          data.items.add(new File([bytes], "a", {{ type: "{kind}" }}));
          {target}.dispatchEvent(new {event}("{name}", {{ {holder}: data, bubbles: true, cancelable: true }}));
        }})()""",
    )


def near(actual: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two colours are the same, but for what JPEG and screens make of them."""
    return max(abs(one - other) for one, other in zip(actual, wanted, strict=True)) < 24


def shows(page: Page, wanted: tuple[int, ...], x: float = 0.5, y: float = 0.5) -> None:
    """Wait until the input has a colour at a place."""
    becomes(page, lambda: near(colour(page.locator(CANVAS), x, y), wanted))


def becomes(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError(colour(page.locator(CANVAS)))


def size(page: Page) -> list[int]:
    """Width and height of the input, in its own pixels."""
    return said_by(page, f"(({{ width, height }}) => [width, height])(document.querySelector('{CANVAS}'))")


def sent(page: Page) -> Image.Image:
    """The picture that goes to the server when one is asked for."""
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if request.url.endswith("/stream") else None)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#said")).to_contain_text("seed")
    data = asked[0].post_data_json["image_url"]
    assert data.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data.split(",")[1])))


def said(page: Page, words: str) -> None:
    """Expect the words in the alert of the sources."""
    expect(page.locator(".in [role=alert]")).to_contain_text(words)


def test_it_opens_with_the_example_and_sends_it_in_whole_blocks(page: Page):
    image = sent(page)

    assert (image.format, max(image.size), [side % 8 for side in image.size]) == ("JPEG", 512, [0, 0])


def test_a_file_is_taken_at_its_own_shape(page: Page):
    choose(page, picture((300, 200)))

    shows(page, RED)
    assert size(page) == [300, 200]
    expect(page.get_by_role("button", name="Picture", exact=True)).to_have_attribute("aria-pressed", "true")


def test_the_same_file_can_be_chosen_again(page: Page):
    choose(page, picture())
    shows(page, RED)
    page.get_by_role("button", name="Draw", exact=True).click()
    shows(page, WHITE)

    choose(page, picture())

    shows(page, RED)


@pytest.mark.parametrize("event", ["DragEvent", "ClipboardEvent"])
def test_a_picture_is_dropped_and_pasted_anywhere(event: str, page: Page):
    give(page, event, picture())

    shows(page, RED)


def test_a_dragged_file_is_invited_and_a_dragged_text_is_left_alone(page: Page):
    drag = """(() => { const data = new DataTransfer(); %s;
      const event = new DragEvent("dragover", { dataTransfer: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event); return event.defaultPrevented; })()"""

    taken = [
        said_by(page, drag % each) for each in ('data.setData("text/plain", "a")', 'data.items.add(new File([], "a"))')
    ]

    assert taken == [False, True]
    expect(page.locator("html")).to_have_class("dragging")


def test_a_text_pasted_beside_its_picture_stays_text(page: Page):
    page.get_by_role("button", name="Draw", exact=True).click()

    taken = said_by(
        page,
        """(() => { const data = new DataTransfer(); data.items.add(new File(["no"], "a.png", { type: "image/png" }));
        data.setData("text/plain", "words");
        const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
        document.querySelector("#prompt").dispatchEvent(event); return event.defaultPrevented; })()""",
    )

    assert not taken


def test_every_kind_that_is_named_is_read(page: Page):
    kinds = ["JPEG", "PNG", "WebP", "AVIF", "GIF", "BMP"]
    wide = [16 + 8 * each for each in range(len(kinds))]

    def read(kind: str, width: int) -> list[int]:
        choose(page, picture((width, 16), kind=kind), f"a.{kind.lower()}", f"image/{kind.lower()}")
        becomes(page, lambda: size(page)[0] == width)
        return size(page)

    assert [*map(read, kinds, wide)] == [[width, 16] for width in wide]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no picture at all", "no picture that the browser can read: it takes JPEG, PNG, WebP, AVIF, GIF or BMP"),
        (b"", "no picture that the browser can read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that the browser can read"),
        (picture(kind="JPEG")[:200], "no picture that the browser can read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "can't read HEIC"),
    ],
    ids=["text", "empty", "svg", "cut", "heic"],
)
def test_no_picture_is_said_and_the_old_one_stays(data: bytes, words: str, page: Page):
    choose(page, picture())
    shows(page, RED)

    choose(page, data, "a.jpg", "image/jpeg")

    said(page, words)
    shows(page, RED)
    choose(page, picture(fill=BLUE))
    shows(page, BLUE)
    expect(page.locator(".in [role=alert]")).to_be_empty()


def test_what_shows_through_is_white(page: Page):
    choose(page, picture(fill=(255, 0, 0, 0)))

    shows(page, WHITE)
    assert near(sent(page).getpixel((32, 32)), WHITE)


def test_a_phones_48_megapixels_are_reduced_and_turned(page: Page):
    image = Image.new("RGB", (8064, 6048), RED)
    image.paste(BLUE, (0, 0, 8064, 3024))
    exif = Image.Exif()
    exif[0x0112] = 6  # what is on top was on the right
    choose(page, encoded(image, "JPEG", exif=exif), "a.jpg", "image/jpeg")

    shows(page, BLUE, 0.7)
    shows(page, RED, 0.3)
    assert size(page) == [768, 1024]


def test_fine_patterns_become_grey_when_they_are_reduced(page: Page):
    board = (np.indices((4096, 4096)).sum(axis=0) % 2 * 255).astype(np.uint8)
    choose(page, encoded(Image.fromarray(board), compress_level=1))
    becomes(page, lambda: size(page) == [1024, 1024])

    seen = np.asarray(sent(page).convert("L"))

    assert seen.min() > 90
    assert seen.max() < 220


def test_more_pixels_than_a_browser_holds_are_refused(page: Page):
    board = Image.new("1", (20_000, 10_000))
    choose(page, encoded(board))

    said(page, "200 megapixels: up to 120 work here")


def test_of_two_files_the_later_is_shown_though_it_is_ready_first(page: Page):
    choose(page, picture((6000, 6000)))
    choose(page, picture(fill=BLUE))
    shows(page, BLUE)

    page.wait_for_timeout(1500)

    shows(page, BLUE)


def test_what_is_sent_has_whole_blocks_and_no_side_too_small(page: Page):
    given = [(1024, 683, 512), (512, 512, 512), (100, 50, 512), (1024, 300, 128), (3, 3, 512)]

    fitted = said_by(
        page,
        f"""import("/static/page/sources/encoder.js").then(({{ fitted }}) =>
          {json.dumps(given)}.map((each) => fitted(...each)))""",
    )

    crops = np.array([each["crop"] for each in fitted])
    sizes = np.array([[each["width"], each["height"]] for each in fitted])
    assert sizes.tolist() == [[512, 344], [512, 512], [104, 48], [216, 64], [8, 8]]
    assert crops[:, :2].min() >= 0
    np.testing.assert_allclose(crops[:, 2] / crops[:, 3], sizes[:, 0] / sizes[:, 1])
    np.testing.assert_allclose(crops[:, :2] * 2 + crops[:, 2:], np.array(given)[:, :2])


def test_pictures_are_encoded_in_the_one_worker_of_the_page(page: Page):
    sent(page)

    assert [worker.url.split("/")[-1] for worker in page.workers] == ["worker.js"]


def test_a_browser_without_canvases_in_workers_encodes_on_the_page(page: Page):
    page.add_init_script("delete window.OffscreenCanvas")
    page.reload()
    choose(page, picture())
    shows(page, RED)

    assert near(sent(page).getpixel((32, 32)), RED)
    assert page.workers == []


def test_a_worker_that_does_not_load_is_done_without(page: Page, visit):
    visit.allow("worker.js|ERR_FAILED")
    page.route("**/worker.js", lambda route: route.abort())
    page.reload()
    choose(page, picture())
    shows(page, RED)

    assert near(sent(page).getpixel((32, 32)), RED)
