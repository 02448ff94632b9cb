"""Train the demo model from scratch: paint pictures, train the networks, export and evaluate the result.

    python -m training [STAGE …]        without arguments: every stage, in order

A stage with a result is skipped; an interrupted one continues from its checkpoint. `export`, `evaluate` and `sheets`
run every time. Working files are in `.cache/demo_model`.
"""

import argparse
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
    """One step of the training. `leaves`: the file whose presence marks it as done; None: run every time."""

    name: str
    run: Callable[[argparse.Namespace], None]
    leaves: Path | None


def _paint(_: argparse.Namespace) -> None:
    for pictures in (TEST, SMALL, LARGE):
        pictures.paint_all()


def _teach_text(_: argparse.Namespace) -> None:
    text_encoder.make_tokenizer()
    on_all_cores(text_encoder.work)


STAGES = (
    Stage("paint", _paint, LARGE.path.with_suffix(".done")),
    Stage("autoencoder", lambda _: on_all_cores(autoencoder.work), autoencoder.FINAL),
    Stage("text", _teach_text, text_encoder.TAUGHT),
    Stage("latents-128", lambda _: TINY_LATENTS.encode(), TINY_LATENTS.done),
    Stage("unet-128", lambda _: on_all_cores(denoiser.TINY.work), denoiser.TINY.leaves),
    Stage("latents-256", lambda _: SMALL_LATENTS.encode(), SMALL_LATENTS.done),
    Stage("unet-256", lambda _: on_all_cores(denoiser.MIDDLE.work), denoiser.MIDDLE.leaves),
    Stage("latents-512", lambda _: LARGE_LATENTS.encode(), LARGE_LATENTS.done),
    Stage("unet-512", lambda _: on_all_cores(denoiser.LAST.work), denoiser.LAST.leaves),
    Stage("unet-finish", lambda _: on_all_cores(adversarial.FINISH.work), adversarial.FINISH.leaves),
    Stage("classifier", lambda _: on_all_cores(classifier.work), classifier.FINAL),
    Stage("checker", lambda _: on_all_cores(safety_checker.work), safety_checker.FINAL),
    Stage("export", lambda asked: export.export(asked.folder), None),
    Stage("evaluate", lambda asked: evaluate.report(asked.folder), None),
    Stage("sheets", lambda asked: contact_sheet.contact_sheet(asked.folder, asked.sheet), None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"one of {', '.join(stage.name for stage in STAGES)}"
    )
    parser.add_argument(
        "--folder", type=Path, default=SHIPPED, help="folder to export the model to, and to evaluate (%(default)s)"
    )
    parser.add_argument("--sheet", type=Path, default=SHEET, help="file to write the contact sheet to (%(default)s)")
    asked = parser.parse_args()
    if unknown := set(asked.stages) - {stage.name for stage in STAGES}:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}")
    WORK.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if asked.stages and stage.name not in asked.stages:
            continue
        if stage.leaves is not None and stage.leaves.exists():
            print(f"{stage.name}: done before", flush=True)
            continue
        began = time.monotonic()
        stage.run(asked)
        print(f"{stage.name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
