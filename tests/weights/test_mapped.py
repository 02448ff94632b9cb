"""Weights that were read give their memory back: a model is never held in two forms."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.weights import mapped
from pipelines.weights import tensors as weights
from tests.support.checkpoint_layouts import write_sparse

LAYERS, SIDE = 8, 3072
MODEL_MB = LAYERS * SIDE * SIDE * 4 / 2**20  # 288
# Beside the model: one weight in two forms, and what torch takes for itself.
ROOM_MB = 110

# Loads a module from a file, with a change to every weight or none; prints the growth of the peak, in MB.
LOAD = """
import sys
from pathlib import Path
import torch
from pipelines.weights import tensors as weights
from tests.support import peak_memory as peak

path, dtype, change = Path(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3] == "change"
layers, side = map(int, sys.argv[4:])
with torch.device("meta"):
    module = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(layers)))
patch = (lambda name, weight: weight + 1) if change else None
torch.ones(9) + 1
peak.restart()
before = peak.megabytes()
weights.fill(module, weights.read([path]), device=torch.device("cpu"), dtype=dtype, what="it", patch=patch)
total = sum(float(weight.double().sum()) for weight in module.parameters())
print(total, peak.megabytes() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of zeros, in float32; a hole in the file."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    write_sparse(path, {f"{number}.weight": (SIDE, SIDE) for number in range(LAYERS)})
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's peak")
@pytest.mark.parametrize(
    ("dtype", "change", "sum_", "held_mb"),
    [("float32", "change", LAYERS * SIDE * SIDE, MODEL_MB), ("bfloat16", "none", 0, MODEL_MB / 2)],
)
def test_weights_are_never_held_in_two_forms(large: Path, dtype: str, change: str, sum_: float, held_mb: float) -> None:
    command = [sys.executable, "-c", LOAD, str(large), dtype, change, str(LAYERS), str(SIDE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    total, grown_mb = map(float, done.stdout.split())

    assert total == sum_
    assert held_mb * 0.95 < grown_mb < held_mb + ROOM_MB


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """A file of several kinds of weights."""
    tensors = {
        "half": torch.arange(9).half().reshape(3, 3),
        "long": torch.arange(5),
        "byte": torch.arange(7, dtype=torch.uint8),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(8.0),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "large": torch.arange(30_000).float(),
    }
    save_file(tensors, tmp_path / "some.safetensors")
    return tmp_path / "some.safetensors"


def test_all_kinds_of_weights_are_read_as_they_were_written(some: Path) -> None:
    found = weights.read([some])

    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in found.items()} == {
        "half": (torch.float16, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        "long": (torch.int64, [0, 1, 2, 3, 4]),
        "byte": (torch.uint8, [0, 1, 2, 3, 4, 5, 6]),
        "none": (torch.float32, []),
        "scalar": (torch.float32, 8.0),
        "brain": (torch.bfloat16, [1, 1, 1]),
        "large": (torch.float32, list(range(30_000))),
    }


def test_a_released_weight_is_read_from_its_file_again(some: Path) -> None:
    found = weights.read([some])
    found["large"].zero_()

    mapped.release(found["large"])

    assert found["large"][10_000] == 10_000


def test_weights_that_are_in_no_file_are_not_released() -> None:
    weight = torch.ones(30_000)

    mapped.release(weight)

    assert weight.sum() == 30_000


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no other layout")
def test_weights_in_a_librarys_own_layout_are_in_no_file(some: Path) -> None:
    kept = weights.read([some])  # there is a file
    layer = torch.nn.Module()
    layer.register_buffer("weight", torch.ones(600, 600).to_mkldnn())

    mapped.release_after_use(layer)

    assert kept
    assert not layer._forward_hooks


def test_a_file_goes_with_its_last_weight(some: Path) -> None:
    before = len(mapped._mappings)
    found = weights.read([some])
    kept = found["half"]
    del found
    while_kept = len(mapped._mappings)
    del kept

    assert (while_kept, len(mapped._mappings)) == (before + 1, before)


# Runs a network twice whose weights are mapped; prints its results' sum and the growth of the peak, in MB.
RUN = """
import sys
from pathlib import Path
import torch
from pipelines.weights import mapped
from pipelines.weights import tensors as weights
from tests.support import peak_memory as peak

path, seldom = Path(sys.argv[1]), sys.argv[2] == "seldom"
layers, side = map(int, sys.argv[3:])
with torch.device("meta"):
    module = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(layers)))
weights.fill(module, weights.read([path]), device=torch.device("cpu"), dtype=torch.float32, what="it")
if seldom:
    mapped.release_after_use(module)
torch.ones(9) @ torch.ones(9)
peak.restart()
before = peak.megabytes()
total = sum(float(module(torch.ones(1, side)).sum()) for _ in range(2))
print(total, peak.megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's peak")
@pytest.mark.parametrize(("use", "least_mb", "most_mb"), [("often", MODEL_MB, 400), ("seldom", 0, 110)])
def test_a_network_that_runs_once_a_request_holds_one_layer_of_its_file(
    large: Path, use: str, least_mb: float, most_mb: float
) -> None:
    command = [sys.executable, "-c", RUN, str(large), use, str(LAYERS), str(SIDE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    total, grown_mb = map(float, done.stdout.split())

    assert total == 0
    assert least_mb <= grown_mb < most_mb
