"""What is done with results: compare, grid, record, save, use as input, share, and the strip which keeps them."""

import base64
import io
import json
import re
import urllib.parse
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from tests.page.conftest import colour
from tests.support.browsers.chromium import said_by
from tests.support.server_process import until

RED, GREEN, BLUE, GREY = (220, 40, 40), (40, 180, 60), (40, 60, 220), (120, 120, 120)
Colour = tuple[int, int, int]


def jpeg(of: Colour, size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, of).save(data, "JPEG", quality=95)
    return data.getvalue()


def answered(page: Page, *colours: Colour, unsafe: bool = False) -> list[dict[str, Any]]:
    """Answer the page's calls with these pictures from now on; the list of inputs grows with each."""
    asked: list[dict[str, Any]] = []
    image = {"width": 64, "height": 64, "content_type": "image/jpeg"}
    urls = [f"data:image/jpeg;base64,{base64.b64encode(jpeg(each)).decode()}" for each in colours]

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        told = {
            "images": [image | {"url": url} for url in urls],
            "timings": {"inference": 0.01},
            "seed": asked[-1]["seed"],
            "nsfw_content_detected": [unsafe for _ in urls],
        }
        if route.request.url.endswith("/stream"):
            route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(told)}\n\n")
        else:
            route.fulfill(json=told)

    page.route("**/run/**", answer)
    return asked


def put_in(page: Page, of: Colour) -> None:
    """Make a picture of one colour the one that goes in."""
    page.locator(".in input[type=file]").set_input_files(
        {"name": "one.png", "mimeType": "image/jpeg", "buffer": jpeg(of)}
    )
    painted(page.locator(".in .square"), of)


def generate(page: Page, results: int = 1) -> None:
    """Generate; there are so many results then."""
    page.get_by_role("button", name="Generate").click()
    expect(thumbnails(page)).to_have_count(results)


def thumbnails(page: Page) -> Locator:
    return page.get_by_role("region", name="Results").get_by_role("listitem").get_by_role("button")


def out(page: Page) -> Locator:
    """The square of what came out, with what lies over it."""
    return page.locator(".out .square")


def painted(square: Locator, of: Colour, x: float = 0.5, y: float = 0.3) -> None:
    """Wait until a square has this colour there; JPEG may change it a little."""
    until(lambda: bool(np.allclose(colour(square, x, y), of, atol=12)), timeout=10)


@pytest.fixture
def compared(page: Page) -> Page:
    """The page after a grey picture went in and a red one came out."""
    answered(page, RED)
    put_in(page, GREY)
    generate(page)
    painted(out(page), RED)
    return page


def test_an_empty_square_says_what_to_press(page: Page):
    expect(out(page)).to_contain_text("Press Generate for one picture")


def test_a_picture_takes_the_place_of_those_words(compared: Page):
    expect(out(compared)).not_to_contain_text("Press Generate")


def test_compare_shows_the_input_left_of_the_divider(compared: Page):
    compared.get_by_role("button", name="Compare").click()

    painted(out(compared), GREY, x=0.25)
    painted(out(compared), RED, x=0.75)


def test_the_divider_is_moved_by_keys(compared: Page):
    compared.get_by_role("button", name="Compare").click()

    compared.get_by_role("slider", name="Divider between in and out").press("Home")

    painted(out(compared), RED, x=0.25)


def test_the_divider_is_moved_by_a_press_anywhere_in_the_square(compared: Page):
    compared.get_by_role("button", name="Compare").click()
    box = out(compared).bounding_box()
    assert box is not None

    compared.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])

    painted(out(compared), GREY, x=0.75)


def test_x_shows_the_input_while_it_is_held(compared: Page):
    compared.locator("body").focus()

    compared.keyboard.down("x")
    painted(out(compared), GREY)
    compared.keyboard.up("x")
    painted(out(compared), RED)


def test_the_difference_is_four_times_as_bright(page: Page):
    answered(page, (150, 120, 90))
    put_in(page, (120, 120, 120))
    generate(page)
    page.get_by_role("button", name="Compare").click()

    page.get_by_role("button", name="Difference").click()

    painted(out(page), (120, 0, 120))


def test_compare_follows_live(page: Page):
    page.get_by_role("button", name="Live").click()
    expect(page.locator(".speed")).to_be_visible()
    page.get_by_role("button", name="Compare").click()

    page.get_by_role("button", name="Difference").click()
    put_in(page, GREEN)

    # This server sends back what it gets.
    painted(out(page), (0, 0, 0))
    page.get_by_role("button", name="Compare").click()
    painted(out(page), GREEN)


