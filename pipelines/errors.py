"""Errors before a model runs, for the operator. Faults of single requests are `pipelines.messages.Failed`."""


class SetupError(Exception):
    """The model can't run. `reason` and `hint` are whole sentences for the operator."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason} {hint}")
        self.reason = reason
        self.hint = hint


class NoRoomError(SetupError):
    """The memory of `device` ran out. Trying again helps once other programs have released memory."""

    def __init__(self, device: str) -> None:
        super().__init__(
            f"There is not enough memory for the model (device: {device}).",
            "Stop other programs that use it, or start with --vae tiny or on another --device.",
        )


class CaptureFailedError(SetupError):
    """A function can't be captured as a CUDA graph. The process must end: torch's allocator may assert afterwards."""

    def __init__(self, what: str, error: Exception) -> None:
        words = str(error).partition("\n")[0]
        super().__init__(
            f"{what} can't be captured as CUDA graphs: {type(error).__name__}: {words}.",
            "--graphs off does without them, slower.",
        )


class CheckpointError(SetupError):
    """The model can't be loaded; trying again changes nothing until the operator does what `hint` says."""


class NotOnDiskError(CheckpointError):
    """The weights are not on disk. Perhaps they can be downloaded."""


class OnlyPicklesError(CheckpointError):
    """The weights exist only as pickles, which run the code in them when they are loaded."""


class UnreachableError(CheckpointError):
    """The hub does not answer, or the settings forbid asking it."""
