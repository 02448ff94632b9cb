"""Adversarial training: the last training run of the denoiser.

A denoiser alone predicts the mean of all possible pictures, and four steps are too few to get from a mean to a picture:
silhouettes are blurred. So a second network, the adversary, learns to tell painted from generated latents, and the
denoiser learns to deceive it (Xiao et al. 2021, "Denoising diffusion GANs"; Sauer et al. 2024, "Fast high-resolution
image synthesis with latent adversarial diffusion distillation"). The adversary sees the noisy latents too, so the
prediction must fit the input. Its features give a second loss: those of prediction and target must be similar (Wang et
al. 2018, "pix2pixHD").
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from training.networks import text_encoder
from training.networks.denoiser import LAST, Batch, Denoiser, Lesson
from training.networks.latents import LARGE_LATENTS, SMALL_LATENTS
from training.trainer import Course

# Lengths of the gradients of the adversary's verdict and features, relative to that of the denoising error.
_VERDICT, _FEATURES = 0.7, 0.5
_RAMP = 150  # steps until the adversary has its full weight


class Adversary(nn.Module):
    """Judges patches of latents at three sizes, given the noisy latents, their timestep and the prompt."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 192, 192)
        self.stem = spectral_norm(nn.Conv2d(8, widths[0], 3, padding=1))
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths))
        self.told = nn.ModuleList(nn.Linear(text_encoder.WIDTH + 1, width) for width in widths[1:])
        self.asked = nn.ModuleList(spectral_norm(nn.Linear(text_encoder.WIDTH, width)) for width in widths[1:])
        self.verdict = nn.ModuleList(spectral_norm(nn.Conv2d(width, 1, 1)) for width in widths[1:])
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, clean: Tensor, batch: Batch, words: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return verdicts [B, 1, h, w] (above 0: painted) and features, by size. `words`: [B, 128]."""
        told = torch.cat([words, batch.spread.flatten(1)], 1)
        x = F.leaky_relu(self.stem(torch.cat([clean, batch.noisy], 1)), 0.2)
        verdicts, features = [], []
        for down, tell, ask, judge in zip(self.down, self.told, self.asked, self.verdict, strict=True):
            x = F.leaky_relu(down(x) + tell(told)[:, :, None, None], 0.2)
            verdicts.append((judge(x) + (x * ask(words)[:, :, None, None]).mean(1, keepdim=True)).float())
            features.append(x.float())
        return verdicts, features

    def duel(self, clean: Tensor, batch: Batch, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses: denoiser's verdict and feature difference, adversary's verdicts (hinge loss)."""
        made, made_features = self(clean, batch, words)
        real, real_features = self(batch.wanted, batch, words)
        unlike = [
            (a - b.detach()).abs().mean() / b.detach().abs().mean()
            for a, b in zip(made_features, real_features, strict=True)
        ]
        seen_through = -torch.stack([each.mean() for each in made]).mean()
        wrong = torch.stack([F.relu(1 - r).mean() + F.relu(1 + m).mean() for r, m in zip(real, made, strict=True)])
        return seen_through, torch.stack(unlike).mean(), wrong.mean()


class Match(nn.Module):
    """Denoiser and adversary as one module, so that one checkpoint holds both."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.adversary = denoiser, Adversary().to(memory_format=torch.channels_last)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of both.

        The adversary's gradients are scaled, picture by picture, to a share of the denoising error's, so that the
        balance depends neither on the timestep nor on the progress.
        """
        clean = batch.denoise(self.denoiser)
        with torch.no_grad():
            words = self.denoiser.text(batch.ids)[1].float()
        leaf = clean.detach().requires_grad_()
        errors = batch.losses(leaf)
        seen_through, unlike, wrong = self.adversary.duel(leaf, batch, words)
        (pull,) = torch.autograd.grad(sum(errors.values()), leaf)
        say = min(float(self.adversary.seen) / _RAMP, 1.0)
        self.adversary.seen += 1
        for loss, share in ((seen_through, _VERDICT), (unlike, _FEATURES)):
            (push,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            pull = pull + say * share * push * (_lengths(pull) / _lengths(push).clamp_min(1e-12))
        way = (clean * pull).sum()
        told = {name: error.detach() for name, error in errors.items()}
        return told | {
            "verdict": seen_through.detach(),
            "features": unlike.detach(),
            "adversary": wrong,
            "way": way - way.detach(),
        }


def _lengths(gradient: Tensor) -> Tensor:
    return gradient.square().sum((1, 2, 3), keepdim=True).sqrt()


class Finish(Lesson):
    """A training run against an adversary."""

    def student(self, denoiser: Denoiser) -> nn.Module:
        return Match(denoiser)

    def losses(self, student: Match, batch: Batch) -> dict[str, Tensor]:
        return student.losses(batch)


FINISH = Finish(
    Course("unet-finish", steps=5350, rate=8e-4, warmup=60, floor=0.25, average=0.998, muon=True),
    LARGE_LATENTS,
    6,
    LAST.leaves,
    beside=SMALL_LATENTS,
)
