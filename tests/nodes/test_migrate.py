"""`fourstep migrate` on a real PostgreSQL: a data folder of 0.1.0 moves over, and back; what was cut off goes on."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from server.cli.main import main
from server.cli.output import sole_server
from server.jobs.moving import sqlite
from server.jobs.sqlite.database import Database
from server.nodes.cluster import join
from server.settings import Settings
from server.storage.files import Files
from tests.support import app_client
from tests.support.app_client import QUEUE
from tests.support.server_process import clean_env, until

pytestmark = pytest.mark.anyio

KEPT = Path(__file__).parents[1] / "data_folder_0_1"
EXPECTED = json.loads((KEPT / "expected.json").read_text())
A_CENTURY_S = 100 * 365 * 86400
JOBS = EXPECTED["jobs"]


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder; its files have their times again, which git does not keep."""
    copy = shutil.copytree(KEPT / "data", tmp_path / "data")
    now = time.time()
    for number, path in enumerate(sorted((copy / "files").rglob("*"))):
        stored = path.parent.parent.name == "stored"
        os.utime(path, (now, now + 86400 + number if stored else now))
    return copy


@pytest.fixture
def env(postgres, tmp_path):
    """The environment of a fleet: a database of its own, and a folder of files."""
    name = asyncio.run(postgres.new_database())
    (tmp_path / "shared").mkdir()
    yield {"FOURSTEP_DATABASE": postgres.url(name), "FOURSTEP_FILES": f"file://{tmp_path / 'shared'}"}
    asyncio.run(postgres.drop(name))


def command(*words):
    return [str(Path(sys.executable).with_name("fourstep")), "migrate", *map(str, words)]


def migrate(env, folder, *words):
    """Run the command in this process, on a thread, as it has a loop of its own; return what is left of it."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        mock.patch.dict(os.environ, clean_env(env), clear=True),
        ThreadPoolExecutor(1) as thread,
    ):
        asked = ["migrate", "--data-dir", str(folder), *map(str, words)]
        ended = thread.submit(main, asked).exception(timeout=120)
    assert isinstance(ended, SystemExit), ended
    if isinstance(ended.code, str):  # as Python's own end of a program does
        stderr.write(f"{ended.code}\n")
    return SimpleNamespace(
        returncode=1 if isinstance(ended.code, str) else ended.code or 0,
        stdout=stdout.getvalue(),
        stderr=stderr.getvalue(),
    )


def moved_in(done):
    """The counts that it prints, all of which must be there."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {line[:20].strip(): int(line[20:].split()[0]) for line in done.stdout.splitlines()}


async def all_jobs(folder):
    """Every job in the data folder, with all that is stored of it but the number of its place."""
    database = Database(folder / "jobs.sqlite")
    found = []
    while more := await sqlite.after(database, found[-1].seq if found else 0):
        found += more
    await database.close()
    return [job._replace(seq=0) for job in found]


def key(name):
    return {"authorization": f"Key {EXPECTED['credentials'][name]}"}


async def answers(web):
    """What a server says of each job, file, key and token of the folder, after all jobs have ended."""
    said = {}
    for name, request in JOBS.items():
        url = f"{QUEUE}/requests/{request}"
        await asyncio.wait_for(web.call("GET", f"{url}/status/stream", headers=key("alice")), 20)
        status = (await web.call("GET", f"{url}/status?logs=1", headers=key("alice"))).json()
        result = await web.call("GET", url, headers=key("alice"))
        theirs = await web.call("GET", url, headers=key("bob"))
        said[name] = [status["status"], status.get("error"), result.status, theirs.status]
        if name not in {"in progress", "waiting", "waiting, low priority"}:
            said[name] += [status, result.json()]
    for name, url in EXPECTED["files"].items():
        found = [await web.call("GET", url, headers=key(who)) for who in ("alice", "bob", "dave")]
        kept = ("content-type", "content-disposition")
        said[name] = [(each.status, each.body, [each.headers.get(one) for one in kept]) for each in found]
    for name in EXPECTED["credentials"]:
        reply = await web.call("POST", "/rest/storage/upload/initiate", body={}, headers=key(name))
        said[name] = reply.status
    upload = EXPECTED["upload"]
    path, _, query = upload["upload_url"].partition("?")
    part = (await web.call("PUT", f"{path}/2?{query}", body=b"and the second")).json()
    done = await web.call("POST", f"{path}/complete?{query}", body={"parts": [upload["part"], part]})
    whole = await web.call("GET", upload["file_url"], headers=key("alice"))
    said["upload"] = [done.status, whole.status, whole.body]
    said["order"] = [work.params.prompt for work in web.engines.works]
    said["webhook keys"] = (await web.call("GET", "/.well-known/jwks.json")).json()
    return said


