"""Which form is faster is asked once per machine; then nothing but another machine changes the answer."""

import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pipelines.model.kernels import choices
from pipelines.model.kernels.choices import Choices

ROOT = Path(__file__).parents[2]
ADA, BOB = "a processor, 2 threads", "another processor, 2 threads"


def quick() -> None:
    """The form that wins, while nobody changes what is timed."""


def slow() -> None:
    compute(0.002)


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


FORMS = {"packed": lambda: slow, "plain": lambda: quick}
SWAPPED = {"packed": lambda: quick, "plain": lambda: slow}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kernels.json"


def ask(path, forms=FORMS, *, machine=ADA, question="product", **more):
    return Choices(path, machine=machine, **more).choose(question, forms, rule="packed")


def test_the_faster_form_is_taken(path):
    assert (ask(path, FORMS, question="a"), ask(path, SWAPPED, question="b")) == ("plain", "packed")


def test_a_restart_changes_no_answer_though_timing_would(path):
    before = ask(path, FORMS)

    assert ask(path, SWAPPED) == before == "plain"


def test_a_process_changes_no_answer_though_timing_would(path):
    once = Choices(path, machine=ADA)

    answers = [once.choose("product", forms, rule="packed") for forms in (FORMS, SWAPPED)]

    assert answers == ["plain", "plain"]


def test_another_machine_asks_anew_and_keeps_what_others_answered(path):
    answers = [ask(path, FORMS, machine=ADA), ask(path, SWAPPED, machine=BOB), ask(path, SWAPPED, machine=ADA)]

    assert answers == ["plain", "packed", "plain"]
    assert json.loads(path.read_text()) == {ADA: {"product": "plain"}, BOB: {"product": "packed"}}


@pytest.mark.parametrize("change", ["threads", "torch", "instructions", "processor"])
def test_what_an_answer_depends_on(change, monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Some Xeon\n")
    before = choices.this_machine(cpuinfo)
    match change:
        case "threads":
            monkeypatch.setattr(choices.torch, "get_num_threads", lambda: 77)
        case "torch":
            monkeypatch.setattr(choices.torch, "__version__", "99.1")
        case "instructions":
            monkeypatch.setattr(choices.instructions, "names", lambda: "another's")
        case "processor":
            cpuinfo.write_text("processor : 0\nmodel name\t: Some EPYC\n")

    assert "Some Xeon" in before
    assert choices.this_machine(cpuinfo) != before


def test_a_form_that_is_no_more_is_asked_for_anew(path):
    ask(path, {"packed": lambda: slow, "gone": lambda: quick})

    assert ask(path, FORMS) == "plain"


@pytest.mark.parametrize(("factor", "answer"), [(1.2, "plain"), (1.3, "packed")])
def test_a_handicapped_form_must_be_faster_by_that_factor(factor, answer, path, monkeypatch):
    monkeypatch.setattr(choices, "fastest_run", lambda run: {quick: 1.0, slow: 1.25}[run])
    monkeypatch.setattr(choices, "seconds_waited", lambda: 0.0)

    assert Choices(path).choose("product", FORMS, rule="packed", handicaps={"plain": factor}) == answer


def test_without_a_file_the_rule_answers_and_nothing_is_timed():
    def never():
        raise AssertionError("timed")

    assert Choices().choose("product", {"packed": never, "plain": never}, rule="packed") == "packed"


def test_a_question_asked_while_another_is_timed_is_kept_too(path):
    asking = Choices(path, machine=ADA)

    def outer():
        asking.choose("inner", FORMS, rule="packed")

    asking.choose("outer", {"packed": lambda: outer, "plain": lambda: slow}, rule="packed")

    assert json.loads(path.read_text())[ADA].keys() == {"inner", "outer"}


def test_engines_that_start_together_agree(path):
    """Two processes of which each finds another form faster, and which ask at the same moment."""
    program = """if True:
        import sys, time
        from pathlib import Path
        from pipelines.model.kernels.choices import Choices
        forms = {name: lambda name=name: lambda: time.sleep(0.02 * (name != sys.argv[2])) for name in ("a", "b")}
        asking = Choices(Path(sys.argv[1]), machine="one")
        print("ready", flush=True)
        sys.stdin.readline()
        print(asking.choose("product", forms, rule="a"))
    """
    engines = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), fast], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for fast in ("a", "b")
    ]
    for engine in engines:
        assert engine.stdout.readline() == "ready\n"
    for engine in engines:
        engine.stdin.write("go\n")
        engine.stdin.flush()

    answers = [engine.communicate(timeout=30)[0] for engine in engines]

    assert answers[0] == answers[1] != ""
    assert json.loads(path.read_text()) == {"one": {"product": answers[0].strip()}}


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"a processor, 2 threads": 5}', b"\xff\xfe"])
def test_a_damaged_file_is_said_once_and_replaced(damaged, path, caplog):
    path.write_bytes(damaged)
    asking = Choices(path, machine=ADA)

    answers = [asking.choose(question, FORMS, rule="packed") for question in ("a", "b")]

    assert answers == ["plain", "plain"]
    assert json.loads(path.read_text()) == {ADA: {"a": "plain", "b": "plain"}}
    assert sum("can't be read" in record.getMessage() for record in warnings(caplog)) == 1


