"""The Code panel shows what its functions write; the API's page and the one on the local CA."""

import pytest
from playwright.sync_api import Page, expect

from tests.page.snippets import ALL, BEACH, snippet
from tests.support.browsers.chromium import said_by
from tests.support.server_process import serving

KEY = "me:a-long-secret"
LINK = (
    "#prompt=a+%22beach%22&negative_prompt=fog&strength=0.35&num_inference_steps=3&guidance_scale=1.5&seed=7"
    "&num_images=2&enable_safety_checks=false"
)
SHOWN = {
    "prompt": 'a "beach"',
    "negative_prompt": "fog",
    "strength": 0.35,
    "num_inference_steps": 3,
    "guidance_scale": 1.5,
    "seed": 7,
    "num_images": 2,
    "enable_safety_checks": False,
}


@pytest.fixture(scope="module")
def server():
    with serving("--model", "instant+jpeg:5", "--tls-port", "0") as server:
        yield server


def open_panel(page: Page):
    expect(page.locator("[data-state=READY]")).to_be_visible()
    page.get_by_role("button", name="Code").click()
    expect(page.locator("#code-program")).to_be_visible()


def choose(page: Page, *names: str):
    for name in names:
        page.locator("dialog.code").get_by_role("radio", name=name, exact=True).check(force=True)


def texts(page: Page) -> dict[str, str]:
    setup = page.locator("#code-setup")
    return {
        "setup": setup.text_content() if setup.count() else "",
        "program": page.locator("#code-program").text_content(),
    }


@pytest.mark.parametrize("picture", ["file", "url"])
def test_the_panel_shows_what_is_on_screen_as_the_functions_write_it(picture, visit, server):
    page = visit(f"/{LINK}")
    open_panel(page)
    document, shown, written = server.get("/openapi.json"), {}, {}
    choose(page, {"file": "File", "url": "URL"}[picture])
    for language, call in ALL:
        choose(page, language, call.title())
        shown[language, call] = texts(page)
        text = snippet(language, call, document, f"{server.url}/", picture=picture, values=SHOWN)
        written[language, call] = {"setup": text["setup"], "program": text["program"]}

    assert shown == written


def test_a_change_on_screen_is_one_of_the_program(page: Page):
    open_panel(page)
    page.keyboard.press("Escape")
    page.get_by_label("Prompt", exact=True).fill("a canary")
    page.get_by_role("heading", name="fourstep").click()
    page.keyboard.press("c")

    expect(page.locator("#code-program")).to_contain_text('prompt: "a canary"')


def test_curl_has_no_realtime(page: Page):
    open_panel(page)
    choose(page, "Realtime", "curl")

    expect(page.get_by_role("radio", name="Realtime")).to_have_count(0)
    expect(page.locator("#code-program")).to_contain_text("/run/fal-ai/lcm-sd15-i2i")


def test_the_copy_is_the_text(page: Page):
    open_panel(page)
    choose(page, "Python")
    page.locator("figure", has=page.locator("#code-setup")).get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()

    assert said_by(page, "navigator.clipboard.readText()") == texts(page)["setup"]


