"""The autoencoder: pictures ⇄ latents of 4 channels at an eighth of the side.

It is trained in two runs. The first trains encoder and decoder together; alone, that spends three channels on outlines
and one on colour, so that green and magenta look the same. The second also trains one direction of the latents to carry
the missing colour. At the end the latents are normalised to mean 0 and deviation 1 per channel. This is folded into the
encoder's last convolution, so that diffusers' classes need no scale or shift.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from training.config import LARGE, SMALL, TEST, WORK
from training.trainer import Course, rank, train

BOTH = Course("autoencoder", steps=1900, rate=2.5e-3)
COLOUR = Course("autoencoder-colour", steps=720, rate=2e-3)
FINAL = WORK / "autoencoder-final.pt"
_BATCH, _CROP = 8, 128  # per process


def build() -> AutoencoderTiny:
    """Return the untrained network: 24 channels; no blocks at full resolution, where they cost most."""
    width = (24, 24, 24, 24)
    model = AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 1, 3, 3),
        num_decoder_blocks=(3, 3, 1, 0),
    )
    return model.to(memory_format=torch.channels_last)


def to_model(pixels: np.ndarray) -> Tensor:
    """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in −1…1, channels last."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: Tensor) -> np.ndarray:
    """Convert float32 [N, 3, H, W] in −1…1 to uint8 [N, H, W, 3]."""
    scaled = images.float().clamp(-1, 1).add(1).mul(127.5).add(0.5)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def crops(rng: np.random.Generator, count: int = _BATCH) -> Tensor:
    """Return random crops of both picture sets, some mirrored, some with changed colours and added lines."""
    sources = [SMALL.open(), LARGE.open()]
    out = np.empty((count, _CROP, _CROP, 3), np.uint8)
    for i in range(count):
        pictures = sources[i % 2]
        y, x = rng.integers(0, pictures.shape[1] - _CROP + 1, 2)
        crop = pictures[rng.integers(len(pictures)), y : y + _CROP, x : x + _CROP]
        out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    images = to_model(out)
    odd = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.25)
    gain = torch.from_numpy(rng.uniform(0.5, 1.3, (count, 3, 1, 1)).astype(np.float32))
    other = (images * gain + torch.from_numpy(rng.uniform(-0.3, 0.3, (count, 3, 1, 1)).astype(np.float32))).clamp(-1, 1)
    return torch.where(odd, other, images)


def picture_loss(made: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return squared and absolute error, and the error of the local mean colour, the most visible one."""
    error = made.float() - wanted
    low = F.avg_pool2d(error, 8)
    return {
        "mse": 8 * error.square().mean(),
        "l1": 0.5 * error.abs().mean(),
        "low": 12 * low.square().mean() + 0.5 * low.abs().mean(),
    }


def train_both() -> AutoencoderTiny:
    """Train both halves, then again with the missing colour in the direction where it costs least."""
    model = build()

    def loss(rng: np.random.Generator) -> dict[str, Tensor]:
        return _both_ways(model, crops(rng))[0]

    model.load_state_dict(train(BOTH, model, loss, report).state_dict())
    axis, direction = missing_colour(model)

    def loss_with_colour(rng: np.random.Generator) -> dict[str, Tensor]:
        images = crops(rng)
        losses, latents = _both_ways(model, images)
        wanted = torch.einsum("nchw,c->nhw", F.avg_pool2d(images, 8), axis)
        told = torch.einsum("nchw,c->nhw", latents.float(), direction)
        return losses | {"colour": 0.15 * (told - wanted).square().mean()}

    return train(COLOUR, model, loss_with_colour, report)


@torch.inference_mode()
def missing_colour(model: AutoencoderTiny) -> tuple[Tensor, Tensor]:
    """Return the lost colour axis [3], scaled to deviation 1, and the latents' direction [4] with least information.

    A learnt projection would fail: its weights are zero where the latents hold no colour, and so are its gradients.
    """
    pixels = TEST.open()[::6]
    colours, made, latents = [], [], []
    for start in range(len(pixels)):
        image = to_model(pixels[start : start + 1])
        latent = model.encoder(image)
        for kept, each in (
            (colours, F.avg_pool2d(image, 8)),
            (made, F.avg_pool2d(model.decoder(latent), 8)),
            (latents, latent),
        ):
            kept.append(each.flatten(2)[0])
    colour, back, latent = (torch.cat(each, 1) for each in (colours, made, latents))
    missed, colour, latent = back - colour, colour - colour.mean(1, keepdim=True), latent - latent.mean(1, keepdim=True)
    axis = torch.linalg.eigh(missed @ missed.T).eigenvectors[:, -1]
    direction = torch.linalg.svd(torch.linalg.lstsq(latent.T, colour.T).solution).U[:, -1]
    print("missing colour", axis.tolist(), "goes to", direction.tolist(), flush=True)
    return (axis / (axis @ colour).std()).clone(), direction.clone()


def _both_ways(model: AutoencoderTiny, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of encoding (latents like unit noise) and decoding (robust to a little noise), and latents."""
    latents = model.encoder(images)
    made = model.decoder(latents + 0.04 * torch.randn_like(latents))
    flat = latents.float().transpose(0, 1).flatten(1)
    spread = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
    return picture_loss(made, images) | {"spread": 0.05 * spread}, latents


def normalise(model: AutoencoderTiny) -> None:
    """Fold mean 0 and deviation 1 per latent channel into the encoder's last convolution.

    The inverse goes into the decoder's first. It is approximate: diffusers' decoder clamps large values before it, and
    borders are padded with zeros.
    """
    pictures = LARGE.open()
    index = np.random.default_rng(0).choice(len(pictures), 96, replace=False)
    with torch.inference_mode():
        latents = torch.cat([model.encoder(to_model(pictures[i : i + 1])) for i in np.sort(index)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = model.encoder.layers[-1], model.decoder.layers[0]
    with torch.no_grad():
        last.weight.div_(deviation[:, None, None, None])
        last.bias.sub_(mean).div_(deviation)
        first.bias.add_(torch.einsum("ocij,c->o", first.weight, mean))
        first.weight.mul_(deviation[None, :, None, None])
    print("latents were", mean.tolist(), deviation.tolist(), flush=True)


@torch.inference_mode()
def reconstruct(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 [N, H, W, 3] encoded and decoded, in float32."""
    return to_pixels(model.decoder(model.encoder(to_model(pixels))))


def psnr(made: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean peak signal-to-noise ratio over pictures, in dB."""
    errors = [np.square(a.astype(np.float32) - b).mean() for a, b in zip(made, wanted, strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.array(errors))))


def report(model: nn.Module, step: int) -> None:
    pixels = TEST.open()[::12]
    made = np.concatenate([reconstruct(model, pixels[i : i + 1]) for i in range(len(pixels))])
    print(f"  held-out PSNR {psnr(made, pixels):.2f} dB at step {step}", flush=True)


def load() -> AutoencoderTiny:
    """Return the trained autoencoder."""
    model = build()
    model.load_state_dict(torch.load(FINAL, weights_only=True))
    return model.eval().requires_grad_(requires_grad=False)


def work() -> None:
    """Do both training runs, and write `FINAL`."""
    model = train_both()
    normalise(model)
    if rank() == 0:
        torch.save(model.state_dict(), FINAL)
