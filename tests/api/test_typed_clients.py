"""Every body, decoded as strictly as the typed clients of fal declare it in their public sources.

A field without a default must be there, as `decode` in Swift or a plain field in Rust demands; `| None` may be null.
What they send (paths, headers) is in `REQUESTS`. Two declarations are left out, since what fal itself has sent
contradicts them: Dart's 422 (`status`, `message`, `body` beside each other) and an `exception` that is never null.
"""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest
from msgspec import Struct

from server.fal.errors import RequestError
from tests.api.test_queue import finished, running, submit
from tests.api.test_run import events
from tests.support.app_client import APP, INPUT, JPEG, serving
from tests.support.asgi_client import chunks

pytestmark = pytest.mark.anyio

Level = Literal["STDERR", "STDOUT", "ERROR", "INFO", "WARN", "DEBUG"]
Number = int | float


class Body(NamedTuple):
    """What was sent, and of what kind it is; "logs" in the kind: they were asked for."""

    kind: str
    data: bytes


# --- Swift (fal-ai/fal-swift) and the JVM (fal-ai/fal-java, for Java and Kotlin)


class SwiftLabels(Struct):
    level: Level


class SwiftLine(Struct):
    message: str
    timestamp: str
    labels: SwiftLabels


class SwiftQueued(Struct, tag_field="status", tag="IN_QUEUE"):
    queue_position: int
    response_url: str


class SwiftRunning(Struct, tag_field="status", tag="IN_PROGRESS"):
    logs: list[SwiftLine] | None


class SwiftDone(Struct, tag_field="status", tag="COMPLETED"):
    logs: list[SwiftLine] | None
    response_url: str


class SwiftSubmitted(Struct):
    request_id: str


class SwiftImage(Struct):
    url: str
    content_type: str
    width: int
    height: int


class SwiftOutput(Struct):
    images: list[SwiftImage]


class SwiftBytes(Struct, forbid_unknown_fields=True):
    """How it reads a picture in msgpack that has no `url`; where there is one, it is loaded."""

    content: bytes
    content_type: str
    width: int
    height: int


class Upload(Struct):
    """Swift, Dart, PHP and both Swift packages declare it alike."""

    file_url: str
    upload_url: str


class JavaLabels(Struct):
    level: Level
    source: str


class JavaLine(Struct):
    message: str
    timestamp: str
    labels: JavaLabels


class JavaStatus(Struct):
    request_id: str
    status_url: str
    response_url: str
    cancel_url: str


class JavaQueued(JavaStatus, tag_field="status", tag="IN_QUEUE"):
    queue_position: int


class JavaRunning(JavaStatus, tag_field="status", tag="IN_PROGRESS"):
    logs: list[JavaLine] | None = None


class JavaDone(JavaStatus, tag_field="status", tag="COMPLETED"):
    logs: list[JavaLine] | None = None


class JavaFault(Struct):
    msg: str
    loc: list[Any]
    type: str


class JavaInvalid(Struct):
    detail: list[JavaFault]


# --- Dart: fal-ai/fal-dart


class DartLine(Struct):
    message: str
    timestamp: str


class DartQueued(Struct, tag_field="status", tag="IN_QUEUE"):
    response_url: str
    queue_position: int


class DartRunning(Struct, tag_field="status", tag="IN_PROGRESS"):
    response_url: str
    logs: list[DartLine] | None = None


class DartDone(Struct, tag_field="status", tag="COMPLETED"):
    response_url: str
    logs: list[DartLine] | None = None


class DartImage(Struct):
    url: str
    height: Number
    width: Number


class DartOutput(Struct):
    images: list[DartImage]
    seed: Number


# --- Rust (carlosdp/fal-rs, with the endpoint's own types)


class RustSubmitted(Struct):
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str


class RustLine(Struct):
    timestamp: str
    level: str
    source: str
    message: str


class RustStatus(Struct):
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    response_url: str
    queue_position: int | None = None
    logs: list[RustLine] | None = None


class RustImage(Struct):
    url: str
    width: int
    height: int
    content_type: str | None = None


class RustOutput(Struct):
    images: list[RustImage]
    nsfw_content_detected: list[bool]
    seed: int
    timings: dict[str, Any]
    num_inference_steps: int | None = None
    request_id: str | None = None


