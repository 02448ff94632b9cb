"""The use case itself: where the picture comes from, and where results go. And pictures inside text."""

import asyncio
import base64
import errno
import os
import tracemalloc
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.messages import Log, Preview, Priority, Started
from server.fal import data_uri, schemas
from server.fal.data_uri import DataUriError, TooLargeError
from server.fal.errors import InvalidInput, RequestError
from server.generate import Call, generate
from server.inputs import DataUris
from tests.support.app_client import INPUT, JPEG, serving

CALL = Call(id="1", tenant="alice", priority=Priority.RUN, cdn="https://box.lan/cdn")
PICTURE = bytes(range(256)) * 4
BASE64 = base64.b64encode(PICTURE).decode()


def parsed(**changes):
    return schemas.validate({**INPUT, **changes})


@pytest.mark.anyio
async def test_a_large_picture_in_a_data_uri_arrives_whole(tmp_path):
    picture = bytes(2_000_000)
    async with serving(tmp_path) as web:
        await generate(web.ctx, parsed(image_url=data_uri.encode(picture, "image/png")), CALL)

    assert web.engines.works[0].image == picture


@pytest.mark.anyio
async def test_blanks_around_a_data_uri_are_nothing(tmp_path):
    async with serving(tmp_path) as web:
        await generate(web.ctx, parsed(image_url=f" \n\t{data_uri.encode(PICTURE, 'image/png')} "), CALL)

    assert web.engines.works[0].image == PICTURE


@pytest.mark.anyio
async def test_the_caller_hears_of_start_logs_and_previews(tmp_path):
    heard = []
    call = Call(id="1", tenant="", priority=Priority.RUN, cdn="", previews=True)
    async with serving(tmp_path) as web:
        await generate(web.ctx, parsed(num_inference_steps=2), call, heard.append)

    assert [type(event) for event in heard] == [Started, Log, Preview]


@pytest.mark.anyio
async def test_a_seed_is_drawn_for_a_request_without_one_and_told(tmp_path):
    async with serving(tmp_path) as web:
        outputs = [await generate(web.ctx, parsed(seed=None), CALL) for _ in range(2)]

    assert [output["seed"] for output in outputs] == [work.params.seed for work in web.engines.works]
    assert outputs[0]["seed"] != outputs[1]["seed"]


@pytest.mark.anyio
async def test_bytes_in_are_bytes_out_and_a_data_uri_too_where_that_is_wanted(tmp_path):
    call = Call(id="1", tenant="", priority=Priority.REALTIME, cdn="", image=b"raw")
    async with serving(tmp_path) as web:
        plain = await generate(web.ctx, parsed(image_url="", sync_mode=False), call)
        both = await generate(web.ctx, parsed(image_url="", sync_mode=True), call)

    assert plain["images"][0]["content"] == both["images"][0]["content"] == JPEG
    assert "url" not in plain["images"][0]
    assert both["images"][0]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["", "beach.png", "ftp://example.test/a", "javascript:alert(1)"])
async def test_what_is_no_picture_is_the_callers_fault(tmp_path, url):
    async with serving(tmp_path) as web:
        with pytest.raises(InvalidInput) as caught:
            await generate(web.ctx, parsed(image_url=url), CALL)

    assert caught.value.body["detail"][0]["loc"] == ["body", "image_url"]


@pytest.mark.anyio
async def test_a_stored_file_is_read_without_the_network(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"png")
    async with serving(tmp_path) as web:
        web.shelf.local_paths["http://box/cdn/files/a.png"] = file
        await generate(web.ctx, parsed(image_url="http://box/cdn/files/a.png"), CALL)

    assert web.engines.works[0].image == b"png"


@pytest.mark.anyio
async def test_a_stored_file_whose_life_has_just_ended_is_the_callers_fault(tmp_path):
    async with serving(tmp_path) as web:
        web.shelf.local_paths["http://box/cdn/files/a.png"] = tmp_path / "gone"
        with pytest.raises(InvalidInput) as caught:
            await generate(web.ctx, parsed(image_url="http://box/cdn/files/a.png"), CALL)

    assert caught.value.error_type == "file_download_error"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("priority", "durable"), [(Priority.REALTIME, False), (Priority.RUN, False), (Priority.NORMAL, True)]
)
async def test_files_of_the_queue_are_on_disk_before_the_answer(tmp_path, priority, durable):
    call = Call(id="1", tenant="alice", priority=priority, cdn="")
    async with serving(tmp_path) as web:
        await generate(web.ctx, parsed(sync_mode=False), call)

    assert web.shelf.saved["0.jpg"][2] == {"lifecycle": None, "owner": "alice", "durable": durable}


@pytest.mark.anyio
async def test_a_full_disk_is_an_overload(tmp_path):
    async with serving(tmp_path) as web:
        web.shelf.failure = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(RequestError) as caught:
            await generate(web.ctx, parsed(sync_mode=False), CALL)

    assert caught.value.status == 429


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EACCES])
async def test_a_storage_that_is_broken_is_an_end_and_the_operator_is_told(tmp_path, caplog, number):
    async with serving(tmp_path) as web:
        web.shelf.failure = OSError(number, os.strerror(number), "secret name")
        with pytest.raises(RequestError) as caught:
            await generate(web.ctx, parsed(sync_mode=False), CALL)

    assert (caught.value.status, caught.value.error_type) == (500, "internal_error")
    assert os.strerror(number) in caplog.text
    assert "secret name" not in caplog.text


