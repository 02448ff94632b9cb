"""The built-in demo model: Stable Diffusion 1.5's classes and layout, small enough for any laptop."""

from importlib import resources
from pathlib import Path

from pipelines.errors import CheckpointError
from pipelines.hub import layout

PACKAGED = Path(str(resources.files("pipelines"))) / "demo_model"
NOTICE = (
    "DEMO MODEL: it draws seven kinds of landscape, simply, and nothing else. "
    "`fourstep pull` fetches Stable Diffusion, and `fourstep serve --model sd15` serves it."
)


def folder(packaged: Path = PACKAGED) -> Path:
    """Return the demo model's folder, in diffusers layout. Raises `CheckpointError` if this installation lacks it."""
    if not (packaged / layout.INDEX).exists():
        raise CheckpointError(
            f"The demo model is not in this installation: {packaged} is missing or incomplete.",
            "Install fourstep again, or name another model: --model.",
        )
    return packaged
