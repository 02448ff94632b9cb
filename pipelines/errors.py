"""What can go wrong before a model runs. (What can go wrong with a request is in `pipelines.types`.)"""


class CheckpointError(Exception):
    """The model can't be had; trying again changes nothing until somebody does what `mend` says.

    `reason` and `mend` are whole sentences for the operator.
    """

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(f"{reason} {mend}")
        self.reason = reason
        self.mend = mend


class NotOnDiskError(CheckpointError):
    """Weights that could perhaps be fetched, but are not here."""


class UnreachableError(CheckpointError):
    """The hub does not answer, or may not be asked."""