# --- data URIs


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/jpeg;name=a.jpg;BASE64,{BASE64}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{BASE64.translate(str.maketrans('+/', '-_'))}",
        f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{BASE64[:76]}\r\n{BASE64[76:]}",
        data_uri.encode(PICTURE, "image/jpeg"),
    ],
    ids=["plain", "no type", "parameters", "unpadded", "url-safe", "percent", "lines", "ours"],
)
def test_base64_is_read_as_apps_write_it(uri):
    assert data_uri.decode(uri, 4096) == PICTURE


def test_a_data_uri_without_base64_is_percent_encoded():
    assert data_uri.decode("data:image/svg+xml,%3Csvg%3E", 100) == b"<svg>"


@pytest.mark.parametrize("shift", range(4))
def test_no_escape_is_cut_in_two(shift):
    text = "%" * shift + "%41%zz%4" * 20_000 + "%"

    assert data_uri.decode(f"data:,{text}", 10**6) == unquote_to_bytes(text)


@given(st.text("%%%0123abCDz=_+ \r\n-", max_size=200))
def test_percent_encoded_text_is_decoded_as_everywhere(text):
    assert data_uri.decode(f"data:,{text}", 10**6) == unquote_to_bytes(text)


@given(st.binary(max_size=200), st.integers(0, 300), st.sampled_from(["", " ", "\n", "%0A", "*", "=", "é"]))
def test_base64_is_decoded_whole_or_refused(data, at, extra):
    text = base64.b64encode(data).decode()
    inside = min(at, len(text.rstrip("=")))
    uri = f"data:;base64,{text[:inside]}{extra}{text[inside:]}"

    if extra in {"*", "é"} or (extra == "=" and inside < len(text.rstrip("="))):
        with pytest.raises(DataUriError):
            data_uri.decode(uri, 10**6)
    else:
        assert data_uri.decode(uri, 10**6) == data


@pytest.mark.parametrize(
    "uri",
    [
        f"data:,{'%41' * 300_000}",
        f"data:;base64,{'AAAA' * 300_000}",
        f"data:;base64,{'AAAA' * 300_000}AA==",
        f"data:;base64,{'AAAA ' * 300_000}",
        f"data:;base64,{'%41' * 300_000}",
    ],
    ids=["percent", "base64", "padded", "lines", "both"],
)
def test_a_long_data_uri_is_decoded_in_pieces(uri):
    pieces = list(data_uri.pieces(uri, 10**7))

    assert max(map(len, pieces)) < 200_000
    assert b"".join(pieces) == data_uri.decode(uri, 10**7)


@pytest.fixture
def data_uris():
    decoder = DataUris(turn_s=0.0)
    yield decoder
    decoder.close()


@pytest.mark.anyio
async def test_one_tenants_large_data_uri_is_decoded_in_turn_with_anothers(data_uris):
    ends = []

    async def decoded(tenant, pieces):
        await data_uris.decode(f"data:,{'%41' * (1 << 13) * pieces}", 10**8, tenant=tenant)
        ends.append((tenant, pieces))

    await asyncio.gather(decoded("mallory", 60), decoded("mallory", 50), decoded("alice", 4), decoded("alice", 3))

    assert ends == [("alice", 4), ("alice", 3), ("mallory", 60), ("mallory", 50)]


@pytest.mark.anyio
async def test_a_data_uri_that_is_not_wanted_any_more_is_not_decoded_to_its_end():
    turns = []

    class Counting(DataUris):
        def _turn(self, *arguments):
            turns.append(arguments)
            return super()._turn(*arguments)

    data_uris = Counting(turn_s=0.0)
    unwanted = asyncio.create_task(data_uris.decode(f"data:,{'%41' * (1 << 20)}", 10**8, tenant="alice"))
    await asyncio.sleep(0)
    unwanted.cancel()
    await data_uris.decode(f"data:,{'%41' * (1 << 14)}", 10**8, tenant="alice")
    data_uris.close()

    assert len(turns) < 20  # of the first one's four hundred


@pytest.mark.anyio
@pytest.mark.parametrize("uri", [f"data:;base64,{'A' * (1 << 21)}*", f"data:,{'%41' * (1 << 20)}"])
async def test_a_large_data_uri_that_can_not_be_decoded_is_refused(data_uris, uri):
    with pytest.raises((DataUriError, TooLargeError)):
        await data_uris.decode(uri, 1 << 19, tenant="alice")


@pytest.mark.parametrize(
    "uri", [f"data:,{'%41' * 200_000}", f"data:;base64,{'%41' * 200_000}", f"data:;base64,{'AAAA ' * 200_000}"]
)
def test_a_data_uri_takes_no_more_memory_than_it_is_long(uri):
    tracemalloc.start()
    try:
        data_uri.decode(uri, 10**7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 4 * len(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:;base64,a",
        "data:;base64,a*b=",
        "data:;base64,é",
        "data:;base64,ab=c",
    ],
)
def test_what_can_not_be_decoded_is_refused(uri):
    with pytest.raises(DataUriError):
        data_uri.decode(uri, 10**7)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_limit_is_exact(size):
    uri = data_uri.encode(bytes(size), "image/png")

    if size > 4:
        with pytest.raises(TooLargeError):
            data_uri.decode(uri, 4)
    else:
        assert len(data_uri.decode(uri, 4)) == size
