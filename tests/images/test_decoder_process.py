"""Decoder processes: what they decode, what ends them, and what becomes of the picture then."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipelines.images import codec, decoder_process
from pipelines.images.codec import ImageFault, LargePicture
from pipelines.images.decoder_process import (
    COMMAND,
    DecoderError,
    DecoderLimits,
    Decoders,
    Unwanted,
    _Process,
    decoder_count,
)
from tests.images.test_codec import LIMITS, ROOT, fault, photo, saved
from tests.support.images import malicious_images
from tests.support.server_process import is_running, until

WAIT_S = 30.0

# A decoder that hangs or dies at its first picture, or in the middle of the answer, when it has made the file `begun`.
STUB = """
import os, signal, struct, sys, threading
from multiprocessing.connection import Connection
from pathlib import Path

begun, act = Path(sys.argv[1]), sys.argv[2]
connection = Connection(int(sys.argv[-1]))
for _ in range(3):  # the task, how much memory, and a picture
    connection.recv_bytes()
begun.touch()
if act == "hang":
    threading.Event().wait()
if act == "die answering":
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
if act == "talk nonsense":
    connection.send_bytes(b"nonsense")
os.kill(os.getpid(), signal.SIGKILL)
"""

# A decoder as it ships, but for a codec that never ends.
ENDLESS = """
import itertools
from pipelines.images import codec, decoder

codec.decode = lambda *_: max(itertools.count())
decoder.main()
"""

# A decoder as it ships, but for a codec that fails at one picture in a way that nobody thought of.
FAILING = """
from pipelines.images import codec, decoder

decode = codec.decode

def decode_or_fail(data, *rest):
    assert data != b"secret", data
    return decode(data, *rest)

codec.decode = decode_or_fail
decoder.main()
"""

LARGE = {
    "jpeg": lambda: saved(photo(1600, 1200), "JPEG"),
    "jpeg progressive": lambda: saved(photo(1600, 1200), "JPEG", progressive=True),
    "png": lambda: saved(photo(1600, 1200), "PNG", compress_level=1),
    "webp": lambda: saved(photo(1600, 1200), "WEBP"),
}


def decoders_of(command=COMMAND, **limits):
    return Decoders(LIMITS, command=command, limits=DecoderLimits(**limits))


def stub(folder: Path, act: str) -> list[str]:
    return [sys.executable, "-c", STUB, str(folder / "begun"), act]


def running() -> set[int]:
    """Return the process ids of this process's decoders."""
    return {child.pid for child in psutil.Process().children() if is_decoder(child)}


def is_decoder(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between two looks, or be a zombie
        return "--fd" in process.cmdline()
    return False


def wanted() -> bool:
    return True


@pytest.fixture
def decoders():
    """Decoder processes as they ship."""
    decoders = decoders_of()
    yield decoders
    decoders.close()


@pytest.mark.parametrize("name", LARGE)
def test_a_picture_comes_out_as_in_this_process(decoders, name):
    data = LARGE[name]()

    pixels = decoders.decode("a", data, wanted)

    assert np.array_equal(pixels, codec.decode(data, LIMITS))
    assert (pixels.flags.c_contiguous, pixels.flags.writeable) == (True, True)


def test_a_fault_is_the_same_as_in_this_process(decoders):
    data = LARGE["png"]()[:-5000]

    with pytest.raises(ImageFault) as caught:
        decoders.decode("a", data, wanted)

    assert (caught.value.kind, caught.value.message) == (fault(data).kind, fault(data).message)


def test_a_picture_that_takes_much_memory_is_decoded_only_alone(decoders):
    data = saved(Image.new("RGB", (4000, 4400)), "PNG")

    with pytest.raises(LargePicture) as caught:
        decoders.decode("a", data, wanted, alone=False)

    assert caught.value.alone
    assert decoders.decode("a", data, wanted, alone=True).shape == (1024, 928, 3)


def test_a_process_is_kept_for_the_next_picture(decoders):
    pids = set()
    for _ in range(2):
        decoders.decode("a", LARGE["jpeg"](), wanted)
        pids.update(running())

    assert len(pids) == 1


def test_a_picture_whose_process_was_killed_is_decoded_once_more(decoders):
    decoders.decode("a", LARGE["jpeg"](), wanted)
    [pid] = running()
    os.kill(pid, signal.SIGKILL)

    pixels = decoders.decode("a", LARGE["jpeg"](), wanted)

    assert pixels.shape == (768, 1024, 3)
    assert pid not in running()


def test_processes_that_were_killed_between_pictures_are_replaced():
    decoders = decoders_of(tries=1)
    decoders.decode("a", LARGE["jpeg"](), wanted)
    [pid] = running()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid))

    decoders.decode("a", LARGE["jpeg"](), wanted)

    replaced = running() - {pid}
    decoders.close()
    assert len(replaced) == 1


