"""Group norm on CUDA: the kernels' source, run on the processor and compiled for every card; what else there may be.

No card is needed: each kernel runs thread by thread (`cuda_on_cpu`), on tensors with guards around.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.model.blocks import GroupNorm
from pipelines.model.kernels.cuda import compiler, group_norm, trials
from pipelines.model.kernels.cuda.trials import Trials
from tests.model import cuda_on_cpu
from tests.model.cuda_on_cpu import KernelsOnCpu

CPU = torch.device("cpu")
SOURCE = group_norm.SOURCE.read_text()
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Kernels of a source on the processor, by dtype; those of the product are made once."""
    if cuda_on_cpu.COMPILER is None:
        pytest.skip("needs g++")
    made = {}

    def make(dtype, source=SOURCE):
        if (dtype, source) not in made:
            folder = tmp_path_factory.mktemp("kernels")
            made[dtype, source] = KernelsOnCpu(source, [f"FORMAT={group_norm.FORMATS[dtype]}"], folder)
        return made[dtype, source]

    return make


def picture(size, dtype=torch.float32, offset=0.0):
    count, channels, height, width = size
    generator = torch.Generator().manual_seed(count + channels + height)
    x = torch.randn(count, channels, height, width, generator=generator) + offset
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def affine(channels, dtype=torch.float32):
    return torch.linspace(0.5, 2, channels).to(dtype), torch.linspace(-1, 1, channels).to(dtype)


def norm(kernels, x, shift, its_affine, groups, *, silu):
    weight, bias = its_affine
    return group_norm.compute(kernels, x, shift, weight=weight, bias=bias, groups=groups, eps=1e-5, silu=silu)


@pytest.mark.parametrize("dtype", group_norm.FORMATS, ids=str)
def test_the_kernels_compute_the_norm_to_one_rounding(dtype, make):
    assert group_norm.error(make(dtype), CPU, dtype) < 1.0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("pixel < last; pixel += rows", "pixel < last - 1; pixel += rows", marks=pytest.mark.long),
        pytest.param(
            "load(shift[(long long)picture * of_shift + channel + i]) : 0.0f);", "0.0f : 0.0f);", marks=pytest.mark.long
        ),
        ("load(shift[(long long)picture * of_shift + channel + i]) : 0.0f);", "0.0f / 0.0f : 0.0f);"),  # not the last
        ("all.y / numbers + eps", "all.y / numbers"),
        ("count * (mean - middle) * (mean - middle)", "0.0f"),
        pytest.param("-value)", "value)", marks=pytest.mark.long),
    ],
)
def test_a_fault_of_the_kernels_is_found_at_the_start(right, wrong, make):
    assert right in SOURCE

    assert not group_norm.error(make(torch.float16, SOURCE.replace(right, wrong)), CPU, torch.float16) < 1.0


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(8, 1), (24, 8), (32, 8), (320, 32), (128, 32), (64, 4), (40, 8)]),
    size=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 40)),
    offset=st.floats(-1e4, 1e4),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    outlier=st.sampled_from([0.0, 1e3, -1e5]),
)
def test_neither_offsets_nor_outliers_cancel_what_varies(make, shape, size, offset, scale, outlier):  # noqa: PLR0917
    (channels, groups), (count, height, width) = shape, size
    draws = np.random.default_rng(height)
    values = draws.standard_normal((count, channels, height, width)) + offset
    values.flat[draws.integers(values.size)] += outlier
    x = torch.from_numpy(values * scale).float().contiguous(memory_format=torch.channels_last)
    weight, bias = affine(channels)

    found = norm(make(torch.float32), x, None, (weight, bias), groups, silu=False)

    grouped = x.double().unflatten(1, (groups, -1))
    spread = (grouped.var((2, 3, 4), correction=0) + 1e-5).sqrt()
    size_of_values = grouped.abs().amax((2, 3, 4)) / spread
    exact = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    # What the numbers themselves are rounded by, seen in the result, and a little for the sums.
    allowed = 2e-6 * (1 + exact.abs()) + 1e-6 * size_of_values.repeat_interleave(channels // groups, 1)[..., None, None]
    assert ((found - exact).abs() <= allowed).all()


@pytest.mark.parametrize("channels", [96, 320, 960])
def test_threads_that_run_in_another_order_change_no_bit(channels, make):
    kernels, x, weight = (
        make(torch.float16),
        picture((2, channels, 12, 7), torch.float16, 3.0),
        torch.ones(channels).half(),
    )

    forwards = norm(kernels, x, weight.expand(2, -1), (weight, weight), 32, silu=True)
    kernels.backwards = True
    backwards = norm(kernels, x, weight.expand(2, -1), (weight, weight), 32, silu=True)
    kernels.backwards = False

    assert torch.equal(forwards, backwards)


def test_a_missing_barrier_shows(make):
    kernels = make(torch.float32, SOURCE.replace("__syncthreads();", ""))
    x, (weight, bias) = picture((1, 320, 12, 7)), affine(320)

    kernels.backwards = True
    found = norm(kernels, x, None, (weight, bias), 32, silu=False)

    assert not torch.allclose(found, F.group_norm(x, 32, weight, bias), atol=0.1)


def test_a_picture_depends_on_no_other_in_the_batch(make):
    kernels, x, (weight, bias) = (
        make(torch.bfloat16),
        picture((3, 64, 9, 9), torch.bfloat16),
        affine(64, torch.bfloat16),
    )
    shift = picture((3, 64, 1, 1), torch.bfloat16).flatten(1)

    together = norm(kernels, x, shift, (weight, bias), 32, silu=True)
    alone = [norm(kernels, x[row : row + 1], shift[row : row + 1], (weight, bias), 32, silu=True) for row in range(3)]

    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.contiguous(),
        lambda x: x[:, :, ::2],
        lambda x: torch.cat([x.flatten(), x.flatten()])[1 : x.numel() + 1].view(2, 5, 6, 64).permute(0, 3, 1, 2),
    ],
    ids=["channels outermost", "every other row", "unaligned"],
)
def test_any_layout_is_taken(form, make):
    x, (weight, bias) = form(picture((2, 64, 5, 6), torch.float16)), affine(64, torch.float16)

    found = norm(make(torch.float16), x, None, (weight, bias), 32, silu=False)

    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, F.group_norm(x, 32, weight, bias), rtol=2e-3, atol=2e-3)


