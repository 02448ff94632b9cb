"""Loading a model onto its device."""

import ctypes
import dataclasses
import json
import logging
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from pipelines.device import advice, cuda_support, devices, dtypes, loader, memory
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.loop import Engine
from pipelines.errors import CaptureFailedError, CheckpointError, NoRoomError
from pipelines.hub import client
from pipelines.messages import EngineConfig
from pipelines.model.functions import make_functions
from pipelines.model.kernels import choices, instructions
from pipelines.model.kernels.cuda import fused_attention
from pipelines.weights import checkpoint
from tests.device.test_cuda_graphs import FakeDevice, capture
from tests.device.test_torch_backend import out_of_cpu_memory
from tests.support import checkpoint_layouts, tiny_models

# Torch functions which are called while weights are read, while networks are built, and at the first run.
PLACES = {
    "weights": "torch.nn.Module.load_state_dict",
    "networks": "torch.nn.functional.pad",
    "first run": "torch.nn.functional.scaled_dot_product_attention",
}


def start(config):
    """Load and warm up, as an engine process does."""
    loaded = loader.load(config, lambda fraction, what: None)
    Engine(config, loaded.model, loaded.codec, lambda message: None).warm_up(loaded.warm_up_side)


@pytest.fixture(autouse=True)
def own_allocator(monkeypatch):
    """The allocator's settings would outlast a test."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)


@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), out_of_cpu_memory()], ids=["torch's", "an allocator's"])
def test_memory_that_runs_out_at_the_start_is_said_alike_wherever_it_does(where, error, monkeypatch, tmp_path):
    def runs_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(where, runs_out)
    config = EngineConfig(model="demo", data_dir=str(tmp_path), device="cpu")

    with pytest.raises(NoRoomError) as said:
        start(config)

    assert "cpu" in said.value.reason
    assert "--vae tiny" in said.value.hint


def test_a_capture_that_has_no_memory_is_one_that_failed(monkeypatch, tmp_path):
    def fails(*_):
        raise CaptureFailedError("unet", RuntimeError("CUDA error: out of memory"))

    monkeypatch.setattr(loader, "_load", fails)

    with pytest.raises(CaptureFailedError):
        loader.load(EngineConfig(model="demo", data_dir=str(tmp_path)), fails)


def ask():
    """What this process answers to a question; the rule says "a", and timing would say "b"."""
    return choices.current().choose(
        "product", {"a": lambda: lambda: time.sleep(0.001), "b": lambda: lambda: None}, rule="a"
    )


@pytest.mark.parametrize(("max_batch", "answer", "files"), [(8, "b", ["kernels.json", "kernels.lock"]), (1, "a", [])])
def test_kernels_are_chosen_by_time_unless_one_image_goes_at_a_time(max_batch, answer, files, tmp_path):
    devices.prepare(EngineConfig(model="sd15", data_dir=str(tmp_path), device="cpu", max_batch=max_batch))

    assert ask() == answer
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_without_a_data_folder_nothing_is_timed_or_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    devices.prepare(EngineConfig(model="sd15", data_dir="", device="cpu"))

    assert ask() == "a"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("max_batch", "answer", "cudnn"), [(8, "b", [True]), (1, "a", [False])])
def test_kernels_of_a_card_are_kept_by_its_name_torch_and_cudnn(max_batch, answer, cudnn, tmp_path, monkeypatch):
    switched = []
    monkeypatch.setattr(devices, "first", lambda config: torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card of {device}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    devices.prepare(EngineConfig(model="sd15", data_dir=str(tmp_path), max_batch=max_batch))

    assert ask() == answer
    assert switched == cudnn
    kept = tmp_path / choices.FILE
    machines = list(json.loads(kept.read_text())) if kept.exists() else []
    assert machines == ([f"the card of cuda:1, torch {torch.__version__}, cuDNN 92000"] if max_batch > 1 else [])


def test_answers_are_those_of_the_number_of_threads_that_is_set(tmp_path):
    before = torch.get_num_threads()
    devices.prepare(EngineConfig(model="sd15", data_dir=str(tmp_path), device="cpu", threads=before + 2))
    ask()
    torch.set_num_threads(before)

    assert f" {before + 2} threads" in (tmp_path / "kernels.json").read_text()


@pytest.mark.parametrize(("asked", "dtype"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_what_is_loaded_on_a_processor_is_told(asked, dtype, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(instructions, "has_bfloat16", lambda: False)
    monkeypatch.setattr(advice, "has_heavy_vae", lambda model: asked == "auto")
    caplog.set_level(logging.INFO)
    config = EngineConfig(model="demo", data_dir=str(tmp_path), device="cpu", dtype=asked)

    loaded = loader.load(config, lambda fraction, what: None)

    assert (loaded.dtype, loaded.instructions) == (dtype, instructions.names())
    assert (advice.TINY_VAE in caplog.messages) == loaded.heavy_vae == (asked == "auto")
    assert any("emulated" in message for message in caplog.messages) == (asked == "bfloat16")


@pytest.fixture
def unused(monkeypatch):
    """A machine whose card torch does not see."""
    there = cuda_support.System(cards=("NVIDIA GeForce RTX 3060",))
    monkeypatch.setattr(cuda_support, "build", lambda: cuda_support.Build(version="2.13.0+cpu"))
    monkeypatch.setattr(cuda_support.fault, "__defaults__", (lambda: there,))
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", "/nowhere")


def nothing_is_read(*_):
    pytest.fail("weights are looked for")


@pytest.mark.parametrize(
    "model", ["sd15", *(pytest.param(each, marks=pytest.mark.long) for each in ("auto", "folder"))]
)
def test_real_weights_do_not_run_on_a_processor_because_a_card_is_out_of_order(model, unused, tmp_path, monkeypatch):
    checkpoint_layouts.write_folder(tmp_path / "model")
    if model == "auto":
        monkeypatch.setattr(checkpoint, "on_disk", lambda config, half: None)
    name = str(tmp_path / "model") if model == "folder" else model
    monkeypatch.setattr(checkpoint, "load", nothing_is_read)

    with pytest.raises(CheckpointError) as error:
        loader.load(EngineConfig(model=name, data_dir=str(tmp_path)), nothing_is_read)

    assert error.value.reason.startswith("NVIDIA GeForce RTX 3060 can't be used")
    assert error.value.hint.endswith("--device cpu.")


@pytest.mark.parametrize(
    ("model", "device", "named"),
    [
        ("demo", "cpu", False),
        pytest.param("auto", "auto", True, marks=pytest.mark.long),
        pytest.param("demo", "auto", True, marks=pytest.mark.long),
    ],
)
def test_the_demo_model_serves_all_the_same_and_names_the_card(model, device, named, unused, tmp_path):
    loaded = loader.load(EngineConfig(model=model, data_dir=str(tmp_path), device=device), lambda fraction, what: None)

    assert loaded.name == "demo"
    assert "DEMO MODEL" in loaded.notice
    assert ("NVIDIA GeForce RTX 3060 can't be used" in loaded.notice) is named


@pytest.fixture
def first_calls():
    """A tiny model; and by function and shape, whether cuDNN's kernels were timed at the first call."""
    tuned = {}

    def noting(name, run):
        def call(*inputs):
            tuned.setdefault((name, *inputs[0].shape), torch.backends.cudnn.benchmark)
            return run(*inputs)

        return call

    checkpoint = tiny_models.make(safety_checker=tiny_models.safety_checker())
    plain = make_functions(checkpoint)
    noted = {
        name: noting(name, getattr(plain, name)) for name in ("embed", "unet", "vae_encode", "vae_decode", "flags")
    }
    return TorchBackend(checkpoint, dataclasses.replace(plain, **noted)), tuned