class RustFault(Struct):
    loc: list[Any]
    msg: str
    type: str


class RustInvalid(Struct):
    detail: list[RustFault] | None = None


# --- Go (hanchchch/fal-go, regiellis/sdk-fal-go, mbukeRepo/fal-go): null and missing leave a field empty


class GoLine(Struct):
    message: str | None = None
    level: str | None = None
    source: str | None = None
    timestamp: str | None = None


class GoMetrics(Struct):
    inference_time: Number | None = None


class GoStatus(Struct):
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    response_url: str | None = None
    logs: list[GoLine] | None = None
    metrics: GoMetrics | None = None
    queue_position: int | None = None
    error: str | None = None
    error_type: str | None = None


class GoSubmitted(Struct):
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str


class GoFault(Struct):
    type: str
    msg: str
    loc: list[str]


class GoInvalid(Struct):
    detail: list[GoFault]


class GoError(Struct):
    detail: str
    error_type: str | None = None


# An RFC 3339 time, with an offset.
GoTime = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")]


class GoCdnToken(Struct):
    token: Annotated[str, msgspec.Meta(min_length=1)]
    token_type: str
    base_url: Annotated[str, msgspec.Meta(min_length=1)]
    expires_at: GoTime


class GoUploaded(Struct):
    access_url: str


# --- PHP: marceloeatworld/falai-php, cjmellor/fal-ai-laravel


class PhpSubmitted(Struct):
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    queue_position: int | None = None


class PhpMetrics(Struct):
    inference_time: float | None = None


class PhpStatus(Struct):
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    request_id: str
    queue_position: int | None = None
    response_url: str | None = None
    logs: list[dict[str, Any]] | None = None
    metrics: PhpMetrics | None = None
    error: str | None = None
    error_type: str | None = None


# --- Swift through a key proxy (lzell/AIProxySwift): it never asks for logs, and takes no list of them


class ProxySwiftStatus(Struct):
    cancel_url: str | None = None
    logs: str | None = None
    metrics: PhpMetrics | None = None
    response_url: str | None = None
    request_id: str | None = None
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"] | None = None
    status_url: str | None = None
    queue_position: int | None = None


class ProxySwiftImage(Struct):
    url: str | None = None
    content_type: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    width: int | None = None
    height: int | None = None


class ProxySwiftTimings(Struct):
    inference: float | None = None


class ProxySwiftOutput(Struct):
    images: list[ProxySwiftImage] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] | None = None
    timings: ProxySwiftTimings | None = None


SWIFT = SwiftQueued | SwiftRunning | SwiftDone
JAVA = JavaQueued | JavaRunning | JavaDone
DART = DartQueued | DartRunning | DartDone

# By client: what it decodes each kind of body as. A kind that is not listed it never gets, or decodes as any JSON.
CLIENTS: dict[str, dict[str, Any]] = {
    "fal-swift": {
        **dict.fromkeys(["status", "status logs"], SWIFT),
        "submit": SwiftSubmitted,
        "output": SwiftOutput,
        "upload": Upload,
        "token": str,
    },
    "fal-java": {
        **dict.fromkeys(["status", "status logs", "event", "event logs"], JAVA),
        "submit": JavaQueued,
        "invalid": JavaInvalid,
    },
    "fal-dart": {
        **dict.fromkeys(["status", "status logs"], DART),
        "submit": SwiftSubmitted,
        "output": DartOutput,
        "error": dict[str, Any],
        "upload": Upload,
    },
    "fal-rs": {
        **dict.fromkeys(["status", "status logs", "event", "event logs"], RustStatus),
        "submit": RustSubmitted,
        "output": RustOutput,
        "invalid": RustInvalid,
    },
    "Go": {
        **dict.fromkeys(["status", "status logs", "event", "event logs"], GoStatus),
        "submit": GoSubmitted,
        "invalid": GoInvalid,
        "error": GoError,
        "cdn token": GoCdnToken,
        "uploaded": GoUploaded,
        "upload": Upload,
        "token": str,
    },
    "PHP": {
        **dict.fromkeys(["status", "status logs"], PhpStatus),
        "submit": PhpSubmitted,
        "upload": Upload,
    },
    "AIProxySwift": {
        **dict.fromkeys(["status", "submit"], ProxySwiftStatus),
        "output": ProxySwiftOutput,
        "upload": Upload,
    },
}