def test_each_picture_of_a_result_can_be_seen(page: Page):
    answered(page, RED, GREEN, BLUE)
    generate(page)
    painted(out(page), RED)

    page.get_by_role("radio", name="Picture 2").check()
    painted(out(page), GREEN)
    page.get_by_role("radio", name="Picture 2").press("ArrowRight")
    painted(out(page), BLUE)


def test_a_blackened_picture_says_so(page: Page):
    answered(page, (0, 0, 0), unsafe=True)

    generate(page)

    expect(out(page)).to_contain_text("The safety checker found this picture unsafe")


def test_save_gives_the_bytes_of_the_server_under_the_seed(compared: Page):
    seed = compared.locator("#seed").input_value()

    with compared.expect_download() as saved:
        compared.get_by_role("button", name="Save").click()

    assert saved.value.suggested_filename == f"fourstep-{seed}.jpg"
    assert saved.value.path().read_bytes() == jpeg(RED)


def test_save_gives_all_pictures_of_a_result(page: Page):
    answered(page, RED, GREEN)
    generate(page)
    seed = int(page.locator("#seed").input_value())
    names: list[str] = []
    page.on("download", lambda download: names.append(download.suggested_filename))

    page.get_by_role("button", name="Save").click()

    def both() -> bool:
        page.wait_for_timeout(20)
        return sorted(names) == [f"fourstep-{seed}.jpg", f"fourstep-{seed + 1}.jpg"]

    until(both, timeout=10)


def test_use_as_input_takes_the_picture_that_is_seen(page: Page):
    answered(page, RED, GREEN)
    generate(page)
    page.get_by_role("radio", name="Picture 2").check()
    painted(out(page), GREEN)

    page.get_by_role("button", name="Use as input").click()

    painted(page.locator(".in .square"), GREEN)


def test_record_saves_a_film_with_a_name_by_time(page: Page):
    page.get_by_role("button", name="Live").click()
    page.get_by_role("button", name="Record").click()
    put_in(page, GREEN)
    painted(out(page), GREEN)
    page.wait_for_timeout(500)

    with page.expect_download() as saved:
        page.locator(".out").get_by_role("button", name="Stop").click()

    assert re.fullmatch(r"fourstep-\d{4}(-\d\d){5}\.webm", saved.value.suggested_filename)
    film = saved.value.path().read_bytes()
    assert film.startswith(b"\x1a\x45\xdf\xa3")  # EBML
    assert b"\x1f\x43\xb6\x75" in film  # a cluster: there are frames
    expect(page.locator("#said")).to_have_text("The recording is saved")


def test_a_browser_that_cannot_record_says_so(page: Page):
    page.add_init_script("delete window.MediaRecorder")
    page.reload()

    record = page.get_by_role("button", name="Record")

    expect(record).to_be_disabled()
    expect(record).to_have_attribute("title", re.compile("can't record a canvas as WebM"))


def test_a_result_of_the_strip_brings_everything_back_after_a_reload(compared: Page):
    seed = compared.locator("#seed").input_value()
    compared.reload()
    compared.get_by_label("Prompt", exact=True).fill("something else")
    put_in(compared, BLUE)

    thumbnails(compared).click()

    painted(out(compared), RED)
    painted(compared.locator(".in .square"), GREY)
    expect(compared.get_by_label("Prompt", exact=True)).to_have_value(re.compile("beach in hawaii"))
    expect(compared.locator("#seed")).to_have_value(seed)
    expect(compared.get_by_role("button", name="Keep this seed")).to_have_attribute("aria-pressed", "true")
    expect(compared.locator("#said")).to_have_text(f"Restored, seed {seed}")


def test_on_a_phone_a_result_of_the_strip_comes_into_sight(visit):
    page = visit(phone=True)
    answered(page, RED)
    generate(page)

    thumbnails(page).click()

    expect(page.locator("#said")).to_contain_text("Restored")
    expect(out(page)).to_be_in_viewport(ratio=0.9)


# What a visit has kept, fifty times: each under a number of its own.
FIFTYFOLD = """new Promise((resolve, reject) => {
  const asked = indexedDB.open("fourstep /");
  asked.onsuccess = () => {
    const store = asked.result.transaction("results", "readwrite").objectStore("results");
    const all = store.getAll();
    all.onsuccess = () => { for (let id = 1; id < 50; id++) store.put(all.result[0], id); };
    store.transaction.oncomplete = () => resolve(asked.result.close());
    store.transaction.onerror = reject;
  };
})"""


