"""Drawing: brush, eraser, fill, sizes, colours, undo; by mouse, finger and pen, on white and on pictures."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import colour, pixels
from tests.page.test_sources import BLUE, CANVAS, GREEN, RED, WHITE, becomes, choose, near, picture, sent, shows
from tests.support.browsers.chromium import said_by

INK = (23, 33, 31)


@pytest.fixture
def white(page: Page) -> Page:
    """The page with an empty drawing."""
    draw(page)
    return page


def draw(page: Page) -> None:
    """Choose the drawing."""
    page.get_by_role("button", name="Draw", exact=True).click()
    shows(page, WHITE)


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """A place of the input, as shares of its sides, in the page's pixels."""
    box = page.locator(CANVAS).bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def line(page: Page, y: float = 0.5, start: float = 0.2, end: float = 0.8) -> None:
    """Draw a line with the mouse, from left to right."""
    page.mouse.move(*at(page, start, y))
    page.mouse.down()
    page.mouse.move(*at(page, end, y), steps=10)
    page.mouse.up()


@contextlib.contextmanager
def pointer(page: Page) -> Iterator:
    """Sends what a screen with touch and pen would."""
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y} for x, y in (at(page, *place) for place in places)]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    def pen(kind: str, place: tuple[float, float], force: float) -> None:
        x, y = at(page, *place)
        how = {"pointerType": "pen", "button": "left", "buttons": int(force > 0), "force": force, "clickCount": 1}
        session.send("Input.dispatchMouseEvent", {"type": f"mouse{kind}", "x": x, "y": y, **how})

    yield touch, pen
    session.detach()


def stroke_by_touch(page: Page, y: float = 0.5) -> None:
    """Draw a line with a finger."""
    with pointer(page) as (touch, _):
        touch("Start", (0.2, y))
        for each in range(3, 9):
            touch("Move", (each / 10, y))
        touch("End")


def stroke_by_pen(page: Page, y: float, force: float) -> None:
    """Draw a line with a pen, pressed so hard (0 to 1)."""
    with pointer(page) as (_, pen):
        pen("Pressed", (0.2, y), force)
        for each in range(3, 9):
            pen("Moved", (each / 10, y), force)
        pen("Released", (0.8, y), 0)


def inked(page: Page, x: float = 0.5) -> int:
    """How many pixels from top to bottom are dark."""
    column = pixels(page.locator(CANVAS))[:, int(x * 400)]
    return int((column.max(axis=-1) < 100).sum())


def test_a_drawing_begins_white(white: Page):
    image = sent(white)

    assert image.size == (512, 512)
    assert np.asarray(image).min() > 250


def test_the_mouse_draws(white: Page):
    line(white)

    shows(white, INK)


def test_another_button_of_the_mouse_does_not(white: Page):
    white.mouse.click(*at(white, 0.5, 0.5), button="right")

    shows(white, WHITE)


def test_a_click_makes_a_dot(white: Page):
    white.mouse.click(*at(white, 0.5, 0.5))

    shows(white, INK)


def test_a_line_is_seen_while_it_is_drawn(white: Page):
    white.mouse.move(*at(white, 0.2, 0.5))
    white.mouse.down()
    white.mouse.move(*at(white, 0.9, 0.5), steps=10)

    shows(white, INK)


def test_a_finger_draws_and_does_not_scroll(visit):
    page = visit(phone=True)
    draw(page)

    stroke_by_touch(page, 0.4)

    shows(page, INK, 0.5, 0.4)
    assert said_by(page, "scrollY") == 0


def test_on_a_phone_a_picture_is_drawn_on_once_its_tools_are_open(visit):
    page = visit(phone=True)
    choose(page, picture((512, 512)))
    shows(page, RED)
    stroke_by_touch(page, 0.4)
    shows(page, RED, 0.5, 0.4)

    page.get_by_role("button", name="Drawing tools").click()
    stroke_by_touch(page, 0.4)

    shows(page, INK, 0.5, 0.4)


def test_a_pen_draws_wider_where_it_is_pressed(white: Page):
    stroke_by_pen(white, 0.2, 0.1)
    becomes(white, lambda: inked(white) > 0)
    light = inked(white)

    stroke_by_pen(white, 0.6, 1)

    becomes(white, lambda: inked(white) > light)
    assert inked(white) - light > 2 * light


def test_a_pen_hushes_the_palm(visit):
    page = visit(has_touch=True)
    draw(page)
    stroke_by_touch(page, 0.2)
    shows(page, INK, 0.5, 0.2)

    stroke_by_pen(page, 0.4, 0.5)
    shows(page, INK, 0.5, 0.4)
    stroke_by_touch(page, 0.6)

    shows(page, WHITE, 0.5, 0.6)


