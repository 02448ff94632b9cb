"""What `--dtype auto` means: float16 on accelerators that compute right in it, bfloat16 on processors where faster."""

import contextlib
import json

import pytest
import torch
import torch.nn.functional as F

from pipelines.device import cuda_support, devices, dtypes
from pipelines.errors import CheckpointError, NoRoomError
from pipelines.messages import EngineConfig
from pipelines.model.kernels import choices, instructions
from tests.support import tiny_models

CPU, MPS, CUDA = (torch.device(name) for name in ("cpu", "mps", "cuda"))

# Sets of processors with products of bfloat16.
AMX, ZEN_4 = ("AVX512-BF16", "AMX"), ("AVX512-BF16",)


@pytest.fixture
def processor(monkeypatch):
    """A function that gives this machine a processor: its sets, and the seconds of a product in each format."""
    timed = []

    def become(*sets, float32=1.0, bfloat16=1.0):
        def fastest_run(run):
            timed.append(run.args[0].dtype)
            return {torch.float32: float32, torch.bfloat16: bfloat16}[timed[-1]]

        monkeypatch.setattr(instructions, "_has", {instructions._X86[name] for name in sets}.__contains__)
        monkeypatch.setattr(instructions, "_capabilities", dict)
        monkeypatch.setattr(choices, "fastest_run", fastest_run)
        monkeypatch.setattr(choices, "seconds_waited", lambda: 0.0)
        return timed

    return become


def pick(tmp_path, **settings):
    """What an engine with these settings computes in."""
    config = EngineConfig(**{"model": "sd15", "device": "cpu", "data_dir": str(tmp_path)} | settings)
    devices.ask_machine(config)
    return dtypes.pick(config)[1]


@pytest.mark.parametrize(
    ("seconds", "dtype"), [(0.1, torch.bfloat16), (0.7, torch.bfloat16), (0.8, torch.float32), (2.0, torch.float32)]
)
@pytest.mark.parametrize("sets", [AMX, ZEN_4])
def test_a_processor_computes_in_bfloat16_where_that_is_clearly_faster(sets, seconds, dtype, processor, tmp_path):
    processor(*sets, float32=1.0, bfloat16=seconds)

    assert pick(tmp_path) == dtype


def test_a_processor_without_bfloat16_is_not_timed(processor, tmp_path):
    timed = processor(bfloat16=0.1)

    assert pick(tmp_path) == torch.float32
    assert timed == []


def test_a_restart_changes_no_dtype_though_timing_would(processor, tmp_path):
    timed = processor(*ZEN_4, bfloat16=0.5)
    before, runs = pick(tmp_path), len(timed)
    processor(*ZEN_4, bfloat16=5.0)

    assert pick(tmp_path) == before == torch.bfloat16
    assert len(timed) == runs > 0


@pytest.mark.parametrize(("sets", "dtype"), [(AMX, torch.bfloat16), (ZEN_4, torch.float32), ((), torch.float32)])
def test_one_image_at_a_time_goes_by_the_processor_and_times_nothing(sets, dtype, processor, tmp_path):
    timed = processor(*sets)

    assert pick(tmp_path, max_batch=1) == dtype
    assert (timed, list(tmp_path.iterdir())) == ([], [])


