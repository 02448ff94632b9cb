"""A classifier of place, time and weather, trained on painted pictures; it judges what the model generates."""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import SMALL, WORK
from training.networks.autoencoder import to_model
from training.scenes.scene import PLACES, TIMES, WEATHERS
from training.trainer import Course, rank, train

JUDGED = {"place": PLACES, "time": TIMES, "weather": WEATHERS}
COURSE = Course("classifier", steps=2400, rate=3e-3, average=0.99)
FINAL = WORK / "classifier-final.pt"
_SIDE, _BATCH = 128, 24


class Judge(nn.Module):
    """Small residual network on 128×128 pictures."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96, 128)
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[1:])
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.heads = nn.ModuleDict({name: nn.Linear(3 * widths[-1], len(values)) for name, values in JUDGED.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits by attribute for pictures in −1…1 of any size."""
        x = F.relu(self.stem(F.interpolate(images, size=_SIDE, mode="area")))
        for down, block, norm in zip(self.down, self.blocks, self.norms, strict=True):
            x = F.relu(down(x))
            x = x + F.relu(norm(block(x)))
        upper, lower = x.tensor_split(2, dim=2)
        seen = torch.cat([x.amax((2, 3)), upper.mean((2, 3)), lower.mean((2, 3))], -1)
        return {name: head(seen) for name, head in self.heads.items()}


def load() -> Judge:
    judge = Judge()
    judge.load_state_dict(torch.load(FINAL, weights_only=True))
    return judge.eval()


@torch.inference_mode()
def judge_all(judge: Judge, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return, by attribute, the index of the value seen in each of uint8 [N, H, W, 3]."""
    seen = [judge(to_model(pixels[i : i + 8])) for i in range(0, len(pixels), 8)]
    return {name: torch.cat([each[name] for each in seen]).argmax(-1).numpy() for name in JUDGED}


def work() -> None:
    judge = Judge().to(memory_format=torch.channels_last)
    pictures, scenes = SMALL.open(), SMALL.scenes()
    truth = {name: np.array([values.index(getattr(s, name)) for s in scenes]) for name, values in JUDGED.items()}

    def loss(rng: np.random.Generator) -> dict[str, Tensor]:
        index = np.sort(rng.integers(0, len(pictures), _BATCH))
        images = to_model(pictures[index])
        if rng.random() < 0.5:
            images = images.flip(-1)
        if rng.random() < 0.3:
            images = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        told = judge(images)
        return {name: F.cross_entropy(told[name].float(), torch.from_numpy(truth[name][index])) for name in JUDGED}

    average = train(COURSE, judge, loss)
    if rank() == 0:
        torch.save(average.state_dict(), FINAL)