def test_a_palm_that_lay_there_before_the_pen_leaves_nothing(visit):
    page = visit(has_touch=True)
    draw(page)

    with pointer(page) as (touch, _):
        touch("Start", (0.2, 0.8))
        touch("Move", (0.6, 0.8))
        stroke_by_pen(page, 0.4, 0.5)
        touch("End")

    shows(page, INK, 0.5, 0.4)
    shows(page, WHITE, 0.4, 0.8)


def test_the_eraser_takes_the_drawing_and_not_the_picture(page: Page):
    choose(page, picture((512, 512)))
    shows(page, RED)
    line(page)
    shows(page, INK)

    page.keyboard.press("e")
    line(page)

    shows(page, RED)


def test_fill_reaches_to_the_lines_and_under_their_soft_edges(white: Page):
    line(white, start=0.005, end=1.1)
    shows(white, INK)
    white.keyboard.press("f")
    white.get_by_role("button", name="Blue").click()

    white.mouse.click(*at(white, 0.5, 0.2))

    shows(white, BLUE, 0.9, 0.1)
    shows(white, WHITE, 0.5, 0.9)
    above = pixels(white.locator(CANVAS))[8:200, 200]
    assert above.max() <= max(BLUE) + 2  # no pale seam between the blue and the black


def test_a_drawing_on_the_camera_stays_while_its_frames_go_by(page: Page):
    page.get_by_role("button", name="Camera").click()
    shows(page, GREEN, 0.1, 0.9)
    line(page, 0.9)
    page.wait_for_timeout(300)

    shows(page, INK, 0.5, 0.9)
    shows(page, GREEN, 0.5, 0.8)


def test_undo_and_redo_by_keys(white: Page):
    line(white)
    shows(white, INK)

    white.keyboard.press("Control+z")
    shows(white, WHITE)
    white.keyboard.press("Control+Shift+z")

    shows(white, INK)


def test_fifty_strokes_can_be_undone(white: Page):
    for each in range(51):
        white.mouse.click(*at(white, 0.05 + each % 10 * 0.1, 0.05 + each // 10 * 0.15))
    undo = white.get_by_role("button", name="Undo")

    for _ in range(50):
        white.keyboard.press("Control+z")

    expect(undo).to_have_attribute("aria-disabled", "true")
    shows(white, INK, 0.05, 0.05)
    shows(white, WHITE, 0.15, 0.05)
    white.keyboard.press("Control+z")
    shows(white, INK, 0.05, 0.05)


def test_clearing_can_be_undone(white: Page):
    line(white)
    shows(white, INK)

    white.get_by_role("button", name="Clear the drawing").click()
    shows(white, WHITE)
    white.get_by_role("button", name="Undo").click()

    shows(white, INK)


def test_a_drawing_is_kept_while_another_source_is_looked_at(white: Page):
    line(white)
    choose(white, picture())
    shows(white, RED)

    white.keyboard.press("1")

    shows(white, INK)


def test_a_drawing_goes_along_when_the_size_sent_changes(page: Page):
    page.get_by_role("button", name="Camera").click()
    shows(page, GREEN, 0.1, 0.9)
    line(page, 0.9)
    shows(page, INK, 0.5, 0.9)

    page.get_by_text("More", exact=True).click()
    page.get_by_label("Size sent").select_option("256")

    becomes(page, lambda: said_by(page, f"document.querySelector('{CANVAS}').width") == 256)
    shows(page, INK, 0.5, 0.9)


def test_a_colour_of_ones_own_and_a_brush_of_another_size(white: Page):
    white.get_by_label("Another colour").fill("#008c00")
    size = white.get_by_label("Size of the brush")
    before = int(size.input_value())
    white.keyboard.press("]")
    white.keyboard.press("]")
    white.keyboard.press("[")

    line(white)

    shows(white, GREEN)
    assert int(size.input_value()) > before


@pytest.mark.parametrize(("key", "name"), [("b", "Brush"), ("e", "Eraser"), ("f", "Fill")])
def test_a_tool_has_a_key(key: str, name: str, white: Page):
    white.keyboard.press("f" if key == "b" else "b")

    white.keyboard.press(key)

    expect(white.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")


def test_the_tools_are_one_stop_of_the_tab_key_and_arrows_go_on(white: Page):
    brush, eraser = (white.get_by_role("button", name=name, exact=True) for name in ("Brush", "Eraser"))
    brush.focus()

    white.keyboard.press("ArrowRight")

    expect(eraser).to_be_focused()
    assert white.locator(".tools [role=toolbar] [tabindex='0']").count() == 1


def test_what_is_drawn_is_sent(white: Page):
    line(white)
    shows(white, INK)

    assert near(sent(white).getpixel((256, 256)), INK)
    assert near(colour(white.locator(CANVAS)), INK)