async def statuses(web, job):
    """The status as it is now, with logs and without, polled and streamed."""
    for kind, query in (("", ""), (" logs", "?logs=1")):
        polled = await web.call("GET", job["status_url"] + query)
        yield Body(f"status{kind}", polled.body)
        async with web.exchange("GET", f"{job['status_url']}/stream{query}") as talk:
            await talk.hear()
            yield Body(f"event{kind}", (await talk.hear())["body"].removeprefix(b"data: "))


async def jobs(web):
    """What the queue says of jobs that wait, run, end well, fail and are cancelled."""
    web.engines.finish.clear()
    first = await submit(web)
    await web.engines.running.get()
    waiting = await submit(web)
    for job in (first, waiting):
        yield Body("submit", msgspec.json.encode(job))
        async for body in statuses(web, job):
            yield body
    yield Body("error", (await web.call("GET", waiting["response_url"])).body)
    yield Body("cancelled", (await web.call("PUT", waiting["cancel_url"])).body)
    web.engines.finish.set()
    await web.call("GET", f"{first['status_url']}/stream")
    web.engines.failure = RequestError("runner_server_error", "broken")
    failed = await submit(web)
    await web.call("GET", f"{failed['status_url']}/stream")
    web.engines.failure = None
    for job in (first, waiting, failed):
        async for body in statuses(web, job):
            yield body
    yield Body("output", (await web.call("GET", first["response_url"])).body)
    yield Body("error", (await web.call("GET", waiting["response_url"])).body)
    yield Body("error", (await web.call("GET", failed["response_url"])).body)
    yield Body("error", (await web.call("GET", f"{waiting['response_url']}0")).body)


async def others(web):
    """What runs, tokens and uploads answer."""
    yield Body("output", (await web.call("POST", f"https://fal.run/{APP}", body=INPUT)).body)
    stored = {**INPUT, "sync_mode": False}
    yield Body("output", (await web.call("POST", f"https://fal.run/{APP}", body=stored)).body)
    yield Body("invalid", (await web.call("POST", f"https://fal.run/{APP}", body={"strength": 2, "seed": "x"})).body)
    yield Body("error", (await web.call("POST", "https://fal.run/fal-ai/other", body=INPUT)).body)
    token = {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 300}
    yield Body("token", (await web.call("POST", "https://rest.alpha.fal.ai/tokens/", body=token)).body)
    file = {"content_type": "image/png", "file_name": "a.png"}
    initiate = "https://rest.alpha.fal.ai/storage/upload/initiate"
    yield Body("upload", (await web.call("POST", initiate, body=file)).body)
    cdn = await web.call("POST", "https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3", body={})
    yield Body("cdn token", cdn.body)
    kind = {"content-type": "image/png"}
    uploaded = await web.call("POST", "https://v3.fal.media/files/upload", body=b"\x89PNG", headers=kind)
    yield Body("uploaded", uploaded.body)


def refusal(types, body):
    """Why a client can't decode this body; None if it can."""
    try:
        msgspec.json.decode(body.data, type=types.get(body.kind, Any))
    except msgspec.ValidationError as error:
        return f"{body.kind}: {error} in {body.data.decode()}"
    return None


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_body_is_as_the_client_declares_it(tmp_path, client):
    async with serving(tmp_path) as web:
        bodies = [body for source in (jobs(web), others(web)) async for body in source]

    types = CLIENTS[client]
    assert types.keys() <= {body.kind for body in bodies}
    assert [said for body in bodies if (said := refusal(types, body))] == []


@pytest.mark.parametrize("client", ["fal-java", "fal-rs", "Go"])
async def test_every_event_of_a_stream_is_as_the_client_declares_it(tmp_path, client):
    async with serving(tmp_path) as web:
        job = await running(web)
        async with web.exchange("GET", f"{job['status_url']}/stream?logs=1") as talk:
            await talk.hear()
            web.engines.gate.set()
            told = events(b"".join([chunk async for chunk in chunks(talk)]))

    bodies = [Body("event logs", msgspec.json.encode(event)) for event in told]
    assert told[-1]["status"] == "COMPLETED"
    assert [said for body in bodies if (said := refusal(CLIENTS[client], body))] == []