def test_the_strip_has_the_newest_first_and_fifty_of_them(compared: Page):
    said_by(compared, FIFTYFOLD)
    compared.reload()
    expect(thumbnails(compared)).to_have_count(50)
    answered(compared, GREEN)

    compared.get_by_role("button", name="Generate").click()

    painted(thumbnails(compared).first, GREEN)
    expect(thumbnails(compared)).to_have_count(50)
    compared.reload()
    expect(thumbnails(compared)).to_have_count(50)


def test_of_live_the_last_result_is_kept(page: Page):
    page.get_by_role("button", name="Live").click()
    for each in (RED, GREEN):
        put_in(page, each)
        painted(out(page), each)

    page.get_by_role("button", name="Live").click()

    expect(thumbnails(page)).to_have_count(1)
    painted(thumbnails(page), GREEN)


def test_of_live_a_saved_result_is_kept(page: Page):
    page.get_by_role("button", name="Live").click()
    put_in(page, RED)
    painted(out(page), RED)

    page.get_by_role("button", name="Save").click()

    expect(thumbnails(page)).to_have_count(1)


def test_live_results_are_announced(page: Page):
    page.get_by_role("button", name="Live").click()

    expect(page.get_by_role("status").filter(has_text=re.compile(r"A new picture, \d+ ms"))).to_be_attached()


def test_what_one_tab_forgets_is_gone_from_the_others(compared: Page, visit):
    other = compared.context.new_page()
    other.goto(compared.url)
    expect(other.locator(".strip li")).to_have_count(1)
    compared.get_by_role("button", name="Forget all").click()
    compared.get_by_role("button", name="Forget all 1: sure?").click()

    expect(other.locator(".strip li")).to_have_count(0)


def test_forget_all_asks_once_and_forgets(compared: Page):
    compared.get_by_role("button", name="Forget all").click()
    compared.get_by_role("button", name="Forget all 1: sure?").click()

    expect(thumbnails(compared)).to_have_count(0)
    compared.reload()
    expect(compared.locator("[data-state=READY]")).to_be_visible()
    expect(thumbnails(compared)).to_have_count(0)


# What is stored is stored only once F8 has been pressed.
SLOW_STORE = """
  let held = true;
  addEventListener("keydown", ({ key }) => { held = held && key !== "F8" });
  const { put } = IDBObjectStore.prototype;
  IDBObjectStore.prototype.put = function (...what) {
    const wait = () => { if (held) this.count().onsuccess = wait };
    wait();
    return put.apply(this, what);
  };
"""


def test_what_is_in_the_strip_is_kept_already(page: Page):
    page.add_init_script(SLOW_STORE)
    page.reload()
    for each in (RED, GREEN):
        answered(page, each)
        page.get_by_role("button", name="Generate").click()
        painted(out(page), each)
    expect(thumbnails(page)).to_have_count(0)

    page.locator("body").press("F8")

    expect(thumbnails(page)).to_have_count(2)
    page.reload()
    expect(thumbnails(page)).to_have_count(2)


def test_a_browser_that_keeps_nothing_has_a_strip_for_the_visit(page: Page):
    page.add_init_script("IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError') }")
    page.reload()
    answered(page, RED)

    generate(page, 1)
    generate(page, 2)

    strip = page.get_by_role("region", name="Results")
    expect(strip.get_by_role("status")).to_contain_text("This browser keeps nothing here")
    painted(thumbnails(page).first, RED)


def grid_of(page: Page, across: str, down: str) -> Locator:
    """The grid's dialog, once these values of strength and steps are asked for."""
    page.locator("body").press("g")
    dialog = page.get_by_role("dialog", name="Grid")
    dialog.get_by_label("Across: values").fill(across)
    dialog.get_by_label("Down: values").fill(down)
    dialog.get_by_role("button", name="Make the grid").click()
    return dialog


def test_a_grid_asks_for_each_pair_with_the_same_seed_and_picture(page: Page):
    asked = answered(page, RED)
    seed = int(page.locator("#seed").input_value())

    dialog = grid_of(page, "0.3, 0.7", "1 2 4")

    expect(dialog.get_by_role("status")).to_have_text("The grid of 6 is done")
    pairs = [(each["num_inference_steps"], each["strength"]) for each in asked]
    assert pairs == [(1, 0.3), (1, 0.7), (2, 0.3), (2, 0.7), (4, 0.3), (4, 0.7)]
    assert {each["seed"] for each in asked} == {seed}
    assert len({each["image_url"] for each in asked}) == 1