def test_a_shift_may_have_any_layout(make):
    x, (weight, bias), shift = picture((2, 64, 5, 6)), affine(64), picture((64, 2, 1, 1)).flatten(1).T

    found = norm(make(torch.float32), x, shift, (weight, bias), 32, silu=False)

    torch.testing.assert_close(found, F.group_norm(x + shift[:, :, None, None], 32, weight, bias), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_spoils_its_picture_only(make):
    x, (weight, bias) = picture((2, 64, 5, 6), torch.float16), affine(64, torch.float16)
    x[0, 0, 2, 2] = torch.inf

    found = norm(make(torch.float16), x, None, (weight, bias), 32, silu=True)

    assert not found[0, :2].isfinite().any()
    assert found[1].isfinite().all()


def test_no_pictures_give_none():
    found = norm(None, torch.zeros(0, 8, 2, 2), None, affine(8), 1, silu=False)

    assert found.shape == (0, 8, 2, 2)


@pytest.mark.parametrize("size", [(512, 512), (1024, 768), (8, 8)], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (320, 32), (960, 32), (2560, 32), (8184, 1)])
def test_blocks_are_within_what_cards_launch(channels, groups, size):
    launched = []

    class Launched(compiler.Kernels):
        def launch(self, name, grid, block, *arguments):
            launched.append((name, grid, block))

    x = torch.empty(3, channels, *size, device="meta").contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_norm, "_aligned", lambda x: x)
        norm(Launched(), x, None, affine(channels), groups, silu=False)

    assert group_norm.takes(channels, groups)
    assert all(block % 32 == 0 and block <= 1024 for _, _, block in launched)
    assert [grid[1] for _, grid, _ in launched] == [3, 3]
    assert launched[0][1][0] <= 128
    assert launched[1][1][0] <= 512


@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (20, 8), (8192 * 8, 32), (2048, 256), (32 * 2056, 32)])
def test_other_shapes_are_left_to_torch(channels, groups):
    assert not group_norm.takes(channels, groups)


@pytest.mark.parametrize("shift", [None, torch.ones(2, 16)], ids=["plain", "shifted"])
def test_the_operator_is_what_torch_expects_of_one(shift):
    weight, bias = affine(16)
    its = {"weight": weight, "bias": bias, "groups": 4, "eps": 1e-5, "silu": True}

    with torch.inference_mode(mode=False):
        torch.library.opcheck(
            torch.ops.fourstep.group_norm,
            (picture((2, 16, 3, 5)), shift),
            its,
            test_utils=("test_schema", "test_faketensor"),
        )


# --- compiling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "number"),
    [("sm_80", "BFLOAT"), ("sm_120", "FLOAT")]
    + [pytest.param(each, "HALF", marks=pytest.mark.long) for each in ARCHITECTURES]
    + [pytest.param("sm_75", "FLOAT", marks=pytest.mark.long)],
)
def test_the_kernels_compile_for_every_card_that_torch_has_code_for(architecture, number):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC (extra cuda-compiler)")

    code = compiler.compiled(SOURCE, [f"FORMAT={number}"], architecture)

    assert code.startswith(b"\x7fELF")
    assert b"statistics_8" in code
    assert b"normalise_silu" in code


