"""Loading a model onto its device."""

import ctypes
import dataclasses
import logging
import time

import pytest
import torch

from pipelines.device import advice, cuda_support, devices, loader, memory
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.loop import Engine
from pipelines.errors import CaptureFailedError, CheckpointError, NoRoomError
from pipelines.hub import client
from pipelines.messages import EngineConfig
from pipelines.model.functions import make_functions
from pipelines.model.kernels import choices, instructions
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


@pytest.mark.parametrize("model", ["sd15", "auto", "folder"])
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
    ("model", "device", "named"), [("auto", "auto", True), ("demo", "auto", True), ("demo", "cpu", False)]
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
