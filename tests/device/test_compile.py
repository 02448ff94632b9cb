"""Compiled functions: the same pictures, and nothing lost where there is no compiler."""

import numpy as np
import pytest
import torch

from pipelines.device.compile import Compiler
from pipelines.device.torch_backend import TorchBackend
from pipelines.model.lcm import Lcm
from tests.device.test_cuda_graphs import FakeDevice, capture, generate
from tests.support import tiny_models


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """As on CUDA: a compiler lays weights out itself, and can't see into oneDNN's layout."""
    torch.compiler.reset()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.parametrize(("vae", "backend"), [(tiny_models.vae, "eager"), (tiny_models.tiny_vae, "aot_eager")])
def test_compiled_pictures_are_those_of_uncompiled_ones(vae, backend):
    compiler, device = Compiler(backend), FakeDevice()
    model = capture(TorchBackend(tiny_models.make(vae=vae())), device, 1, compiler=compiler)

    actual = generate(model, 1)

    assert compiler.works
    assert np.abs(actual.astype(int) - generate(Lcm(tiny_models.make(vae=vae())), 1).astype(int)).max() <= 1
    assert len(device.graphs) == 5  # text, a step without guidance and one with it, encoder, decoder


def test_more_shapes_are_compiled_than_torch_allows_by_itself():
    seen = []

    def backend(graph, inputs):
        seen.append(tuple(inputs[0].shape))
        return graph.forward

    double = Compiler(backend)(lambda tensor: 2 * tensor)
    for rows in range(2, 22):
        double(torch.ones(rows, 3))

    assert seen == [(rows, 3) for rows in range(2, 22)]


def test_without_a_compiler_everything_runs_as_it_is(caplog):
    calls = []

    def broken(graph, inputs):
        calls.append(1)
        raise RuntimeError("cannot find a working Triton installation\nmore")

    compiler = Compiler(broken)
    double, triple = compiler(lambda tensor: 2 * tensor), compiler(lambda tensor: 3 * tensor)

    results = [double(torch.ones(2)), double(torch.ones(3)), triple(torch.ones(2))]

    assert [result.sum().item() for result in results] == [4, 6, 6]
    assert len(calls) == 1
    assert caplog.text.count("torch.compile does not work here, going on without") == 1
    assert "Triton" in caplog.text


def test_no_memory_is_no_fault_of_the_compiler():
    def full(*inputs):
        raise torch.OutOfMemoryError

    compiler = Compiler(lambda graph, inputs: full)

    with pytest.raises(torch.OutOfMemoryError):
        compiler(lambda tensor: 2 * tensor)(torch.ones(2))

    assert compiler.works
