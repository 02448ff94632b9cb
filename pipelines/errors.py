"""What can go wrong before a model runs. (What can go wrong with a request is in `pipelines.messages`.)"""


class SetupError(Exception):
    """The model does not run. `reason` and `hint` are whole sentences for the operator."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason} {hint}")
        self.reason = reason
        self.hint = hint


class NoRoomError(SetupError):
    """The memory of `device` ran out. Trying again helps once other programs have left it."""

    def __init__(self, device: str) -> None:
        super().__init__(
            f"There is not enough memory for the model (device: {device}).",
            "Stop other programs that use it, or start with --vae tiny or on another --device.",
        )


class CheckpointError(SetupError):
    """The model can't be had; trying again changes nothing until somebody does what `hint` says."""


class NotOnDiskError(CheckpointError):
    """Weights that could perhaps be fetched, but are not here."""


class OnlyPicklesError(CheckpointError):
    """Weights that are there, but in a form that runs whatever code is in it when it is loaded."""


class UnreachableError(CheckpointError):
    """The hub does not answer, or may not be asked."""
