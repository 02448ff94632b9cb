"""Signed webhooks, delivered at least once. Source of the protocol: fal's "Webhooks".

The end of a job that was submitted with `?fal_webhook=URL` is POSTed to that URL:

    X-Fal-Webhook-Request-Id    request id
    X-Fal-Webhook-User-Id       id of the key that submitted the job
    X-Fal-Webhook-Timestamp     Unix time of this attempt, whole seconds
    X-Fal-Webhook-Signature     Ed25519 in lower-case hex, over these four lines joined by LF:
                                request id, user id, timestamp, hex SHA-256 of the body

    {"request_id", "gateway_request_id", "status": "OK" | "ERROR", "payload", "error"?, "payload_error"?}

Any 2xx within 15 s is success. Anything else is tried again, ten times over two hours, each time with a new timestamp
and signature over the same bytes. A webhook enters the outbox in the transaction that ends the job and leaves it after
the receiver's answer, so a kill in between sends it twice: receivers tell by `request_id`.
"""

import asyncio
import collections
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from server.access.auth import ANONYMOUS
from server.fal.errors import RequestError
from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.job import Snapshot
from server.jobs.queue import Queue
from server.jobs.store import Busy, Outbox, Webhook
from server.logs import fault
from server.memory import end_if_exhausted
from server.outbound.urls import FetchError
from server.settings import SettingsError
from server.webhooks.signing_keys import SigningKeys

LOG = logging.getLogger(__name__)

TIMEOUT_S = 15.0
LONGEST_SLEEP_S = 60.0  # the wall clock may be set back while we wait for it
DISK_RETRY_S = 1.0


class Post(Protocol):
    """A function that sends a POST."""

    async def __call__(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109
        *,
        tenant: str,
    ) -> int:
        """Send `body` for `tenant` within `timeout` seconds; return the status code. Raises if there was no answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrySchedule:
    """When a failed webhook is tried again: `retries` times over `spread_s` seconds, each wait twice the last."""

    retries: int = 10
    spread_s: float = 2 * 3600.0

    def delay(self, attempts: int) -> float | None:
        """Return the seconds to wait after `attempts` failed attempts (from 1): 7, 14, 28, … 3604. None: give up."""
        if attempts > self.retries:
            return None
        return self.spread_s * 2.0 ** (attempts - 1) / (2.0**self.retries - 1)


_SHIPPED = RetrySchedule()


def signed_headers(keys: SigningKeys, request_id: str, user_id: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of one attempt at `now`."""
    timestamp = str(int(now))
    lines = (request_id, user_id, timestamp, hashlib.sha256(body).hexdigest())
    return {
        "Content-Type": "application/json",
        "X-Fal-Webhook-Request-Id": request_id,
        "X-Fal-Webhook-User-Id": user_id,
        "X-Fal-Webhook-Timestamp": timestamp,
        "X-Fal-Webhook-Signature": keys.sign("\n".join(lines).encode()).hex(),
    }


