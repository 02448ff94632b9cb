"""For how long a stage may stay silent before its engine counts as hung. Pure."""

from __future__ import annotations

# A stage that takes five times its worst so far is stuck, not slow.
MARGIN = 5.0
# Nothing measured yet: kernels are chosen, perhaps compiled, and the model's pages come in from disk.
FIRST_S = 300.0


class SilenceBudget:
    """Remembers the worst seconds per pixel of each stage, by size of picture and in all."""

    def __init__(self) -> None:
        self._of_size: dict[tuple[str, int], float] = {}
        self._of_stage: dict[str, float] = {}

    def note(self, stage: str, pixels: int, images: int, seconds: float) -> None:
        """A stage took so long for so many images of `pixels` pixels each."""
        cost = seconds / (pixels * images)
        self._of_size[stage, pixels] = max(cost, self._of_size.get((stage, pixels), 0.0))
        self._of_stage[stage] = max(cost, self._of_stage.get(stage, 0.0))

    def allow_s(self, stage: str, pixels: int, images: int) -> float:
        """For how many seconds this stage may be silent. A size not seen before goes by the worst of the others."""
        cost = self._of_size.get((stage, pixels)) or self._of_stage.get(stage)
        return FIRST_S if cost is None else MARGIN * cost * pixels * images