def test_without_a_clipboard_the_copy_is_the_text_too(page: Page):
    said_by(page, "Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    open_panel(page)
    program = texts(page)["program"]
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.keyboard.press("Escape")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("")
    prompt.press("Control+v")

    expect(prompt).to_have_value(program.rstrip("\n"))


def test_the_picture_on_screen_is_saved(page: Page):
    open_panel(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="save it as input.jpg").click()

    assert download.value.suggested_filename == "input.jpg"
    assert download.value.path().read_bytes().startswith(b"\xff\xd8")


def test_escape_closes_the_panel(page: Page):
    open_panel(page)
    page.keyboard.press("Escape")

    expect(page.locator("dialog.code")).to_be_hidden()


def test_the_key_is_in_no_snippet(visit):
    with serving("--model", "instant+jpeg:5", "--tls-port", "0", env={"FOURSTEP_KEYS": KEY}) as shut:
        page = visit(shut.url)
        visit.allow("status of 401")
        page.get_by_role("button", name="Generate").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        open_panel(page)
        found = []
        for language, call in ALL:
            choose(page, language, call.title())
            found.append("".join(texts(page).values()))

    assert not any("a-long-secret" in text for text in found)
    assert all("FAL_KEY" in text for text in found)


def test_every_call_of_the_api_can_be_tried(visit, server):
    page = visit("/docs")
    visit.allow("status of 400")  # the cancel of a job that has ended
    calls = page.locator("details.call")
    expect(calls.first).to_be_visible()
    found = {}
    for at in range(calls.count()):
        call = calls.nth(at)
        call.locator("summary").click()
        if call.locator("input[type=file]").count():
            call.locator("input[type=file]").set_input_files(BEACH)
        call.get_by_role("button", name="Send").click()
        answer = call.locator("[role=status] b").filter(has_not_text="…")
        expect(answer).to_be_visible()
        if "/status/stream" in call.locator("summary").inner_text():
            expect(call.locator("pre")).to_contain_text("COMPLETED")
        path = call.locator("summary code").first.inner_text()
        found[path] = answer.inner_text().split(",")[0]
        if path.endswith("/requests/{request_id}/status"):
            while "COMPLETED" not in call.locator("pre").inner_text():
                call.get_by_role("button", name="Send").click()
                expect(answer).to_be_visible()

    paths = server.get("/openapi.json")["paths"]
    assert list(found) == list(paths)
    assert {path: said for path, said in found.items() if said not in {"200 OK", "202 Accepted"}} == {
        "/run/fal-ai/lcm-sd15-i2i/realtime": "answer",
        "/queue/fal-ai/lcm-sd15-i2i/requests/{request_id}/cancel": "400 Bad Request",
    }


def test_the_api_has_fields_limits_defaults_and_errors(visit):
    page = visit("/docs")
    run = page.locator("details.call").first
    run.locator("summary").click()

    expect(run.locator("tr", has_text="num_inference_steps").first).to_contain_text("1 to 12; default 4")
    expect(run.locator("tr", has_text="422")).to_contain_text("A field is wrong")
    expect(page.locator("tr", has_text="startup_timeout")).to_contain_text("504")
    stream = page.locator("details.call").nth(1)
    stream.locator("summary").click()
    expect(stream.locator("tr", has_text="progress").last).to_be_visible()


def test_a_wrong_field_is_answered_in_the_servers_words(visit):
    page = visit("/docs")
    visit.allow("status of 422")
    run = page.locator("details.call").first
    run.locator("summary").click()
    run.get_by_label("Body").fill('{"prompt": "p", "image_url": "data:,", "strength": 7}')
    run.get_by_role("button", name="Send").click()

    expect(run.locator("[role=status]")).to_contain_text("422")
    expect(run.locator("[role=status]")).to_contain_text("less than or equal to 1")


def test_the_ca_is_offered_with_its_fingerprint_and_a_way_to_https(visit, server):
    page = visit("/trust")

    expect(page.locator("#sha256")).to_have_text(server.get("/openapi.json")["x-local-ca"]["sha256"])
    expect(page.locator("#secure")).to_have_attribute("href", server.tls_url.replace("localhost", "127.0.0.1"))
    expect(page.locator("#how")).to_be_empty()


def test_without_https_the_page_says_how_to_start_it(visit):
    with serving("--model", "instant") as plain:
        page = visit(f"{plain.url}/trust")

        expect(page.locator("#how")).to_contain_text("--tls-port 8443")
        expect(page.locator("#steps")).to_be_hidden()


@pytest.mark.parametrize("path", ["/docs", "/trust"])
def test_a_narrow_page_is_not_wider_than_its_window(path, visit):
    page = visit(path, size=(320, 640))
    expect(page.locator("main")).to_be_visible()
    if path == "/docs":
        page.locator("details.call summary").first.click()

    assert said_by(page, "document.documentElement.scrollWidth") <= 320
