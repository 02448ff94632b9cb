"""Where weights come from: the hub, a folder, a single file, or the built-in demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipelines.types import EngineConfig


class CheckpointError(Exception):
    """The weights can't be had: `reason` says why, `mend` what the operator should do."""

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(f"{reason} {mend}")
        self.reason = reason
        self.mend = mend


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded SD1.5-shaped model: modules in eval mode on `device` in `dtype`, gradients off, LoRA merged in.

    `vae` is an `AutoencoderKL` or an `AutoencoderTiny`; `safety_checker` a `StableDiffusionSafetyChecker` or None;
    `scheduler_config` the `scheduler_config.json` of the base; `name` is for people; `notice` what the operator must
    know of this model ("" for nothing).
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    safety_checker: Any | None
    scheduler_config: dict[str, Any]
    name: str
    notice: str
    device: torch.device
    dtype: torch.dtype


def load(config: EngineConfig, progress: Callable[[float, str], None]) -> Model:
    """The model that `config` names, ready to run; `progress` gets a fraction in 0…1 and what is being done.

    Raises `CheckpointError` when the weights can't be had.
    """
    raise NotImplementedError
