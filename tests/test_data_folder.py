"""A data folder of 0.1.0 (`data_folder_0_1`), opened with today's code: all that was in it is found."""

import asyncio
import datetime
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from server.access.api_keys import read
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from server.settings import Settings
from server.storage.files import Files
from server.transport.tls import ensure
from server.webhooks.signing_keys import SigningKeys
from tests.jobs.queues import outbox_of
from tests.support.app_client import QUEUE, RUN, serving

pytestmark = pytest.mark.anyio

KEPT = Path(__file__).with_name("data_folder_0_1")
EXPECTED = json.loads((KEPT / "expected.json").read_text())
A_CENTURY_S = 100 * 365 * 86400
PICTURE = b"\xff\xd8\xff\xe0 a picture"


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder; its files have their times again, which git does not keep."""
    copy = shutil.copytree(KEPT / "data", tmp_path / "data")
    now = time.time()
    for path in (copy / "files").rglob("*"):
        expires = now + 86400 if path.parent.parent.name == "stored" else now
        os.utime(path, (now, expires))
    return copy


@pytest.fixture
async def web(folder):
    """A server on the copy, which lets no job or result expire by its age."""
    async with serving(folder, files=Files, result_ttl=A_CENTURY_S, tombstone_ttl=A_CENTURY_S) as web:
        yield web


def key(name):
    return {"authorization": f"Key {EXPECTED['credentials'][name]}"}


async def status(web, name):
    """The status of a job, as its stream ends with it."""
    url = f"{QUEUE}/requests/{EXPECTED['jobs'][name]}/status"
    await asyncio.wait_for(web.call("GET", f"{url}/stream", headers=key("alice")), 10)
    return (await web.call("GET", f"{url}?logs=1", headers=key("alice"))).json()


async def result(web, name, caller="alice"):
    return await web.call("GET", f"{QUEUE}/requests/{EXPECTED['jobs'][name]}", headers=key(caller))


# --- jobs


async def test_a_completed_job_has_its_status_its_log_and_its_result(web):
    found = await status(web, "completed")
    answer = await result(web, "completed")
    picture = await web.call("GET", answer.json()["images"][0]["url"])

    assert (found["status"], found["metrics"]["inference_time"]) == ("COMPLETED", EXPECTED["inference_time"])
    assert "9 tokens, 9 used" in [line["message"] for line in found["logs"]]
    assert (answer.status, answer.json()) == (200, EXPECTED["result"])
    assert (picture.status, picture.body) == (200, b"\xff\xd8 a picture \xff\xd9")


async def test_a_job_is_its_owners(web):
    assert (await result(web, "completed", "bob")).status == 404


@pytest.mark.parametrize(("name", "code", "kind"), [("failed", 422, None), ("cancelled", 499, "client_cancelled")])
async def test_a_job_that_failed_has_its_error(web, name, code, kind):
    found, answer = await status(web, name), await result(web, name)

    assert found["status"] == "COMPLETED"
    assert found["error"]
    assert kind in {None, found["error_type"]}
    assert answer.status == code


async def test_an_invalid_input_says_which_field(web):
    (error,) = (await result(web, "failed")).json()["detail"]

    assert error["loc"][-1] == "strength"


async def test_an_expired_job_is_gone_and_not_unknown(web):
    assert (await status(web, "expired"))["status"] == "COMPLETED"
    assert (await result(web, "expired")).status == 410


async def test_a_result_that_is_not_to_be_stored_is_handed_out_once(web):
    assert [(await result(web, "completed, not stored")).status for _ in range(2)] == [200, 410]


async def test_what_waited_or_was_begun_is_run_in_its_order(web):
    names = ["in progress", "waiting", "waiting, low priority"]
    ends = [(await status(web, name))["status"] for name in names]
    answers = [await result(web, name) for name in names]

    assert ends == ["COMPLETED"] * 3
    assert [work.params.prompt for work in web.engines.works] == names
    assert [(answer.status, answer.json()["seed"]) for answer in answers] == [(200, 7)] * 3


async def test_the_webhook_is_still_to_be_delivered(folder):
    store = SQLiteStore(Database(folder / "jobs.sqlite"))
    (webhook,) = await outbox_of(store).due(10)
    await store.close()

    assert webhook.request_id == EXPECTED["jobs"]["completed, webhook pending"]
    assert (webhook.url, webhook.attempts) == ("https://hooks.example/done", 0)


# --- files


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("public", {None: 200, "alice": 200, "bob": 200, "dave": 200}),
        ("hidden", {None: 404, "alice": 200, "bob": 404, "dave": 200}),
        ("forbidden", {None: 403, "alice": 200, "bob": 403, "dave": 403}),
    ],
)
async def test_a_file_is_read_by_those_who_might_read_it(web, name, codes):
    url = EXPECTED["files"][name]
    answers = {who: await web.call("GET", url, headers=key(who) if who else None) for who in codes}

    assert {who: answer.status for who, answer in answers.items()} == codes
    assert answers["alice"].body == (b"notes\n" if name == "forbidden" else PICTURE)
    if name == "forbidden":
        assert answers["alice"].headers["content-disposition"] == "attachment; filename*=UTF-8''notes.txt"


async def test_an_upload_is_continued_under_its_url(web):
    upload = EXPECTED["upload"]
    path, _, query = upload["upload_url"].partition("?")
    part = (await web.call("PUT", f"{path}/2?{query}", body=b"and the second")).json()
    done = await web.call("POST", f"{path}/complete?{query}", body={"parts": [upload["part"], part]})
    read_by = {who: await web.call("GET", upload["file_url"], headers=key(who)) for who in ("alice", "bob")}

    assert done.status == 200
    assert read_by["alice"].body == b"the first part, and the second"
    assert read_by["bob"].status == 403


# --- keys and secrets


@pytest.mark.parametrize(("name", "code"), [("alice", 200), ("bob", 200), ("carol", 401), ("dave", 200)])
async def test_keys_are_accepted_but_for_the_revoked_one(web, name, code):
    answer = await web.call("POST", "/rest/storage/upload/initiate", body={}, headers=key(name))

    assert answer.status == code


async def test_a_server_with_a_key_file_stays_closed(web):
    assert (await web.call("POST", "/rest/storage/upload/initiate", body={})).status == 401


def test_a_key_keeps_its_limits(folder):
    found = {key.name: (key.calls, key.queued, key.sessions) for key in read(folder / "keys.json")}

    assert found == {"alice": (0, 0, 0), "bob": (3, 5, 2), "carol": (0, 0, 0), "dave": (0, 0, 0)}


async def test_a_browsers_token_is_accepted(web):
    body = {"prompt": "a canary", "image_url": "data:image/jpeg;base64,/9j/4A=="}
    codes = [
        (await web.call("POST", f"{RUN}/stream?fal_jwt_token={token}", body=body)).status
        for token in (EXPECTED["token"], EXPECTED["token"] + "x")
    ]

    assert codes == [200, 401]


async def test_the_keys_that_sign_webhooks_are_published(web, folder):
    now = (await web.call("GET", "/.well-known/jwks.json")).json()["keys"]
    then = SigningKeys(folder / "webhook-keys.json", lambda: EXPECTED["written"]).jwks()

    assert EXPECTED["jwks"]["keys"][-1] in now
    assert then == EXPECTED["jwks"]


def test_the_local_authority_and_its_certificate_stay(folder):
    written = datetime.datetime.fromtimestamp(EXPECTED["written"], datetime.UTC)
    before = {path.name: path.read_bytes() for path in (folder / "tls").iterdir()}
    files = ensure(Settings(data_dir=folder), lambda: written)

    assert {name: (folder / "tls" / name).read_bytes() for name in before} == before
    assert files.bundle.read_bytes().startswith(files.ca.read_bytes())