@pytest.mark.parametrize("act", ["die", "die answering", "talk nonsense"])
def test_a_picture_that_ends_every_process_fails_alone(tmp_path, act):
    decoders = decoders_of(stub(tmp_path, act), tries=2)

    with pytest.raises(DecoderError, match="2 decoder processes ended"):
        decoders.decode("a", b"picture", wanted)

    assert running() == set()


@pytest.mark.parametrize("end", [lambda decoders, _: decoders.stop("a"), lambda _, process: process._end_late()])
def test_a_process_that_is_killed_as_it_answers_is_not_kept(monkeypatch, decoders, end):
    decode = _Process.decode

    def decode_and_end(process, *arguments):
        answer = decode(process, *arguments)
        end(decoders, process)
        return answer

    monkeypatch.setattr(_Process, "decode", decode_and_end)

    decoders.decode("a", LARGE["jpeg"](), wanted)

    assert running() == set()


def test_an_exception_in_the_middle_of_a_picture_ends_its_process(monkeypatch, tmp_path):
    decoders = decoders_of(stub(tmp_path, "hang"))
    monkeypatch.setattr(_Process, "decode", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        decoders.decode("a", b"picture", wanted)

    assert running() == set()


def test_a_process_that_hangs_is_killed(tmp_path):
    decoders = decoders_of(stub(tmp_path, "hang"), wall_s=0.2)

    with pytest.raises(DecoderError, match=r"not decoded within 0\.2 s"):
        decoders.decode("a", b"picture", wanted)


@pytest.mark.parametrize(("processors", "count"), [(1, 1), (2, 1), (6, 3), (64, 4)])
def test_half_of_the_processors_decode_and_never_more_than_four(processors, count):
    assert decoder_count(processors) == count


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind no process to processors")
def test_only_processors_that_this_process_may_use_count():
    code = (
        "import os; from pipelines.images.decoder_process import processors;"
        "os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); print(processors())"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "1\n"


def test_a_picture_that_takes_too_much_computing_is_refused():
    decoders = decoders_of([sys.executable, "-c", ENDLESS], cpu_s=0.0)  # what is left of the process's first second

    with pytest.raises(ImageFault, match="takes more than 0 s of computing") as caught:
        decoders.decode("a", b"picture", wanted)

    assert caught.value.kind == "image_load_error"


def test_a_fault_that_nobody_thought_of_is_the_picture_s_and_keeps_the_process(capfd):
    decoders = decoders_of([sys.executable, "-c", FAILING])
    with pytest.raises(ImageFault, match="its data is damaged") as caught:
        decoders.decode("a", b"secret", wanted)
    before = running()

    decoders.decode("b", LARGE["jpeg"](), wanted)

    after, said = running(), capfd.readouterr().err
    decoders.close()
    assert (caught.value.kind, after) == ("image_load_error", before)
    assert ("AssertionError" in said, "b'secret'" in said) == (True, False)


def test_a_picture_that_is_not_wanted_any_more_frees_its_decoder(tmp_path):
    decoders, unwanted, ends = decoders_of(stub(tmp_path, "hang")), threading.Event(), []

    def decode():
        try:
            decoders.decode("a", b"picture", lambda: not unwanted.is_set())
        except Unwanted as error:
            ends.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    while not (tmp_path / "begun").exists():
        thread.join(0.01)
    unwanted.set()
    decoders.stop("a")
    thread.join(WAIT_S)

    assert len(ends) == 1


def test_a_picture_that_was_not_wanted_before_it_began_starts_no_process(tmp_path):
    decoders = decoders_of(stub(tmp_path, "hang"))

    with pytest.raises(Unwanted):
        decoders.decode("a", b"picture", lambda: False)

    assert running() == set()


def test_others_do_not_wait_while_a_process_is_started(monkeypatch, decoders):
    start, waited = subprocess.Popen, []

    def start_slowly(*arguments, **options):
        other = threading.Thread(target=decoders.stop, args=["b"])
        other.start()
        other.join(1.0)
        waited.append(other.is_alive())
        return start(*arguments, **options)

    monkeypatch.setattr(decoder_process.subprocess, "Popen", start_slowly)

    decoders.decode("a", LARGE["jpeg"](), wanted)

    assert waited == [False]


def test_a_picture_that_is_stopped_while_its_process_is_started_frees_it(monkeypatch, tmp_path):
    decoders, start, unwanted = decoders_of(stub(tmp_path, "hang")), subprocess.Popen, []

    def start_and_stop(*arguments, **options):
        unwanted.append("a")
        decoders.stop("a")
        return start(*arguments, **options)

    monkeypatch.setattr(decoder_process.subprocess, "Popen", start_and_stop)

    with pytest.raises(Unwanted):
        decoders.decode("a", b"picture", lambda: not unwanted)

    assert not (tmp_path / "begun").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such score")
def test_a_decoder_is_what_the_kernel_ends_first_without_memory(decoders):
    decoders.decode("a", LARGE["jpeg"](), wanted)

    [pid] = running()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no address space")
def test_a_decoder_gets_no_memory_beyond_its_budget():
    code = (
        "from pipelines.images import codec, decoder; from pipelines.messages import EngineConfig;"
        "decoder._bound_memory(EngineConfig(model='', data_dir=''));"
        "bytearray(codec.MEMORY_BUDGET); print('budget');"
        "bytearray(8 * codec.MEMORY_BUDGET)"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr.splitlines()[-1]) == ("budget\n", "MemoryError")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's peak")
@pytest.mark.parametrize("progressive", [False, True])
def test_a_48_megapixel_phone_jpeg_takes_less_than_300_mb_in_all_processes(decoders, progressive):
    data = saved(photo(200, 150).resize((8000, 6000)), "JPEG", quality=60, progressive=progressive)
    here = [len(data), 2 * 3 * 1024 * 768]  # beside the caller's: nothing but the answer, as message and as pixels

    decoders.decode("a", data, wanted)

    [pid] = running()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    assert (peak + sum(here)) / 1e6 < 300


# --- which pictures are large ------------------------------------------------------------------------------------


def judged(data: bytes) -> bool | None:
    """Return whether a picture is to be decoded alone; None if it is quick."""
    try:
        codec.decode_quick(data, LIMITS)
    except LargePicture as large:
        return large.alone
    return None


def many_chunks() -> bytes:
    """Return a tiny PNG that takes long to walk."""
    return malicious_images.png(64, 64, extra=malicious_images.chunk(b"tEXt", b"") * 10_000)


@pytest.mark.parametrize(
    ("make", "alone"),
    [
        (lambda: saved(photo(1024, 1024), "JPEG"), None),
        (lambda: saved(photo(1024, 1024), "JPEG", progressive=True), None),
        (lambda: saved(photo(1024, 1024), "PNG", compress_level=1), None),
        (lambda: saved(photo(1024, 1024), "WEBP"), None),
        (lambda: saved(photo(1600, 1200), "JPEG"), False),
        (lambda: saved(Image.new("L", (1300, 1000)), "PNG"), False),
        (lambda: saved(Image.new("RGB", (4000, 3300)), "PNG"), True),
        (lambda: saved(Image.new("RGB", (2000, 1700)), "WEBP"), True),
        (lambda: malicious_images.jpeg_of_scans(1000, 1000, 40), False),
        (many_chunks, True),
    ],
    ids=[
        "jpeg of a model's size", "progressive", "png", "webp", "jpeg of two megapixels", "grey png", "png of thirteen",
        "webp of three", "jpeg with many scans", "png with many chunks",
    ],
)  # fmt: skip
def test_what_takes_long_is_told_by_the_header(make, alone):
    assert judged(make()) is alone


def test_a_file_that_is_too_large_is_refused_without_a_decoder():
    with pytest.raises(ImageFault, match="larger than"):
        codec.decode_quick(bytes(LIMITS.max_image_bytes + 1), LIMITS)
