"""Makes the demo model from nothing: `python -m training [STAGE …]`, without arguments every stage.

A stage whose result is there is skipped; one that was killed goes on from its checkpoint.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from training import contact_sheet, evaluate, export
from training.config import LARGE, SHEET, SHIPPED, SMALL, TEST, WORK
from training.networks import adversarial, autoencoder, classifier, denoiser, safety_checker, text_encoder
from training.networks.latents import LARGE_LATENTS, SMALL_LATENTS, TINY_LATENTS
from training.trainer import on_all_cores


class Stage(NamedTuple):
    """Something to do, and the file that says it is done (None: done anew each time)."""

    name: str
    run: Callable[[], None]
    leaves: Path | None


def _paint() -> None:
    for pictures in (TEST, SMALL, LARGE):
        pictures.paint_all()


def _teach_text() -> None:
    text_encoder.make_tokenizer()
    on_all_cores(text_encoder.work)


STAGES = (
    Stage("paint", _paint, LARGE.path.with_suffix(".done")),
    Stage("autoencoder", lambda: on_all_cores(autoencoder.work), autoencoder.FINAL),
    Stage("text", _teach_text, text_encoder.TAUGHT),
    Stage("latents-128", TINY_LATENTS.encode, TINY_LATENTS.done),
    Stage("unet-128", lambda: on_all_cores(denoiser.TINY.work), denoiser.TINY.leaves),
    Stage("latents-256", SMALL_LATENTS.encode, SMALL_LATENTS.done),
    Stage("unet-256", lambda: on_all_cores(denoiser.MIDDLE.work), denoiser.MIDDLE.leaves),
    Stage("latents-512", LARGE_LATENTS.encode, LARGE_LATENTS.done),
    Stage("unet-512", lambda: on_all_cores(denoiser.LAST.work), denoiser.LAST.leaves),
    Stage("unet-finish", lambda: on_all_cores(adversarial.FINISH.work), adversarial.FINISH.leaves),
    Stage("classifier", lambda: on_all_cores(classifier.work), classifier.FINAL),
    Stage("checker", lambda: on_all_cores(safety_checker.work), safety_checker.FINAL),
    Stage("export", lambda: export.export(SHIPPED), None),
    Stage("evaluate", lambda: evaluate.report(SHIPPED), None),
    Stage("sheets", lambda: contact_sheet.contact_sheet(SHIPPED, SHEET), None),
)


def main(wanted: list[str]) -> None:
    if unknown := set(wanted) - {stage.name for stage in STAGES}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; stages: {', '.join(stage.name for stage in STAGES)}")
    WORK.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if wanted and stage.name not in wanted:
            continue
        if stage.leaves is not None and stage.leaves.exists():
            print(f"{stage.name}: done before", flush=True)
            continue
        began = time.monotonic()
        stage.run()
        print(f"{stage.name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