def test_who_only_looks_leaves_no_file(processor, tmp_path):
    processor(*AMX, bfloat16=0.1)
    config = EngineConfig(model="sd15", device="cpu", data_dir=str(tmp_path))

    devices.ask_machine(config, keep=False)

    assert dtypes.pick(config) == (CPU, torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["sd15", "demo"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_what_is_asked_for_counts_everywhere(name, model, processor, tmp_path):
    timed = processor(*AMX, bfloat16=0.1)

    assert pick(tmp_path, dtype=name, model=model) == getattr(torch, name)
    assert timed == []


def test_the_demo_model_stays_in_float32(processor, tmp_path):
    timed = processor(*AMX, bfloat16=0.1)

    assert pick(tmp_path, model="demo") == torch.float32
    assert timed == []


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_bfloat16_is_refused_on_cards_from_before_ampere(capability, refused, monkeypatch):
    cards = (cuda_support.Card("NVIDIA H100", (9, 0), 132), cuda_support.Card("Tesla T4", capability, 40))
    monkeypatch.setattr(cuda_support, "build", lambda: cuda_support.Build(version="", cuda="13.0", cards=cards))
    monkeypatch.setattr(dtypes, "computes", lambda *_: True)

    with pytest.raises(CheckpointError, match="Tesla T4") if refused else contextlib.nullcontext():
        assert dtypes.pick_dtype("bfloat16", torch.device("cuda:1")) == torch.bfloat16


def test_a_dtype_that_is_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="int8"):
        pick(tmp_path, dtype="int8")


@pytest.mark.parametrize(("right", "dtype"), [(True, torch.float16), (False, torch.float32)])
@pytest.mark.parametrize("model", ["sd15", "demo"])
@pytest.mark.parametrize("device", [CUDA, MPS])
def test_accelerators_compute_in_float16_if_they_compute_right(device, model, right, dtype, monkeypatch):
    monkeypatch.setattr(dtypes, "computes", lambda *_: right)
    monkeypatch.setattr(devices, "first", lambda config: device)
    expected = torch.float32 if (device, model) == (MPS, "demo") else dtype

    assert dtypes.pick(EngineConfig(model=model, data_dir="")) == (device, expected)


@pytest.mark.parametrize(("name", "refused"), [("float16", True), ("bfloat16", True), ("float32", False)])
def test_a_dtype_that_is_asked_for_and_computes_wrong_is_an_error(name, refused, monkeypatch):
    monkeypatch.setattr(dtypes, "computes", lambda *_: False)

    with pytest.raises(CheckpointError, match="wrong numbers in") if refused else contextlib.nullcontext():
        assert dtypes.pick_dtype(name, MPS) == torch.float32


def test_a_device_that_computes_right_is_found_so():
    assert dtypes.computes(torch.bfloat16, CPU)


FAULTS = {
    "infinite": lambda run, x, *rest, **options: run(x, *rest, **options) / 0,
    "none": lambda run, x, *rest, **options: run(x, *rest, **options) * torch.nan,
    "a tenth off": lambda run, x, *rest, **options: run(x, *rest, **options) * 1.1,
    "black": lambda run, x, *rest, **options: run(x, *rest, **options) * 0,
}


@pytest.mark.parametrize("operator", ["conv2d", "linear"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_device_whose_16_bits_are_wrong_is_found_out(fault, operator, monkeypatch):
    plain = getattr(F, operator)

    def faulty(x, *rest, **options):
        return fault(plain, x, *rest, **options) if x.dtype == torch.bfloat16 else plain(x, *rest, **options)

    monkeypatch.setattr(dtypes.F, operator, faulty)

    assert not dtypes.computes(torch.bfloat16, CPU)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("not implemented for 'Half'"), False),
        (torch.OutOfMemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
    ],
)
def test_a_format_that_is_refused_is_wrong_and_a_full_card_says_nothing_of_it(error, raised, monkeypatch):
    def conv2d(x, weight, **options):
        raise error

    monkeypatch.setattr(dtypes.F, "conv2d", conv2d)

    monkeypatch.setattr(devices, "first", lambda config: MPS)
    computes = dtypes.computes
    monkeypatch.setattr(dtypes, "computes", lambda dtype, device: computes(dtype, CPU))

    with pytest.raises(NoRoomError) if raised else contextlib.nullcontext():
        assert dtypes.pick(EngineConfig(model="sd15", data_dir="")) == (MPS, torch.float32)


@pytest.mark.parametrize(("make_vae", "drawn"), [(tiny_models.vae, True), (tiny_models.overflowing_vae, False)])
def test_a_model_draws_if_its_picture_comes_out_in_numbers(make_vae, drawn):
    assert dtypes.draws(tiny_models.float16(vae=make_vae())) is drawn


def test_the_answer_lies_in_the_data_folder(processor, tmp_path):
    processor(*AMX, bfloat16=0.1)

    pick(tmp_path)

    (answers,) = json.loads((tmp_path / "kernels.json").read_text()).values()
    assert answers["dtype"] == "bfloat16"


def numbers(*shape):
    """Positive numbers in bfloat16, of which a sum in bfloat16 would stop growing after some hundreds."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).add(0.5).to(torch.bfloat16)


PICTURE, TOKENS = numbers(1, 32, 64, 64), numbers(1, 2, 2048, 40)
SUMS = {
    "group norm": lambda to: F.group_norm(to(PICTURE), 2),
    "group norm, channels-last": lambda to: F.group_norm(to(PICTURE).to(memory_format=torch.channels_last), 2),
    "layer norm": lambda to: F.layer_norm(to(PICTURE), [64]),
    "softmax": lambda to: to(PICTURE).flatten(2).softmax(-1),
    "attention": lambda to: F.scaled_dot_product_attention(to(TOKENS), to(TOKENS), to(TOKENS)),
    "product": lambda to: F.linear(to(PICTURE).flatten(2), to(PICTURE).flatten(2)[0]),
    "convolution": lambda to: F.conv2d(to(PICTURE), to(PICTURE)[:, :, :9, :9]),
}


@pytest.mark.parametrize("form", SUMS.values(), ids=SUMS.keys())
def test_a_processor_sums_bfloat16_in_float32(form):
    out, exact = form(lambda x: x), form(lambda x: x.double())

    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() <= exact.abs().max() / 256
