"""What a section of settings is made of: the types of values, the setting itself, and the check of both."""

import dataclasses
import sys
import typing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class SettingsError(ValueError):
    """A setting with an impossible value; the message says which, and what is possible."""


FINITE = sys.float_info.max
Port = Annotated[int, Meta(ge=0, le=65535)]
Side = Annotated[int, Meta(ge=64, le=8192)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0, le=FINITE)]
Minutes = Annotated[float, Meta(ge=0, le=525_600)]
Wait = Annotated[float, Meta(ge=0.05, le=FINITE)]  # with less no network could do it; with 0 every call would fail


def setting(default: Any, why: str) -> Any:
    """Return a section's field. `why`: what it is and the reason for its default; the text of `--help`."""
    return dataclasses.field(default=default, metadata={"help": why})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A frozen group of settings which checks its values when it is made."""

    def __post_init__(self) -> None:
        """Check each field against its type. Raises `SettingsError`."""
        for name, rule in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, rule)
            except msgspec.ValidationError as error:
                raise SettingsError(f"{name.replace('_', '-')}: {_fault(value, rule)}") from error


def _fault(value: object, rule: Any) -> str:
    """Say what is wrong with a value that does not fit its type, and what would fit."""
    if typing.get_origin(rule) is Literal:
        return f"{value!r} is none of {', '.join(typing.get_args(rule))}"
    bounded = next(iter(typing.get_args(rule)), rule) if type(None) in typing.get_args(rule) else rule
    [bounds] = getattr(bounded, "__metadata__", [None])
    if bounds is None or not isinstance(value, int | float):
        return f"{value!r} is not of type {getattr(bounded, '__origin__', bounded).__name__}"
    highest = None if bounds.le == FINITE else bounds.le
    return f"{value} is out of bounds; " + (f"at least {bounds.ge}" if highest is None else f"{bounds.ge} to {highest}")