@contextlib.asynccontextmanager
async def served(folder, env=None):
    """A server on the folder, or one of several with this environment. No job or result expires by its age."""
    chosen = {"database": env["FOURSTEP_DATABASE"], "files": env["FOURSTEP_FILES"], "node": "box1"} if env else {}
    settings = chosen | {"result_ttl": A_CENTURY_S, "tombstone_ttl": A_CENTURY_S}
    if env:
        folder.mkdir()
        await join(Settings(data_dir=folder, **settings), lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_client.Engines, "model", "demo", raising=False)  # what a server's row says of them
        for name, value in settings.items():
            patch.setitem(app_client.CHOSEN, name, value)
        async with app_client.serving(folder, files=Files) as web:
            yield web


async def test_every_id_url_and_key_works_as_before(folder, env, tmp_path):
    before = shutil.copytree(folder, tmp_path / "before")
    async with served(before) as web:
        old = await answers(web)
    counts = moved_in(await asyncio.to_thread(migrate, env, folder))
    async with served(tmp_path / "box", env) as web:
        new = await answers(web)

    assert counts["jobs"] == len(JOBS)
    assert counts["webhooks to deliver"] == 1
    assert new == old
    assert new["order"] == ["in progress", "waiting", "waiting, low priority"]
    assert new["upload"] == [200, 200, b"the first part, and the second"]


@pytest.mark.parametrize("inline", [1, 1 << 18], ids=["in the store", "in rows"])
async def test_there_and_back_all_is_as_it_was(folder, env, tmp_path, inline):
    back = tmp_path / "back"
    env = env | {"FOURSTEP_INLINE_BYTES": str(inline)}
    over = moved_in(await asyncio.to_thread(migrate, env, folder))
    again = moved_in(await asyncio.to_thread(migrate, env, back, "--back"))

    assert again == over
    assert await all_jobs(back) == await all_jobs(folder)
    assert _small_files(back) == _small_files(folder)
    (bytes_there, ends_there), (bytes_here, ends_here) = _stored(back), _stored(folder)
    assert bytes_there == bytes_here
    assert ends_there == pytest.approx(ends_here, abs=2.0)  # whole seconds, each way


def _small_files(folder):
    names = ("keys.json", "webhook-keys.json", "token.secret", "files/upload.secret")
    return {name: (folder / name).read_bytes() for name in names}


def _stored(folder):
    """Bytes of stored files, metadata and parts, and when files end."""
    files = [path for path in (folder / "files").rglob("*") if path.is_file() and path.name != "upload.secret"]
    ends = {path.name: path.stat().st_mtime for path in files if "stored" in path.parts and path.suffix != ".json"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}, ends


async def test_again_it_changes_nothing(folder, env, postgres):
    first = moved_in(await asyncio.to_thread(migrate, env, folder))
    rows = await postgres.fetch(env["FOURSTEP_DATABASE"], "SELECT * FROM jobs ORDER BY seq")
    again = moved_in(await asyncio.to_thread(migrate, env, folder))

    assert again == first
    assert await postgres.fetch(env["FOURSTEP_DATABASE"], "SELECT * FROM jobs ORDER BY seq") == rows


async def _multiply(folder, count):
    """Add copies of a waiting job, under new ids, with payloads so large that they fill many batches."""
    model = next(job for job in await all_jobs(folder) if job.id == JOBS["waiting"])
    database = Database(folder / "jobs.sqlite")
    for number in range(0, count, 100):
        more = [
            model._replace(columns=model.columns | {"id": f"copy-{each}"}, input=b"x" * 3000)
            for each in range(number, number + 100)
        ]
        await sqlite.add(database, more)
    await database.close()


def _kill_once_jobs_move(env, folder, fetch):
    running = subprocess.Popen(command("--data-dir", folder), env=clean_env(env), stderr=subprocess.DEVNULL)
    until(lambda: fetch("SELECT to_regclass('jobs') IS NOT NULL")[0][0], 60)
    until(lambda: fetch("SELECT count(*) FROM jobs")[0][0] > 0, 60)
    running.send_signal(signal.SIGKILL)
    running.wait()


