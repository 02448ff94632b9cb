"""Each key of the page does what the list says, and none does while somebody types."""

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import colour

DRAW, PICTURE = "Draw", "Picture"


def pressed(page: Page, name: str) -> None:
    expect(page.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")


def test_keys_choose_the_source(page: Page):
    page.keyboard.press("1")
    pressed(page, DRAW)
    page.keyboard.press("2")
    pressed(page, "Camera")
    page.keyboard.press("3")
    pressed(page, "Screen")
    with page.expect_file_chooser() as chosen:
        page.keyboard.press("4")

    assert chosen.value.element.get_attribute("accept") == "image/*"


def test_keys_choose_tool_and_size(page: Page):
    for key, tool in (("e", "Eraser"), ("f", "Fill"), ("b", "Brush")):
        page.keyboard.press(key)
        pressed(page, tool)
    size = page.get_by_label("Size of the brush")
    before = int(size.input_value())
    page.keyboard.press("]")
    larger = int(size.input_value())
    page.keyboard.press("[")

    assert larger > before
    assert int(size.input_value()) < larger


def test_keys_undo_and_redo(page: Page):
    page.keyboard.press("1")
    canvas = page.locator(".in canvas")
    white = colour(canvas)
    page.keyboard.press("f")
    canvas.click()
    filled = colour(canvas)
    page.keyboard.press("Control+z")
    undone = colour(canvas)
    page.keyboard.press("Control+Shift+Z")

    assert (undone, colour(canvas)) == (white, filled)
    assert white != filled


@pytest.mark.parametrize(("key", "name"), [("g", "Grid"), ("c", "Code"), ("?", "Keys")])
def test_a_key_opens_a_dialog_and_escape_closes_it(key: str, name: str, page: Page):
    page.keyboard.press(key)
    expect(page.get_by_role("dialog", name=name)).to_be_visible()
    page.keyboard.press("Escape")

    expect(page.get_by_role("dialog", name=name)).to_be_hidden()


def test_none_does_anything_while_somebody_types(page: Page):
    letters = "l1234bef[]sxgc?"
    field = page.get_by_label("Prompt", exact=True)
    seed = page.get_by_label("Seed", exact=True).input_value()
    field.fill("")
    field.press_sequentially(letters)
    field.press("Control+z")
    field.press("Control+Shift+Z")

    expect(field).to_have_value(letters)
    pressed(page, PICTURE)
    pressed(page, "Brush")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_label("Seed", exact=True)).to_have_value(seed)
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")