@pytest.mark.parametrize("max_batch", [1, 4])
def test_kernels_of_shapes_that_are_captured_are_timed_at_their_first_call(max_batch, first_calls, monkeypatch):
    model, tuned = first_calls

    def load(config, progress):
        loader.profile_memory(model, 64)
        capture(model, FakeDevice(), config.max_batch)

    monkeypatch.setattr(loader, "_load", load)
    loader.load(EngineConfig(model="sd15", data_dir="", max_batch=max_batch), lambda fraction, what: None)

    assert {("unet", max_batch, 4, 8, 8), ("flags", 1, 64, 64, 3)} <= tuned.keys()
    assert set(tuned.values()) == {max_batch > 1}
    assert not torch.backends.cudnn.benchmark


def test_attention_is_chosen_for_all_sizes_and_rows_of_a_step(monkeypatch):
    asked = []
    monkeypatch.setattr(fused_attention, "choose", lambda *given: asked.extend(map(list, given)))
    model = TorchBackend(tiny_models.make())

    loader.choose_attention(model, 64, [2, 1])

    given, rows = asked
    assert rows == [2, 1]
    assert {(query.shape[2] == key.shape[2], len(query)) for query, key, _ in given} == {(True, 1), (False, 1)}


def test_attention_is_chosen_before_memory_is_measured_and_anything_captured(monkeypatch, tmp_path):
    done = []
    model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16, name="a", notice="")
    backend = SimpleNamespace(model=model, overlaps=True, memory_budget=None)
    monkeypatch.setattr(devices, "prepare", lambda config: None)
    monkeypatch.setattr(devices, "passed_over", lambda config: None)
    monkeypatch.setattr(dtypes, "pick", lambda config: (model.device, model.dtype))
    monkeypatch.setattr(loader, "place_to_draw", lambda *given, **more: backend)
    monkeypatch.setattr(advice, "wrong_numbers", lambda *given: "")
    monkeypatch.setattr(advice, "has_heavy_vae", lambda model: False)
    monkeypatch.setattr(loader, "captured_model", lambda *given: backend)
    monkeypatch.setattr(loader, "choose_attention", lambda *given: done.append(given[1:]))
    monkeypatch.setattr(loader, "profile_memory", lambda *given: done.append("measure"))
    monkeypatch.setattr(loader, "Captures", lambda *given, **more: done.append("captures") or Mock())
    monkeypatch.setattr(loader, "pin_memory", lambda *given: None)

    loader.load(EngineConfig(model="sd15", data_dir=str(tmp_path), max_batch=4), lambda fraction, what: None)

    assert done == [(512, [4, 3, 2, 1]), "measure", "captures"]


