"""What the page shows of its server: starting, set up wrong, gone, a key wanted, too much at once, under a path."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from safetensors.torch import save_file

from pipelines.hub import layout, sd15
from tests.support import checkpoint_layouts, fake_hub
from tests.support.path_proxy import under_a_path
from tests.support.server_process import Server, clean_env, serving, start_server, until

GONE = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|status of 50[34]"
STATE = ".chip.state"
KEY = "one:secret"


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()


def made(page: Page, seconds: float = 20) -> None:
    expect(page.locator("#said")).to_contain_text(re.compile(r"ms, seed \d+"), timeout=seconds * 1000)


def port_of(server: Server) -> tuple[str, str]:
    return "--port", server.url.rpartition(":")[2]


def test_what_is_asked_for_while_the_model_loads_is_made_once_it_is_there(visit):
    with serving("--model", "demo", ready=False) as server:
        page = visit(server.url)
        generate(page)
        expect(page.locator(STATE)).to_contain_text(re.compile("STARTING|BUSY"))
        made(page, 120)

        expect(page.locator(STATE)).to_contain_text("READY")


def test_a_model_that_is_not_there_is_told_with_what_to_do_and_the_page_goes_on_once_it_is(visit, tmp_path):
    with serving("--model", str(tmp_path / "nowhere"), data_dir=tmp_path, ready=False) as server:
        page = visit(server.url)
        visit.allow(GONE)
        expect(page.locator(STATE)).to_contain_text("SETUP_FAILED")
        expect(page.get_by_role("alert").filter(has_text="nowhere")).to_contain_text("goes on by itself")
        generate(page)
        expect(page.locator("#said")).to_contain_text("nowhere")
    with serving("--model", "instant+jpeg", *port_of(server), data_dir=tmp_path):
        expect(page.locator(STATE)).to_contain_text("READY")
        expect(page.get_by_text("goes on by itself")).to_have_count(0)
        generate(page)
        made(page)


def pull(tmp_path, *flags: str, env: dict[str, str]) -> None:
    """Run `fourstep pull` against a hub that has tiny weights by the names of the real ones."""
    base, lora = tmp_path / "base", tmp_path / "lora"
    base.mkdir()
    lora.mkdir()
    factors = checkpoint_layouts.lora_factors(checkpoint_layouts.write_folder(base)["unet"], rank=4)
    save_file(checkpoint_layouts.kohya(factors, alpha=8.0), lora / layout.LORA)
    with fake_hub.serving({sd15.BASE: base, sd15.LCM_LORA: lora}) as hub:
        command = [Path(sys.executable).with_name("fourstep"), "pull", *flags]
        environment = clean_env(env | {"HF_ENDPOINT": hub.url, "NO_PROXY": "*"})
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)


@pytest.mark.long
@pytest.mark.slow
def test_a_page_goes_on_by_itself_once_the_weights_are_pulled(visit, tmp_path):
    env = {"HF_HOME": str(tmp_path / "home")}
    flags = ("--model", "sd15", "--device", "cpu", "--dtype", "float32")
    with serving(*flags, data_dir=tmp_path, env=env, ready=False) as server:
        page = visit(server.url)
        visit.allow("status of 503")
        expect(page.locator(STATE)).to_contain_text("SETUP_FAILED", timeout=60_000)
        expect(page.get_by_role("alert").filter(has_text="fourstep pull")).to_contain_text("goes on by itself")
        generate(page)
        expect(page.locator("#said")).to_contain_text("fourstep pull")
        pull(tmp_path, *flags, env=env)

        expect(page.locator(STATE)).to_contain_text("READY", timeout=120_000)
        expect(page.get_by_text("fourstep pull")).to_have_count(0)
        generate(page)
        made(page, 60)


def test_the_command_of_the_hint_is_copied(visit, server: Server):
    told = server.get("/health") | {"state": "SETUP_FAILED", "detail": "No weights. Hint: `fourstep pull sd15`"}
    page = visit()
    page.route("**/health", lambda route: route.fulfill(json=told))
    page.get_by_role("button", name="Copy", exact=True).click()

    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("")
    page.keyboard.press("Control+v")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("fourstep pull sd15")


def test_an_engine_that_is_defunct_is_told(visit, server: Server):
    told = server.get("/health") | {"state": "DEFUNCT", "detail": "it has ended five times in a row"}
    page = visit()
    page.route("**/health", lambda route: route.fulfill(json=told))

    expect(page.locator(STATE)).to_contain_text("DEFUNCT")
    expect(page.get_by_role("alert").filter(has_text="five times")).to_contain_text("stopped for good")


def test_a_server_that_is_gone_is_told_with_since_when_and_found_again(visit, tmp_path):
    server = start_server("--model", "instant+jpeg:3000", data_dir=tmp_path)
    try:
        server.wait_ready()
        page = visit(server.url)
        visit.allow(GONE + "|ERR_INCOMPLETE_CHUNKED_ENCODING")
        generate(page)
        expect(page.locator("#said")).to_contain_text(re.compile("Step [12]"))
    finally:
        server.kill()
    expect(page.locator("#said")).to_contain_text(re.compile("broke off|not reachable"))
    expect(page.get_by_role("alert").filter(has_text="Not reachable")).to_have_text(re.compile(r"since \d+ s"))
    expect(page.locator("#said")).to_contain_text("this goes on once it is back")
    expect(page.locator("body")).not_to_contain_text("Failed to fetch")
    with serving("--model", "instant+jpeg", *port_of(server), data_dir=tmp_path):
        expect(page.locator(STATE)).to_contain_text("READY")
        expect(page.locator(".notice", has_text="Not reachable")).to_have_count(0)
        made(page)


@pytest.mark.parametrize("answer", ["<h1>Sign in</h1>", "", "null", "[]", '{"ok": true}'])
def test_another_ones_answer_for_the_servers_health_is_not_reachable_until_it_is_gone(answer: str, page: Page):
    page.route("**/health", lambda route: route.fulfill(body=answer, content_type="text/html"))
    expect(page.locator(".notice", has_text="Not reachable since")).to_be_visible()
    expect(page.locator(STATE)).to_contain_text("not reachable")
    page.unroute("**/health")

    expect(page.locator(STATE)).to_contain_text("READY")
    expect(page.locator(".notice", has_text="Not reachable")).to_have_count(0)


def test_another_ones_answer_in_place_of_a_job_is_told_and_the_job_can_be_put_again(page: Page):
    page.route("**/queue/**", lambda route: route.fulfill(body="<h1>Sign in</h1>", content_type="text/html"))
    page.get_by_role("button", name="Queue", exact=True).click()

    expect(page.locator("#said")).to_contain_text("The answer is not this server's")
    page.unroute("**/queue/**")
    page.get_by_role("button", name="Queue", exact=True).click()
    made(page)


def test_the_limits_are_read_once_the_document_is_the_servers(visit, server: Server):
    page = visit("/docs")
    page.route("**/openapi.json", lambda route: route.fulfill(body="<h1>Sign in</h1>", content_type="text/html"))
    page.goto(server.url)
    page.wait_for_timeout(500)
    expect(page.locator("#strength")).not_to_have_attribute("max", "1")
    page.unroute("**/openapi.json")

    expect(page.locator("#strength")).to_have_attribute("max", "1")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(visit):
    with serving("--model", "instant+jpeg", env={"FOURSTEP_KEYS": KEY}) as server:
        page = visit(server.url)
        visit.allow("status of 401")
        generate(page)
        expect(page.locator("#said")).to_contain_text("API key")
        page.get_by_label("API key").fill("one:wrong")
        page.get_by_label("API key").press("Enter")
        generate(page)
        expect(page.get_by_label("API key")).to_be_visible()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("API key").press("Enter")
        generate(page)
        made(page)

        page.reload()
        generate(page)
        made(page)
        assert page.context.storage_state()["origins"] == []
        other = page.context.new_page()
        other.goto(server.url)
        generate(other)
        expect(other.get_by_label("API key")).to_be_visible()


def test_a_limit_is_named_and_asked_again(visit):
    with serving("--model", "instant+jpeg:4000", "--max-calls", "1") as server:
        page = visit(server.url)
        visit.allow("status of 429")
        other = page.context.new_page()
        other.goto(server.url)
        generate(other)
        expect(other.locator("#said")).to_contain_text("Step 1")
        generate(page)

        expect(page.locator("#said")).to_have_text(re.compile(r"Too many calls in flight.*again in \d+ s"))
        made(page)


def test_a_picture_that_is_too_large_for_the_server_is_told_in_words(page: Page, visit):
    def refuse(route: Route) -> None:
        route.fulfill(status=413, json={"detail": "Request Entity Too Large"})

    visit.allow("status of 413")
    page.route("**/stream", refuse)
    generate(page)

    expect(page.locator("#said")).to_contain_text("The picture is larger than this server takes: choose a smaller")


def test_an_unloaded_engine_is_woken(visit):
    with serving("--model", "instant+jpeg", "--idle-unload", "0.02") as server:
        until(lambda: server.get("/health")["state"] == "UNLOADED")
        page = visit(server.url)
        expect(page.locator(STATE)).to_contain_text("UNLOADED")
        generate(page)
        made(page)


def test_the_page_works_under_a_path_of_a_proxy(visit):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(under_a_path(lambda: int(server.url.rpartition(":")[2])))
        server = stack.enter_context(serving("--model", "instant+jpeg", "--public-url", url))
        page = visit(url)
        expect(page.locator(STATE)).to_contain_text("READY")
        generate(page)
        made(page)
        page.get_by_role("button", name="Queue", exact=True).click()
        expect(page.locator("#said")).to_have_text("In the queue")
        made(page)


def test_two_keys_are_live_in_two_tabs_under_a_path_each_by_tokens_of_its_own(visit, tmp_path):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(under_a_path(lambda: int(server.url.rpartition(":")[2])))
        flags = ("--model", "instant+jpeg", "--public-url", url, "--log-format", "json")
        env = {"FOURSTEP_KEYS": "one:first,two:second"}
        server = stack.enter_context(serving(*flags, data_dir=tmp_path, env=env))
        one = visit(url)
        visit.allow("status of 401")
        two = one.context.new_page()
        two.goto(url)
        for tab, key in ((one, "one:first"), (two, "two:second")):
            generate(tab)
            tab.get_by_label("API key").fill(key)
            tab.get_by_label("API key").press("Enter")
        tokens = [connected(tab) for tab in (one, two, one)]
        for tab in (one, two):
            expect(tab.get_by_role("img", name="the picture that came out")).to_be_visible()

        assert len(set(tokens)) == 3
    ended = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"realtime"' in line]
    assert sorted(line["key"] for line in ended) == ["one", "one", "two"]


def connected(page: Page) -> str:
    """Make the page live, anew if it is; return the token of its connection."""
    live = page.get_by_role("button", name="Live", exact=True)
    if live.get_attribute("aria-pressed") == "true":
        live.click()
    with page.expect_websocket() as opened:
        live.click()
    expect(page.locator("#said")).to_have_text("Live")
    return opened.value.url.partition("fal_jwt_token=")[2]


@pytest.mark.parametrize("detail", ["", "<img src=x onerror=alert(1)>"])
def test_what_the_server_says_is_text(detail: str, visit, server: Server):
    told = server.get("/health") | {"state": "STARTING", "detail": detail, "notice": detail}
    page = visit()
    page.route("**/health", lambda route: route.fulfill(json=told))

    expect(page.locator(STATE)).to_contain_text(f"STARTING{detail}" if detail else "STARTING")
    expect(page.locator("img")).to_have_count(0)
