"""The loop's calls to the model: images of requests go in, what comes of them is noted on them, each call is timed."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipelines.engine.request import Image, Rendered, Request
from pipelines.messages import GenerationParams, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pipelines.engine.backend import Backend
    from pipelines.engine.readback import PendingPictures, Readback
    from pipelines.engine.stage_runner import StageRunner


class Stages:
    """All images of a call have one size. Pictures go to the `readback`; with `forced`, none of them unchecked."""

    def __init__(self, model: Backend, runner: StageRunner, readback: Readback, *, forced: bool) -> None:
        self._model = model
        self._runner = runner
        self._readback = readback
        self._forced = forced

    def warm_up(self, side: int) -> None:
        """All of them for a black picture of side × side."""
        work = Work(id="", params=GenerationParams(prompt="", seed=0, num_inference_steps=1), image=b"")
        request = Request(work, time.monotonic(), pixels=np.zeros((side, side, 3), np.uint8))
        images = request.images = [Image(request, seed=0)]
        self.prepare(images)
        self.encode(images)
        self.denoise(images)
        self._render("decode", images)()
        self._runner.learn(request)

    def prepare(self, images: Sequence[Image]) -> None:
        """Encode the prompts of the request whose images they are."""
        request = images[0].request
        with self._runner.timed("text", images):
            request.conditioning = self._model.prepare(request.work.params)

    def encode(self, images: Sequence[Image]) -> None:
        """Start each image's trajectory."""
        items = [(i.request.work.params, i.request.conditioning, i.request.pixels, i.seed) for i in images]
        with self._runner.timed("encode", images):
            trajectories = self._model.encode(items)
        for image, trajectory in zip(images, trajectories, strict=True):
            image.trajectory = trajectory

    def denoise(self, images: Sequence[Image]) -> None:
        """Take each one timestep further."""
        with self._runner.timed("steps", images):
            self._model.step([image.trajectory for image in images])

    def decode(self, images: Sequence[Image]) -> None:
        """Have the last pictures made."""
        pictures = self._render("decode", images)
        for image in images:
            image.submitted = True
        self._readback.finish(images, pictures)

    def preview(self, images: Sequence[Image]) -> None:
        """Have pictures made of what they are so far."""
        pictures = self._render("preview", images)
        for image in images:
            image.request.previewing = True
        self._readback.preview(images, pictures)

    def _render(self, name: str, images: Sequence[Image]) -> PendingPictures:
        """What each image looks like so far, black where it is unsafe; None where it is not even numbers.

        Launched here; the function returned waits for it.
        """
        trajectories = [image.trajectory for image in images]
        checked = [self._forced or image.request.work.params.enable_safety_checks for image in images]
        with self._runner.timed(name, images):
            pixels = self._model.decode(trajectories)
            finite = self._model.finite(trajectories)
        unsafe = finite  # flags all the same: nobody looks at those of pictures that are not to be checked
        if any(checked):
            with self._runner.timed("safety", images):
                unsafe = self._model.check(pixels)
        with self._runner.timed(name, images):
            wait = self._model.fetch(pixels, finite, unsafe)
        return partial(resolve_pictures, wait, checked)


def resolve_pictures(
    wait: Callable[[], tuple[Any, Sequence[bool], Sequence[bool]]], checked: Sequence[bool]
) -> list[Rendered | None]:
    """Wait for pictures, their numbers' finiteness and what the safety checker says (`stages.Model.fetch`).

    A picture that is unsafe is black, if it was to be `checked`; one that is not even numbers is None.
    """
    pictures, finite, unsafe = wait()
    nsfw = [flag and asked for flag, asked in zip(unsafe, checked, strict=True)]
    pictures[nsfw] = 0
    return [Rendered(pictures[row], nsfw[row]) if finite[row] else None for row in range(len(pictures))]