def test_what_the_compiler_refuses_is_said_in_its_words():
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC (extra cuda-compiler)")

    with pytest.raises(compiler.CompilerError, match=r'COMPILATION: .*identifier "y" is undefined'):
        compiler.compiled("__global__ void f(int *x) { *x = y; }", [], "sm_80")


# --- what else may be there -------------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Returns whether the kernels work on a pretended card, given what makes them; all that is tried lies in a file."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    trials.use(Trials(tmp_path / trials.FILE))

    def tried(make):
        monkeypatch.setattr(group_norm, "_on", make)
        return group_norm.works.__wrapped__(CPU, torch.float16)

    yield tried
    trials.use(Trials())


def test_kernels_that_compute_the_right_numbers_are_used(tried, make):
    assert tried(lambda device, dtype: make(dtype))


class DoesNothing(compiler.Kernels):
    def launch(self, *arguments):
        pass


def raising(error):
    def make(device, dtype):
        raise error

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda device, dtype: DoesNothing(), "wrong by"),
        (raising(ImportError("No module named 'cuda'")), "pip install 'cuda-bindings==13.*'"),
        (raising(compiler.CompilerError("NVRTC_ERROR_INVALID_OPTION")), "NVRTC_ERROR_INVALID_OPTION"),
        (raising(TypeError("nvrtcCreateProgram() takes 6 arguments")), "takes 6 arguments"),
    ],
    ids=["wrong", "absent", "refused", "changed"],
)
def test_what_does_not_work_is_said_once_and_torch_goes_on(make, words, tried, caplog):
    for _ in range(3):
        assert not tried(make)

    assert all(words in message and "torch's" in message for message in caplog.messages)


def test_kernels_that_lose_the_card_are_tried_twice(tried, caplog):
    lost = raising(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    for _ in range(2):
        with pytest.raises(torch.AcceleratorError):
            tried(lost)

    assert not tried(lost)
    assert trials.FILE in caplog.messages[-1]


def begun(path):
    """Whether another process would try: this one begins, and what it has noted stays, as if it never came back."""
    with Trials(path).trial("a kernel") as may_try:
        noted = path.read_bytes() if path.exists() else b""
    if noted:
        path.write_bytes(noted)
    return may_try


def test_a_trial_that_never_came_back_is_made_twice(tmp_path):
    path = tmp_path / "kernel-trials.json"

    assert [begun(path) for _ in range(4)] == [True, True, False, False]


def test_a_trial_that_came_back_is_made_at_every_start(tmp_path):
    path = tmp_path / "kernel-trials.json"
    for _ in range(4):
        with Trials(path).trial("a kernel") as may_try:
            assert may_try

    assert path.read_text() == "{}"


def test_engines_of_several_cards_note_their_trials_at_once(tmp_path, caplog):
    path = tmp_path / "kernel-trials.json"

    def start(card):
        for _ in range(20):
            with Trials(path).trial(f"a kernel, card {card}"):
                pass

    with ThreadPoolExecutor(4) as engines:
        list(engines.map(start, range(4)))

    assert (path.read_text(), caplog.messages) == ("{}", [])


@pytest.mark.parametrize("kept", ["no JSON", "[]", '{"a kernel": "often"}'])
def test_a_damaged_file_is_said_and_begun_anew(kept, tmp_path, caplog):
    path = tmp_path / "kernel-trials.json"
    path.write_text(kept)

    assert begun(path)
    assert "can't be read" in caplog.text


def test_a_full_disk_is_said_and_kernels_are_tried(tmp_path, caplog):
    path = tmp_path / "kernel-trials.json"
    path.with_suffix(".partial").symlink_to("/dev/full")

    assert begun(path)
    assert "can't be written" in caplog.text


def test_a_copy_in_another_dtype_is_computed_by_torch(monkeypatch):
    monkeypatch.setattr(group_norm, "is_used", lambda weight, groups: True)
    monkeypatch.setattr(group_norm, "group_norm", lambda *given, **its: "ours")
    source = torch.nn.GroupNorm(8, 32).half().requires_grad_(requires_grad=False)
    norm, x = GroupNorm(source), picture((1, 32, 4, 4))

    exactly = copy.deepcopy(norm).float()

    assert norm(x.half()) == "ours"
    torch.testing.assert_close(exactly(x), F.group_norm(x, 8))