@pytest.mark.parametrize("path", ["ws", "realtime"])
async def test_bytes_on_the_socket_are_answered_as_swift_declares_it(tmp_path, path):
    async with serving(tmp_path) as web, web.connect(f"wss://fal.run/{APP}/{path}") as socket:
        socket.send(msgspec.msgpack.encode({"prompt": "p", "image_bytes": b"raw", "seed": 1, "strength": 0.5}))
        output = msgspec.msgpack.decode(await socket.recv())

    assert [msgspec.convert(image, SwiftBytes).content for image in output["images"]] == [JPEG]


# --- what they send: method, URL, headers, the status that it needs

JSON = {"accept": "application/json", "content-type": "application/json"}
QUEUE = f"https://queue.fal.run/{APP}"
JOB = f"{QUEUE}/requests/{{id}}"
REQUESTS = {
    "Swift status": ("GET", f"{JOB}/status?logs=1", JSON, 200),
    "Swift result": ("GET", JOB, JSON, 200),
    "Java stream": ("GET", f"{JOB}/status/stream?logs=1", {**JSON, "accept": "text/event-stream"}, 200),
    "Dart status": ("GET", f"{JOB}/status?logs=0", {**JSON, "content-type": "application/json; charset=utf-8"}, 200),
    "Rust stream": ("GET", f"{JOB}/status/stream?logs=0", {}, 200),
    "Rust cancel": ("PUT", f"{JOB}/cancel", {}, 400),
    "Go submit": ("POST", f"{QUEUE}/", {"content-type": "application/json"}, 200),
    "Go result": ("GET", JOB, {"accept-encoding": "gzip"}, 200),
    "PHP status": ("GET", f"{JOB}/status?logs=1", {"accept": "application/json"}, 200),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_typed_clients_send_is_taken(tmp_path, name):
    method, url, headers, status = REQUESTS[name]
    async with serving(tmp_path) as web:
        job = await submit(web, QUEUE)
        await web.call("GET", f"{job['status_url']}/stream")
        where = url.format(id=job["request_id"])
        answer = await web.call(method, where, body=INPUT if method == "POST" else b"", headers=headers)

    assert answer.status == status


# --- how a setting of theirs leads them here: where a request to fal's address goes, and with which headers

BASE = "http://localhost:8000"
SECURE = "https://localhost:8443"


def by_proxy(url):
    """Swift and Dart: `withProxy`; Java and Kotlin: `withProxyUrl`."""
    return f"{BASE}/api/fal/proxy", {**JSON, "x-fal-target-url": url}


def by_address(url):
    """PHP: `queueBaseUrl`, `syncBaseUrl`; Laravel: `FAL_BASE_URL`, `FAL_SYNC_URL`; Go: `WithQueueURL`, `WithRunURL`."""
    return _moved(url, BASE), JSON


def by_host(url):
    """Go: `FAL_QUEUE_RUN_HOST`, `FAL_RUN_HOST`, as Python's client has them."""
    return _moved(url, SECURE), {"accept-encoding": "gzip", "content-type": "application/json"}


def _moved(url, base):
    return url.replace("https://queue.fal.run", f"{base}/queue").replace("https://fal.run", f"{base}/run")


@pytest.mark.parametrize("lead", [by_proxy, by_address, by_host])
async def test_a_setting_of_theirs_leads_typed_clients_here(tmp_path, lead):
    async with serving(tmp_path, keys="alice:a") as web:

        async def ask(method, url, body=b""):
            where, headers = lead(url)
            return await web.call(method, where, body=body, headers={**headers, "authorization": "Key alice:a"})

        made = await ask("POST", f"https://fal.run/{APP}", INPUT)
        job = (await ask("POST", QUEUE, INPUT)).json()
        where = JOB.format(id=job["request_id"])
        await finished(web, job, headers={"authorization": "Key alice:a"})
        status = await ask("GET", f"{where}/status?logs=1")
        result = await ask("GET", where)
        cancel = await ask("PUT", f"{where}/cancel")

    assert job["status_url"] == _moved(f"{where}/status", SECURE if lead is by_host else BASE)
    assert (status.status, status.json()["status"], len(status.json()["logs"])) == (200, "COMPLETED", 1)
    assert (made.json()["seed"], result.json()["seed"], cancel.status) == (7, 7, 400)
