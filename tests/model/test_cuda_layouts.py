"""What CUDA does with the model, without CUDA: its layouts and norms give the same pictures; launches are counted."""

import functools

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel

from pipelines.model import vae
from pipelines.model.functions import make_functions
from pipelines.model.kernels.cuda import group_norm
from pipelines.model.lcm import Lcm
from pipelines.model.unet import Unet
from tests.model import cuda_on_cpu
from tests.model.cuda_launches import Launches
from tests.model.cuda_on_cpu import KernelsOnCpu
from tests.model.test_lcm import generate, levels_apart, params, picture
from tests.support import published_configs, strict_meta_device, tiny_models


def through_the_other_layout(x, *given, by=F.group_norm):
    """Group norm as torch has it on CUDA before 2.15."""
    return by(x.contiguous(), *given).contiguous()


@pytest.fixture
def _as_on_cuda(monkeypatch):
    """Weights are plain, as on a GPU."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.fixture
def _torchs_norms(monkeypatch):
    monkeypatch.setattr(F, "group_norm", through_the_other_layout)


@pytest.fixture
def _own_norms(monkeypatch, tmp_path):
    """All norms by our kernels' source, run on the processor."""
    if cuda_on_cpu.COMPILER is None:
        pytest.skip("needs g++")
    kernels = KernelsOnCpu(group_norm.SOURCE.read_text(), ["FORMAT=FLOAT"], tmp_path)
    monkeypatch.setattr(group_norm, "is_used", lambda weight, groups: group_norm.takes(len(weight), groups))
    monkeypatch.setattr(group_norm, "group_norm", functools.partial(group_norm.compute, kernels))
    yield
    assert {name for name, _, _ in kernels.launched} >= {"normalise_plain", "normalise_silu"}


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("norms", ["_torchs_norms", "_own_norms"])
def test_cudas_layouts_and_norms_give_the_same_pictures(norms, request):
    model, asked = tiny_models.make(), params(num_images=2, guidance_scale=2.0)
    expected = generate(Lcm(model), asked, picture())

    request.getfixturevalue(norms)
    actual = generate(Lcm(model, make_functions(model)), asked, picture())

    assert levels_apart(actual, expected) <= 1


def full_size(make, config):
    """A full-size network in float16 without values."""
    with torch.device("meta"):
        return make.from_config(config).half().requires_grad_(requires_grad=False)


@pytest.fixture(params=[False, True], ids=["torch's norms", "own norms"])
def own(request, monkeypatch):
    monkeypatch.setattr(group_norm, "is_used", lambda weight, groups: request.param)
    return request.param


# As on a card, which is given pictures of 512×512.
UNET = {False: 843, True: 571}
DECODER = {False: 270, True: 137}


@torch.inference_mode(mode=False)  # in it, a device that is not there is not asked for all copies
def test_launches_of_a_full_size_unet_call(own):
    source = full_size(UNet2DConditionModel, published_configs.UNET)
    with strict_meta_device.device(), torch.device("meta"):
        network = Unet(source)
        widths = (4, 64, 64), (sum(network.shift_widths),), (77, sum(network.context_widths))
        inputs = [torch.empty(1, *each, dtype=torch.float16) for each in widths]

        with Launches() as launches:
            network(*inputs)

    assert launches.counts.total() == UNET[own], launches.counts


@torch.inference_mode(mode=False)  # in it, a device that is not there is not asked for all copies
def test_launches_of_a_full_size_decoder(own):
    source = full_size(AutoencoderKL, published_configs.VAE)
    with strict_meta_device.device(), torch.device("meta"):
        autoencoder = vae.make_vae(source)
        latents = torch.empty(1, 4, 64, 64, dtype=torch.float16)

        with Launches() as launches:
            autoencoder.decode(latents)

    assert launches.counts.total() == DECODER[own], launches.counts
