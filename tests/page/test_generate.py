"""Generate: a picture by the stream, its previews, its end before its time, and what the server refuses."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import colour
from tests.support.server_process import Server, until

STRENGTH = "#strength"


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()


def seed_said(page: Page) -> str:
    """The seed of the picture that has just come, once it has."""
    expect(page.locator("#said")).to_contain_text("seed")
    found = re.search(r"seed (\d+)", page.locator("#said").inner_text())
    assert found is not None
    return found[1]


def assert_what_came_is_what_went_in(page: Page) -> None:
    """As the engine of these tests has it."""
    for x, y in ((0.2, 0.2), (0.5, 0.6), (0.8, 0.8)):
        sent, came = colour(page.locator(".in canvas"), x, y), colour(page.locator(".out canvas[role=img]"), x, y)
        assert max(abs(one - other) for one, other in zip(sent, came, strict=True)) < 30


def test_the_picture_that_came_out_is_shown(page: Page):
    generate(page)

    expect(page.locator("#said")).to_contain_text(re.compile(r"\d ms, seed \d+"))
    assert_what_came_is_what_went_in(page)


def test_what_is_asked_for_before_the_example_has_come_is_made_from_it(visit):
    page = visit()
    held: list[Route] = []
    page.route("**/static/beach.jpg", lambda route: held.append(route))  # noqa: PLW0108 (Playwright marks what it calls)
    with page.expect_request("**/static/beach.jpg"):
        page.reload()
    generate(page)
    held[0].continue_()

    expect(page.locator("#said")).to_contain_text("seed")
    assert_what_came_is_what_went_in(page)


def test_enter_in_the_prompt_generates_and_with_shift_it_is_a_new_line(page: Page):
    page.get_by_label("Prompt", exact=True).fill("a beach")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#said")).to_be_empty()
    page.keyboard.press("Enter")

    seed_said(page)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a beach\n")


def test_each_picture_has_a_seed_of_its_own_unless_one_is_kept(page: Page):
    seeds = []
    for _ in range(2):
        generate(page)
        seeds.append(seed_said(page))
        page.get_by_role("button", name="Queue").hover()
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Seed", exact=True).press("Tab")
    for _ in range(2):
        generate(page)
        expect(page.locator("#said")).to_contain_text("seed 7")

    assert seeds[0] != seeds[1]


def test_a_preview_is_shown_after_each_step_and_cancel_ends_it(visit, slow: Server):
    page = visit(slow.url)
    generate(page)

    expect(page.locator("#said")).to_have_text(re.compile(r"Step [123] of 4"))
    expect(page.locator(".out progress")).to_be_visible()
    expect(page.get_by_text("The picture comes here")).to_have_count(0)
    page.get_by_role("button", name="Cancel").click()

    expect(page.locator("#said")).to_have_text("Cancelled")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(page.locator(".out progress")).to_have_count(0)
    until(lambda: slow.get("/health")["state"] == "READY")


def test_escape_cancels(visit, slow: Server):
    page = visit(slow.url)
    generate(page)
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.keyboard.press("Escape")

    expect(page.locator("#said")).to_have_text("Cancelled")


def test_a_field_that_is_refused_is_marked_with_the_servers_words(page: Page, visit):
    visit.allow("status of 422")
    page.locator(STRENGTH).fill("7")
    generate(page)

    expect(page.locator(STRENGTH)).to_have_attribute("aria-invalid", "true")
    expect(page.locator(STRENGTH)).to_have_accessible_description(re.compile("less than or equal to 1"))
    expect(page.locator("#said")).to_contain_text("strength")
    page.locator(STRENGTH).fill("0.5")
    expect(page.locator(STRENGTH)).to_have_attribute("aria-invalid", "false")
    generate(page)
    seed_said(page)


def test_the_limits_of_the_controls_are_those_of_the_servers_document(page: Page):
    steps = page.locator("input[type=range][aria-label=Steps]")

    expect(steps).to_have_attribute("min", "1")
    expect(steps).to_have_attribute("max", "12")


def test_the_stages_of_a_picture_are_told(page: Page):
    generate(page)

    stages = page.get_by_label("Time of each stage")
    for stage in ("encode", "steps", "decode", "JPEG", "network"):
        expect(stages).to_contain_text(re.compile(rf"{stage} [\d.]+ ms"))


@pytest.mark.parametrize("many", [2, 4])
def test_several_pictures_are_asked_for_at_once(many: int, page: Page):
    page.get_by_text("More", exact=True).click()
    page.locator("#num_images").fill(str(many))
    with page.expect_request("**/stream") as asked:
        generate(page)
    seed_said(page)

    assert asked.value.post_data_json["num_images"] == many


def test_what_is_asked_for_is_what_is_on_screen(page: Page):
    page.get_by_label("Prompt", exact=True).fill("a cat, 猫")
    page.locator("#num_inference_steps").fill("6")
    page.locator("#guidance_scale").fill("2.5")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Negative prompt").fill("dogs")
    page.get_by_label("Safety checker").uncheck()
    with page.expect_request("**/stream") as asked:
        generate(page)
    seed_said(page)

    body = asked.value.post_data_json
    wanted = {"prompt": "a cat, 猫", "num_inference_steps": 6, "guidance_scale": 2.5, "negative_prompt": "dogs"}
    assert body | wanted == body
    assert body["enable_safety_checks"] is False