def test_a_grid_is_saved_as_one_picture_with_its_labels(page: Page):
    answered(page, RED)
    dialog = grid_of(page, "0.3, 0.7", "1 2 4")
    expect(dialog.get_by_role("status")).to_have_text("The grid of 6 is done")

    with page.expect_download() as saved:
        dialog.get_by_role("button", name="Save as PNG").click()

    assert saved.value.suggested_filename.endswith("-grid.png")
    sheet = np.asarray(Image.open(saved.value.path()).convert("RGB")).astype(int)
    red = np.abs(sheet - RED).max(axis=2) < 12
    assert 0.75 < red.mean() < 0.95
    top, left = np.flatnonzero(red.any(axis=1))[0], np.flatnonzero(red.any(axis=0))[0]
    assert (sheet[:top] < 128).any()  # ink: names and values
    assert (sheet[:, :left] < 128).any()


def test_a_grid_may_have_one_axis_of_sizes(page: Page):
    asked = answered(page, RED)
    page.get_by_role("button", name="Grid").click()
    dialog = page.get_by_role("dialog", name="Grid")
    dialog.get_by_label("Down: setting").select_option("nothing")
    dialog.get_by_label("Across: setting").select_option("Size")
    dialog.get_by_label("Across: values").fill("64 128")

    dialog.get_by_role("button", name="Make the grid").click()

    expect(dialog.get_by_role("status")).to_have_text("The grid of 2 is done")
    pictures = [urllib.parse.unquote_to_bytes(each["image_url"].split(",")[1]) for each in asked]
    assert [Image.open(io.BytesIO(base64.b64decode(each))).width for each in pictures] == [64, 128]


def test_escape_ends_a_grid_and_then_closes_it(page: Page):
    page.route("**/run/**", lambda route: None)
    dialog = grid_of(page, "0.3, 0.7", "1 2 4")
    expect(dialog.get_by_role("progressbar")).to_be_visible()

    page.keyboard.press("Escape")
    expect(dialog.get_by_role("status")).to_have_text("Cancelled")
    page.keyboard.press("Escape")

    expect(dialog).to_be_hidden()


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ("0.5 much", "“much” is no number: write one such as 0.2"),
        ("0.5 1.5", "1.5 is out of range: Strength goes from 0 to 1"),
        ("0 0.1 0.2 0.3 0.4 0.5", "These are no values, or too many: write one to 5, such as 0.2, 0.4, 0.6, 0.8, 1"),
        ("", "These are no values, or too many: write one to 5, such as 0.2, 0.4, 0.6, 0.8, 1"),
    ],
)
def test_values_that_no_grid_can_have_are_refused_in_words(strengths: str, words: str, page: Page):
    dialog = grid_of(page, strengths, "1")

    expect(dialog.get_by_label("Across: values")).to_have_accessible_description(words)
    expect(dialog.get_by_role("progressbar")).to_be_hidden()


def test_steps_are_whole(page: Page):
    dialog = grid_of(page, "0.5", "1.5")

    expect(dialog.get_by_label("Down: values")).to_have_accessible_description(
        "1.5 is no whole number: Steps takes only those"
    )


def test_no_key_acts_under_the_dialog(page: Page):
    seed = page.locator("#seed").input_value()
    page.locator("body").press("g")

    page.get_by_role("dialog", name="Grid").get_by_role("button", name="Close").press("s")

    expect(page.locator("#seed")).to_have_value(seed)


def test_share_copies_a_link_with_the_settings(page: Page):
    page.get_by_label("Prompt", exact=True).fill("a red fox")

    page.get_by_role("button", name="Share").click()

    expect(page.locator("#said")).to_have_text("Link copied: the settings are in it, the picture is not")
    page.get_by_label("Prompt", exact=True).press("ControlOrMeta+a")
    page.get_by_label("Prompt", exact=True).press("ControlOrMeta+v")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(re.compile(r"^http://.*/#prompt=a\+red\+fox&.*seed="))


def test_share_shows_the_link_where_it_may_not_copy(page: Page):
    page.add_init_script("delete Navigator.prototype.clipboard")
    page.reload()

    page.get_by_role("button", name="Share").click()

    dialog = page.get_by_role("dialog", name="Share")
    expect(dialog.get_by_role("textbox")).to_have_value(re.compile("#prompt=masterpiece"))
    expect(dialog.get_by_role("textbox")).to_be_focused()
