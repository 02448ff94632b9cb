"""Makes the demo model from nothing: `python -m benchmarks.demo_model [STAGE …]`, without arguments every stage.

A stage whose result is there is skipped; one that was killed goes on from its checkpoint.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.demo_model import autoencoder, checker, classifier, evaluate, export, finish, sheets, text, unet
from benchmarks.demo_model.latents import LARGE_LATENTS, SMALL_LATENTS, TINY_LATENTS
from benchmarks.demo_model.recipe import LARGE, SHEET, SHIPPED, SMALL, TEST, WORK
from benchmarks.demo_model.training import on_all_cores


class Stage(NamedTuple):
    """Something to do, and the file that says it is done (None: done anew each time)."""

    name: str
    run: Callable[[], None]
    leaves: Path | None


def _paint() -> None:
    for pictures in (TEST, SMALL, LARGE):
        pictures.paint_all()


def _teach_text() -> None:
    text.make_tokenizer()
    on_all_cores(text.work)


STAGES = (
    Stage("paint", _paint, LARGE.path.with_suffix(".done")),
    Stage("autoencoder", lambda: on_all_cores(autoencoder.work), autoencoder.FINAL),
    Stage("text", _teach_text, text.TAUGHT),
    Stage("latents-128", TINY_LATENTS.encode, TINY_LATENTS.done),
    Stage("unet-128", lambda: on_all_cores(unet.TINY.work), unet.TINY.leaves),
    Stage("latents-256", SMALL_LATENTS.encode, SMALL_LATENTS.done),
    Stage("unet-256", lambda: on_all_cores(unet.MIDDLE.work), unet.MIDDLE.leaves),
    Stage("latents-512", LARGE_LATENTS.encode, LARGE_LATENTS.done),
    Stage("unet-512", lambda: on_all_cores(unet.LAST.work), unet.LAST.leaves),
    Stage("unet-finish", lambda: on_all_cores(finish.FINISH.work), finish.FINISH.leaves),
    Stage("classifier", lambda: on_all_cores(classifier.work), classifier.FINAL),
    Stage("checker", lambda: on_all_cores(checker.work), checker.FINAL),
    Stage("export", lambda: export.export(SHIPPED), None),
    Stage("evaluate", lambda: evaluate.report(SHIPPED), None),
    Stage("sheets", lambda: sheets.contact_sheet(SHIPPED, SHEET), None),
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
