"""Queue: jobs that outlive the page, followed, cancelled, found again."""

import re

from playwright.sync_api import Page, Route, expect

from tests.support.server_process import Server, serving, start_server, until

JOBS = ".jobs li"


def submit(page: Page) -> None:
    page.get_by_role("button", name="Queue", exact=True).click()


def test_a_job_is_followed_until_its_picture_is_shown(page: Page):
    submit(page)

    expect(page.locator("#said")).to_contain_text("seed")
    expect(page.get_by_role("img", name="the picture that came out")).to_be_visible()
    expect(page.locator(JOBS)).to_have_count(0)


def test_a_waiting_job_has_its_position_and_is_cancelled(visit):
    with serving("--model", "instant+jpeg:9000", "--max-batch", "1") as server:
        page = visit(server.url)
        for count in range(1, 6):
            submit(page)
            expect(page.locator(JOBS)).to_have_count(count)
        newest = page.locator(JOBS).first

        expect(newest).to_contain_text(re.compile(r"waits, [123] before it"))
        expect(page.locator(".chip.queue")).to_contain_text(re.compile(r"\d in the queue, \d before yours"))
        for count in range(4, -1, -1):
            page.locator(JOBS).first.get_by_role("button", name="Cancel").click()
            expect(page.locator(JOBS)).to_have_count(count)
        until(lambda: server.get("/health")["queue"] == {"waiting": 0, "running": 0})
    expect(page.locator("#said")).to_have_text("Cancelled")
    visit.allow("ERR_CONNECTION|ERR_EMPTY")


def test_the_log_lines_of_a_job_are_shown(visit, slow: Server):
    def with_a_line(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"logs": [{"message": "the prompt is long"}]})

    page = visit(slow.url)
    page.route("**/status?logs=1", with_a_line)
    submit(page)

    expect(page.locator(f"{JOBS} pre")).to_have_text("the prompt is long")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(JOBS)).to_have_count(0)


def test_a_job_is_found_again_after_a_reload(visit, slow: Server):
    page = visit(slow.url)
    submit(page)
    expect(page.locator(JOBS)).to_contain_text("is being made")
    page.reload()

    expect(page.locator(JOBS)).to_have_count(1)
    expect(page.locator("#said")).to_contain_text("seed")
    expect(page.locator(JOBS)).to_have_count(0)


def test_a_job_survives_the_end_of_its_server(visit, tmp_path):
    server = start_server("--model", "instant+jpeg:1500", data_dir=tmp_path)
    try:
        server.wait_ready()
        page = visit(server.url)
        visit.allow("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
        submit(page)
        expect(page.locator(JOBS)).to_contain_text("is being made")
    finally:
        server.kill()
    with serving("--model", "instant+jpeg", "--port", server.url.rpartition(":")[2], data_dir=tmp_path):
        expect(page.locator("#said")).to_contain_text("seed")


def test_what_another_program_has_kept_there_is_no_job(visit):
    page = visit()
    page.add_init_script("sessionStorage.setItem('fourstep.jobs', 'nonsense')")
    page.reload()
    submit(page)

    expect(page.locator("#said")).to_contain_text("seed")


def test_a_job_that_the_server_does_not_know_can_be_forgotten(visit):
    job = """[{"id": "00000000-0000-4000-8000-000000000000", "status": "IN_QUEUE", "lines": [], "position": null}]"""
    page = visit()
    visit.allow("status of 404")
    page.add_init_script(f"sessionStorage.getItem('fourstep.jobs') ?? sessionStorage.setItem('fourstep.jobs', '{job}')")
    page.reload()

    expect(page.locator(JOBS)).to_contain_text("is gone")
    page.get_by_role("button", name="Forget").click()
    expect(page.locator(JOBS)).to_have_count(0)