@pytest.fixture(params=["no such folder", "full disk", "another holds the lock"])
def unwritable(request, path, monkeypatch):
    """Where no answer can be kept."""
    match request.param:
        case "no such folder":
            path.write_text("")
            yield path / "kernels.json"
        case "full disk":
            monkeypatch.setattr(choices, "_write", full_disk)
            yield path
        case "another holds the lock":
            with FileLock(path.with_suffix(".lock")):
                yield path


def full_disk(path, answers):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_kept_is_answered_all_the_same_and_said_once(unwritable, caplog):
    asking = Choices(unwritable, machine=ADA, wait=0.0)

    answers = [asking.choose(question, FORMS, rule="packed") for question in ("a", "b")]

    assert answers == ["plain", "plain"]
    assert sum("can't be written" in record.getMessage() for record in warnings(caplog)) == 1


def test_what_could_not_be_kept_is_kept_when_there_is_room_again(path, monkeypatch):
    asking = Choices(path, machine=ADA)
    with monkeypatch.context() as full:
        full.setattr(choices, "_write", full_disk)
        asking.choose("a", FORMS, rule="packed")

    asking.choose("b", FORMS, rule="packed")

    assert json.loads(path.read_text()) == {ADA: {"a": "plain", "b": "plain"}}


def test_a_full_disk_leaves_what_was_kept_and_no_half_file(path):
    ask(path)
    path.with_suffix(".partial").symlink_to("/dev/full")

    ask(path, question="another")

    assert json.loads(path.read_text()) == {ADA: {"product": "plain"}}
    assert not path.with_suffix(".partial").is_symlink()


def test_who_only_looks_writes_nothing(path):
    assert ask(path, FORMS, keep=False) == "plain"
    assert list(path.parent.iterdir()) == []


def test_who_only_looks_sees_what_was_kept(path):
    ask(path, FORMS)

    assert ask(path, SWAPPED, keep=False) == "plain"


def warnings(caplog):
    return [record for record in caplog.records if record.levelno == logging.WARNING]


# Prints the share of half a second of computing that this process waited for its processor.
WAITS = """
import os, sys, time
from pipelines.model.kernels import choices
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
sys.stdin.readline()
before, end = choices.seconds_waited(), time.monotonic() + 0.5
while time.monotonic() < end:
    pass
print((choices.seconds_waited() - before) / 0.5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell how long a thread waits")
def test_time_without_a_processor_is_seen():
    core = min(os.sched_getaffinity(0))
    busy = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"

    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", WAITS, str(core)], stdin=-1, stdout=-1, text=True, cwd=ROOT)
        )
        assert asked.stdout.readline() == "ready\n"
        other = stack.enter_context(subprocess.Popen([sys.executable, "-c", busy, str(core)]))
        stack.callback(other.kill)
        told, _ = asked.communicate("go\n")

    assert float(told) > 0.2


@pytest.mark.parametrize("waits", [0.0, 1.0])
def test_on_a_busy_machine_forms_are_compared_by_one_thread(waits, path, monkeypatch, caplog):
    """One form computes for longer, the other one only sleeps: that is, it was interrupted."""
    seen, asked = set(), iter([0.0, waits])
    monkeypatch.setattr(choices, "seconds_waited", lambda: next(asked))

    def computes():
        seen.add(torch.get_num_threads())
        compute(0.004)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        forms = {"packed": lambda: computes, "plain": lambda: lambda: time.sleep(0.1)}
        with caplog.at_level("DEBUG"):
            chosen = Choices(path, machine=ADA).choose("product", forms, rule="packed")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

    assert chosen == ("plain" if waits else "packed")
    assert seen == ({1, 2} if waits else {2})
    assert ("other programs" in caplog.text) == bool(waits)
