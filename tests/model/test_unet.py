"""The UNet and the autoencoders as we run them, held against diffusers' own forward passes."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from pipelines.errors import CheckpointError
from pipelines.model import vae
from pipelines.model.blocks import TransformerBlock
from pipelines.model.kernels import convolution, direct, doubling, products
from pipelines.model.unet import Unet
from tests.support import strict_meta_device, tiny_models
from tests.support.strict_meta_device import NOWHERE

SIZES = [(8, 8), (16, 24), (13, 9), (7, 10)]  # of latents; halves of odd sides are rounded up on the way down


def linear_projections():
    """A UNet of Stable Diffusion 2's kind: linear projections, several transformer blocks, a head width."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        transformer_layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=tiny_models.WIDTH,
        attention_head_dim=(2, 2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
    ).eval()


def silent_attention():
    """One whose first attention to itself adds nothing, as in the demo model."""
    unet = tiny_models.unet()
    out = next(module for name, module in unet.named_modules() if name.endswith("attn1")).to_out[0]
    for parameter in out.parameters():
        parameter.zero_()
    return unet


@pytest.mark.parametrize("source", [tiny_models.unet, linear_projections, silent_attention])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_unet_computes_what_diffusers_computes(source, size, noise):
    theirs = source()
    ours = Unet(theirs)
    sample, text, timesteps = noise(3, 4, *size), noise(3, 77, tiny_models.WIDTH), (999, 259, 19)

    actual = ours(
        sample,
        torch.stack([ours.shifts(timestep) for timestep in timesteps]),
        torch.stack([ours.context(row) for row in text]),
    )

    expected = theirs(sample, torch.tensor(timesteps), encoder_hidden_states=text).sample
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("source", "missing"), [(tiny_models.unet, 0), (silent_attention, 1)])
def test_attention_that_adds_nothing_is_not_computed(source, missing):
    blocks = [module for module in Unet(source()).modules() if isinstance(module, TransformerBlock)]

    assert sum(block.to_itself is None for block in blocks) == missing


def bare_tiny_vae():
    """As the demo model's: no blocks at full size, so that two convolutions meet."""
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
    ).eval()


@pytest.mark.parametrize("source", [tiny_models.vae, tiny_models.tiny_vae, bare_tiny_vae])
@pytest.mark.parametrize("size", [(64, 64), (72, 104)], ids=str)
def test_the_autoencoder_encodes_what_diffusers_encodes(source, size, noise):
    theirs, images = source(), noise(2, 3, *size).clamp(-1, 1)

    mean, deviation = vae.make_vae(theirs).encode(images)

    encoded = theirs.encode(images)
    if isinstance(theirs, AutoencoderKL):
        torch.testing.assert_close(deviation, encoded.latent_dist.std, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mean, encoded.latent_dist.mean, rtol=1e-4, atol=5e-5)
    else:
        torch.testing.assert_close(mean, encoded.latents, rtol=1e-4, atol=1e-4)
        assert deviation is None


@pytest.mark.parametrize("source", [tiny_models.vae, tiny_models.tiny_vae, bare_tiny_vae])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_autoencoder_decodes_what_diffusers_decodes(source, size, noise):
    theirs, latents = source(), noise(2, 4, *size)

    actual = vae.make_vae(theirs).decode(latents)

    torch.testing.assert_close(actual, theirs.decode(latents).sample, rtol=1e-4, atol=2e-5)


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def _packing(request, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", request.param)


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("bias", [True, False])
def test_doubling_and_a_convolution_are_one_operation(bias, noise):
    conv, x = torch.nn.Conv2d(5, 7, 3, padding=1, bias=bias), noise(2, 5, 6, 9)

    actual = doubling.upsampling_conv(conv)(x)

    torch.testing.assert_close(actual, conv(F.interpolate(x, scale_factor=2.0)), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_packing")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("doubles", [True, False])
@pytest.mark.parametrize("size", [(2, 2), (6, 10), (16, 8)], ids=str)
def test_two_convolutions_in_a_row_are_one(bias, stride, doubles, size, noise):
    first = torch.nn.Conv2d(3, 7, 3, padding=1, bias=bias)
    second = torch.nn.Conv2d(7, 5, 3, padding=1, stride=1 if doubles else stride)
    x = noise(2, 3, *size)

    actual = doubling.conv_pair(first, second, doubles=doubles)(x)

    expected = second(first(F.interpolate(x, scale_factor=2.0) if doubles else x))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("doubles", [True, False])
@torch.inference_mode(mode=False)  # in it, a device that is not there is not asked for all copies
def test_weights_are_folded_for_a_device_without_float64(doubles, dtype):
    first, second = (torch.nn.Conv2d(3, 3, 3, padding=1).to(NOWHERE, dtype) for _ in range(2))

    with strict_meta_device.device():
        pair = doubling.conv_pair(first, second, doubles=doubles)
        single = doubling.upsampling_conv(first)

    assert {tensor.device for tensor in (*pair.buffers(), *single.buffers())} == {NOWHERE}
    assert {tensor.dtype for tensor in (*pair.buffers(), *single.buffers())} == {dtype}


@pytest.mark.parametrize("make", [convolution.conv, direct.Conv])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (1, 1)], ids=str)
def test_what_follows_a_convolution_is_done_with_it(make, relu, stride, size, noise):
    conv, x = torch.nn.Conv2d(5, 7, 3, stride=stride, padding=1), noise(2, 5, *size)
    plain, plus = conv(x), noise(*conv(x).shape)

    alone, added = make(conv, relu=relu)(x), make(conv, relu=relu)(x, plus)

    after = F.relu if relu else torch.nn.Identity()
    torch.testing.assert_close(alone, after(plain), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(added, after(plain + plus), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [products.linear, products.Linear])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_product(make, bias, noise):
    source, x = torch.nn.Linear(5, 9, bias=bias), noise(2, 11, 5)

    actual = make(source.weight, source.bias)(x)

    torch.testing.assert_close(actual, source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{"resnet_time_scale_shift": "scale_shift"}, {"num_class_embeds": 3}], ids=str)
def test_a_unet_of_another_kind_is_refused(config):
    other = UNet2DConditionModel.from_config(tiny_models.unet().config, **config)

    with pytest.raises(CheckpointError):
        Unet(other)


def test_a_dilated_convolution_is_refused():
    with pytest.raises(ValueError, match="not a plain convolution"):
        convolution.conv(torch.nn.Conv2d(3, 3, 3, dilation=2))
