"""The engine process as its server sees it: over a socket pair, without the pool."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.frames import parse_from_engine, read_frame, write_frame
from pipelines.messages import (
    EXIT_CAPTURE_FAILED,
    EXIT_NO_ROOM,
    EXIT_WEIGHTS_FOUND,
    Beat,
    Cancel,
    Cancelled,
    Configure,
    Drain,
    EngineConfig,
    Failed,
    Generated,
    GenerationParams,
    Loading,
    Ready,
    SetupFailed,
    Started,
    Work,
)
from pipelines.weights import demo
from pipelines.worker import EXIT_DEVICE_LOST, EXIT_SETUP_FAILED
from tests.support.server_process import clean_env

WAIT_S = 30.0
COMMAND = (sys.executable, "-P", "-m", "pipelines.worker")
LOOKING = (sys.executable, "-P", "-c", "from pipelines import worker; worker.main(look_s=0.05)")
FAULTY = (sys.executable, "-P", str(Path(__file__).parent / "support" / "faulty_engine.py"))


class EngineUnderTest:
    """An engine process and our end of its line."""

    def __init__(self, model="instant", command=COMMAND, device="cpu"):
        self.line, theirs = socket.socketpair()
        self.line.settimeout(WAIT_S)
        with theirs:
            self.process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], env=clean_env()
            )
        self.say(Configure(EngineConfig(model=model, data_dir="", device=device)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.close()
        self.process.kill()
        self.process.wait(WAIT_S)

    def say(self, *messages):
        self.line.sendall(b"".join(map(write_frame, messages)))

    def ask(self, request_id, **params):
        self.say(Work(id=request_id, params=GenerationParams(**{"prompt": "", "seed": 1} | params), image=b"picture"))

    def hear(self):
        """The next message, None after the last."""
        body = read_frame(lambda size: self.line.recv(size, socket.MSG_WAITALL))
        return parse_from_engine(body) if body else None

    def until(self, *kinds):
        while not isinstance(message := self.hear(), kinds):
            assert message is not None, f"the engine ended before it sent {kinds}"
        return message

    def exit_status(self):
        return self.process.wait(WAIT_S)


@pytest.fixture
def engine():
    with EngineUnderTest() as engine:
        engine.until(Ready)
        yield engine


def test_an_engine_says_what_it_is_when_it_is_ready():
    with EngineUnderTest() as engine:
        first = engine.until(Ready)

    assert (first.model, first.device) == ("instant", "cpu")
    assert first.capacity > EngineConfig(model="", data_dir="").max_batch
    assert "test picture" in first.notice


def test_it_does_what_it_is_asked(engine):
    engine.ask("a", num_images=2)

    answer = engine.until(Generated)
    assert (answer.id, len(answer.pictures)) == ("a", 2)
    assert answer.pictures[0].data.startswith(b"\xff\xd8")


def test_it_beats_while_it_is_idle(engine):
    beats = [engine.until(Beat) for _ in range(2)]

    assert [beat.stage for beat in beats] == ["idle"] * 2


def test_it_ends_with_the_line_whatever_it_is_doing():
    with EngineUnderTest(command=FAULTY) as engine:
        engine.until(Ready)
        engine.ask("a", prompt="hang")
        engine.until(Started)
        engine.line.close()

        assert engine.exit_status() == 0


def test_it_ends_with_the_line_while_it_still_loads():
    with EngineUnderTest(model="demo") as engine:
        engine.until(Loading)
        engine.line.close()

        assert engine.exit_status() == 0


def test_drained_it_finishes_what_it_has_and_says_all_of_it(engine):
    for number in range(10):
        engine.ask(str(number), num_images=8)
    engine.say(Drain())

    answers = [engine.until(Generated).id for _ in range(10)]
    assert sorted(answers) == sorted(map(str, range(10)))
    assert engine.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_meant_for_the_server_do_not_end_it(engine, number):
    engine.process.send_signal(number)
    engine.ask("a")

    assert isinstance(engine.until(Generated), Generated)


def test_it_picks_up_a_message_that_it_was_stopped_in_the_middle_of(engine):
    whole = write_frame(Work(id="a", params=GenerationParams(prompt="", seed=1), image=bytes(100_000)))
    engine.line.sendall(whole[:50_000])
    engine.process.send_signal(signal.SIGSTOP)
    os.waitpid(engine.process.pid, os.WUNTRACED)
    engine.process.send_signal(signal.SIGCONT)
    engine.line.sendall(whole[50_000:])

    assert engine.until(Generated).id == "a"


def test_a_model_that_can_not_be_had_is_said_with_the_hint():
    with EngineUnderTest(model="instant:soon") as engine:
        said = engine.until(SetupFailed)

        assert ("soon" in said.reason, "instant:5" in said.hint) == (True, True)
        assert engine.exit_status() == EXIT_SETUP_FAILED


def test_missing_weights_are_looked_for_until_they_are_there_whole(tmp_path):
    weights = "unet/diffusion_pytorch_model.safetensors"
    with EngineUnderTest(model=str(tmp_path), command=LOOKING) as engine:
        first = engine.until(SetupFailed)
        shutil.copytree(demo.folder(), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("unet"))
        shutil.copytree(demo.folder() / "unet", tmp_path / "unet", ignore=shutil.ignore_patterns("*.safetensors"))
        without_weights = said_at_last(engine, "no weights in unet")
        whole = (demo.folder() / weights).read_bytes()
        (tmp_path / weights).write_bytes(whole[:-1])
        cut_off = said_at_last(engine, "it is cut off")
        (tmp_path / "draft").write_bytes(whole)
        (tmp_path / "draft").rename(tmp_path / weights)

        assert engine.exit_status() == EXIT_WEIGHTS_FOUND
    assert "lacks the scheduler's config" in first.reason
    assert [said.waits for said in (first, without_weights, cut_off)] == [True] * 3


def said_at_last(engine, reason):
    """The first message that gives this reason: files come one by one."""
    while reason not in (said := engine.until(SetupFailed)).reason:
        pass
    return said


def test_a_device_without_room_is_no_fault_of_the_model():
    with EngineUnderTest(command=FAULTY, device="full") as engine:
        said = list(iter(engine.hear, None))

        assert not any(isinstance(message, SetupFailed) for message in said)
        assert engine.exit_status() == EXIT_NO_ROOM


def test_a_device_that_can_not_capture_graphs_has_an_exit_status_of_its_own():
    with EngineUnderTest(command=FAULTY, device="uncapturable") as engine:
        assert engine.exit_status() == EXIT_CAPTURE_FAILED


def test_so_has_a_capture_that_fails_between_requests():
    with EngineUnderTest(command=FAULTY) as engine:
        engine.until(Ready)
        engine.ask("a", prompt="recapture")

        assert engine.exit_status() == EXIT_CAPTURE_FAILED


def test_a_lost_device_ends_the_process():
    with EngineUnderTest(command=FAULTY) as engine:
        engine.until(Ready)
        engine.ask("a", prompt="lost")

        assert engine.exit_status() == EXIT_DEVICE_LOST


def test_cancelled_in_its_steps_a_request_ends_there():
    with EngineUnderTest(command=FAULTY) as engine:
        engine.until(Ready)
        engine.ask("a", prompt="slow", num_inference_steps=100_000)
        engine.until(Started)
        engine.say(Cancel("a"))

        assert engine.until(Cancelled, Generated) == Cancelled("a")


def test_with_pictures_decoded_a_bad_one_is_refused():
    with EngineUnderTest(model="instant+jpeg") as engine:
        engine.until(Ready)
        engine.ask("a")

        assert engine.until(Failed, Generated).kind == "unsupported_image_format"


@pytest.mark.parametrize("module", ["torch", "diffusers", "transformers"])
def test_the_engine_without_a_model_imports_no_torch(module):
    code = f"import sys, pipelines.worker, pipelines.engine.instant\nsys.exit({module!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