@pytest.mark.long
async def test_killed_in_the_middle_it_goes_on(folder, env, postgres, tmp_path):
    await _multiply(folder, 2000)
    env = env | {"FOURSTEP_INLINE_BYTES": "2000"}
    url = env["FOURSTEP_DATABASE"]
    await asyncio.to_thread(_kill_once_jobs_move, env, folder, lambda query: asyncio.run(postgres.fetch(url, query)))
    ((there,),) = await postgres.fetch(url, "SELECT count(*) FROM jobs")
    counts = moved_in(await asyncio.to_thread(migrate, env, folder))
    rows = await postgres.fetch(url, "SELECT id FROM jobs ORDER BY seq")

    assert 0 < there < 2000
    assert counts["jobs"] == 2000 + len(JOBS)
    assert [row[0] for row in rows] == [job.id for job in await all_jobs(folder)]
    named = await postgres.fetch(url, "SELECT count(*) FROM payloads WHERE input_object IS NOT NULL")
    assert named == [(2000,)]


async def test_a_job_that_ended_after_a_move_was_cut_off_is_not_run_again(folder, env, postgres):
    moved_in(await asyncio.to_thread(migrate, env, folder))
    async with served(folder) as web:
        for name in ("in progress", "waiting", "waiting, low priority"):
            url = f"{QUEUE}/requests/{JOBS[name]}/status/stream"
            await asyncio.wait_for(web.call("GET", url, headers=key("alice")), 20)
    done = moved_in(await asyncio.to_thread(migrate, env, folder))

    assert done["of these not ended"] == 0
    left = await postgres.fetch(env["FOURSTEP_DATABASE"], "SELECT count(*) FROM jobs WHERE status <> 'COMPLETED'")
    assert left == [(0,)]


# --- what is refused


def refused(env, folder, *words):
    done = migrate(env, folder, *words)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fourstep: ")]
    assert "Hint: " in line
    assert "Traceback" not in done.stderr
    return line


def test_it_needs_both_stores(folder, env):
    assert "needs --database" in refused({"FOURSTEP_FILES": env["FOURSTEP_FILES"]}, folder)
    assert "needs files that all servers reach" in refused({"FOURSTEP_DATABASE": env["FOURSTEP_DATABASE"]}, folder)


def test_a_folder_without_a_server_of_its_own_is_refused(tmp_path, env):
    assert "there is no" in refused(env, tmp_path / "nowhere")
    assert "no jobs.sqlite" in refused(env, tmp_path)


async def test_a_server_that_still_runs_is_not_moved(folder, env):
    with sole_server(Settings(data_dir=folder)):
        assert "another server runs" in await asyncio.to_thread(refused, env, folder)


async def test_other_secrets_in_the_database_are_refused(folder, env, tmp_path):
    async with served(tmp_path / "box", env):
        pass
    other = shutil.copytree(folder, tmp_path / "other")
    moved_in(await asyncio.to_thread(migrate, env, folder))
    (other / "token.secret").write_bytes(b"x" * 32)

    assert "another token.secret" in await asyncio.to_thread(refused, env, other)


async def test_another_job_of_the_same_id_is_refused(folder, env, postgres):
    moved_in(await asyncio.to_thread(migrate, env, folder))
    url = env["FOURSTEP_DATABASE"]
    await postgres.execute("UPDATE jobs SET owner = 'another'", database=url.rpartition("/")[2])

    assert "another job with the id" in await asyncio.to_thread(refused, env, folder)


async def test_back_into_a_folder_with_jobs_is_refused(folder, env):
    moved_in(await asyncio.to_thread(migrate, env, folder))

    assert "jobs of its own" in await asyncio.to_thread(refused, env, folder, "--back")


async def test_back_beside_a_server_that_runs_is_refused(folder, env, tmp_path):
    moved_in(await asyncio.to_thread(migrate, env, folder))
    async with served(tmp_path / "box", env):
        line = await asyncio.to_thread(refused, env, tmp_path / "back", "--back")

    assert "box1 still use it" in line


async def test_what_is_missing_afterwards_is_said(folder, env, postgres):
    moved_in(await asyncio.to_thread(migrate, env, folder))
    database = env["FOURSTEP_DATABASE"].rpartition("/")[2]
    await postgres.execute("DELETE FROM events", database=database)
    done = await asyncio.to_thread(migrate, env, folder)

    assert done.returncode == 1
    assert "log lines" in done.stdout
    assert "0 there" in done.stdout
    assert "not all is there" in done.stderr