class Deliverer:
    """Delivers what is in the outbox. `timeout_s`: how long a receiver may take to answer.
    `clock`: Unix time in seconds, which signatures tell. `longest_sleep_s`: between two looks at the outbox.

    `at_once`: deliveries in flight; of those `per_origin` to one receiver, and for one key no more than `key_share` of
    them, so that receivers which hang leave room for the others.
    """

    def __init__(
        self,
        queue: Queue,
        outbox: Outbox,
        keys: SigningKeys,
        post: Post,
        *,
        key_share: float = 1.0,
        at_once: int = 128,
        per_origin: int = 16,
        schedule: RetrySchedule = _SHIPPED,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
        longest_sleep_s: float = LONGEST_SLEEP_S,
    ) -> None:
        self._queue = queue
        self._outbox = outbox
        self._keys = keys
        self._post = post
        self._at_once = at_once
        self._per_origin = per_origin
        self._per_owner = max(1, int(at_once * key_share))
        self._schedule = schedule
        self._timeout_s = timeout_s
        self._now = clock
        self._longest_sleep_s = longest_sleep_s
        self._in_flight: dict[int, asyncio.Task[None]] = {}
        self._origins: collections.Counter[str] = collections.Counter()
        self._owners: collections.Counter[str] = collections.Counter()
        self._nudge = queue.webhook_due
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, with what an earlier server left in the outbox."""
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    async def close(self, grace_s: float = 5.0) -> None:
        """Start no more deliveries; give those in flight `grace_s`, because a cut one may be sent twice."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        tasks = list(self._in_flight.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._nudge.clear()
            try:
                pause = await self._dispatch()
            except DatabaseError as error:
                log_database_error(LOG, "the outbox could not be read", error)
                pause = DISK_RETRY_S
            except Exception as error:  # noqa: BLE001 - without this task no webhook is delivered any more
                fault("webhooks could not be looked for", error)
                pause = DISK_RETRY_S
            if pause > 0:
                await self._sleep(pause)

    async def _dispatch(self) -> float:
        """Start due deliveries, up to the limits; return the seconds until there may be more to start."""
        free = self._at_once - len(self._in_flight)
        if free <= 0:
            return self._longest_sleep_s
        busy = self._busy()
        due = await self._outbox.due(free, busy)
        for webhook in due:
            if self._has_room(webhook):
                self._origins[webhook.origin] += 1
                self._owners[webhook.owner] += 1
                self._in_flight[webhook.id] = asyncio.create_task(self._deliver(webhook), name=f"webhook-{webhook.id}")
        if due:
            return 0.0
        pause = await self._outbox.next_due_in(busy)
        return self._longest_sleep_s if pause is None else min(max(pause, 0.0), self._longest_sleep_s)

    def _busy(self) -> Busy:
        origins = [origin for origin, count in self._origins.items() if count >= self._per_origin]
        owners = [owner for owner, count in self._owners.items() if owner != ANONYMOUS.id and count >= self._per_owner]
        return Busy(list(self._in_flight), origins, owners)

    def _has_room(self, webhook: Webhook) -> bool:
        for_owner = webhook.owner == ANONYMOUS.id or self._owners[webhook.owner] < self._per_owner
        return for_owner and self._origins[webhook.origin] < self._per_origin

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
        except TimeoutError:
            pass

    async def _deliver(self, webhook: Webhook) -> None:
        try:
            snapshot = await self._queue.get(webhook.request_id, certain=True)
            result = await self._queue.result(webhook.request_id)
            if snapshot is None:  # its tombstone has been deleted too
                await self._outbox.done(webhook)
                return
            body = snapshot.webhook_body(result.body if result else None)
            failure = await self._attempt(webhook, snapshot, body)
            await self._record(webhook, snapshot, failure)
        except DatabaseError as error:
            log_database_error(LOG, "a webhook's job could not be read", error)
            await asyncio.sleep(DISK_RETRY_S)
        except Exception as error:  # noqa: BLE001 - it is due again after the pause
            fault("a webhook could not be delivered", error)
            await asyncio.sleep(DISK_RETRY_S)
        finally:
            del self._in_flight[webhook.id]
            self._origins[webhook.origin] -= 1
            self._owners[webhook.owner] -= 1
            self._origins, self._owners = +self._origins, +self._owners  # without those at zero
            self._nudge.set()

    async def _attempt(self, webhook: Webhook, snapshot: Snapshot, body: bytes) -> str:
        """Send once; return why it failed, without anything of URL, body or keys, or "" if it succeeded."""
        user = snapshot.owner or ANONYMOUS.id  # an empty header does not survive every proxy
        try:
            headers = signed_headers(self._keys, snapshot.id, user, body, self._now())
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(webhook.url, body, headers, self._timeout_s, tenant=user)
        except FetchError as error:
            return error.message.rpartition(": ")[2]  # without “Could not download the file”
        except RequestError as error:  # no turn, or no way out
            return str(error)
        except SettingsError as error:  # the key file is lost or damaged
            return str(error)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - whatever a receiver does is a failed attempt
            end_if_exhausted(error)
            return type(error).__name__
        return "" if 200 <= status < 300 else f"status {status}"

    async def _record(self, webhook: Webhook, snapshot: Snapshot, failure: str) -> None:
        """Record an attempt, repeating the write until it succeeds: an unrecorded one would be sent again."""
        attempts = webhook.attempts + 1
        delay = self._schedule.delay(attempts) if failure else None
        if delay is not None:
            LOG.info("webhook of job %s failed, attempt %d: %s", snapshot.id, attempts, failure)
        elif failure:
            LOG.warning("webhook of job %s given up after %d attempts: %s", snapshot.id, attempts, failure)
        while True:
            try:
                if delay is not None:
                    await self._outbox.failed(webhook, delay)
                else:
                    await self._outbox.done(webhook)
                    if not failure:
                        await self._queue.delivered(snapshot)
            except DatabaseError as error:
                log_database_error(LOG, "the outbox could not be written", error)
                await asyncio.sleep(DISK_RETRY_S)
            else:
                return