def test_what_stages_take_is_measured_once_all_kernels_are_chosen(first_calls, monkeypatch):
    model, tuned = first_calls
    before = []

    def noting(device, run):
        before.append(set(tuned))
        run()
        return memory.Measured(0, 0)

    monkeypatch.setattr(memory, "measure", noting)

    loader.profile_memory(model, 64)

    assert before == [set(tuned)] * 4


def test_memory_for_pictures_of_each_batch_is_pinned_twice(monkeypatch):
    model, copied = TorchBackend(tiny_models.make()), []
    fetch = model.fetch

    def noting(pixels, *flags):
        copied.append(tuple(pixels.shape))
        return fetch(pixels, *flags)

    monkeypatch.setattr(model, "fetch", noting)

    loader.pin_memory(model, 64, [4, 1])

    assert copied == [(4, 64, 64, 3)] * 2 + [(1, 64, 64, 3)] * 2


def overflowing(dtype):
    """A model whose float16 gives infinities."""
    placed.append(dtype)
    parts = {
        "unet": tiny_models.unet(),
        "vae": tiny_models.overflowing_vae(),
        "text_encoder": tiny_models.text_encoder(),
    }
    return TorchBackend(tiny_models.make(dtype=dtype, **{name: part.to(dtype) for name, part in parts.items()}))


placed = []


def test_a_model_that_draws_no_numbers_in_float16_is_placed_in_float32():
    placed.clear()

    backend = loader.place_to_draw(overflowing, torch.float16, asked=False)

    assert placed == [torch.float16, torch.float32]
    assert backend.model.dtype == torch.float32


def test_a_model_that_draws_no_numbers_in_the_dtype_that_was_asked_for_is_an_error():
    with pytest.raises(CheckpointError, match="cpu computes wrong numbers in float16") as error:
        loader.place_to_draw(overflowing, torch.float16, asked=True)

    assert "--dtype auto or float32" in error.value.hint
