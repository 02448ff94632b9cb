"""The command `fourstep`: parse, then run the command, whose module is imported only now."""

import sys
from collections.abc import Callable, Sequence

_SYSTEMS = ("linux", "darwin")

COMPILE = (
    "fourstep: --compile (FOURSTEP_COMPILE) does nothing any more, and the version after this refuses it."
    " Hint: leave it out; graphs of the usual sizes are captured without it"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exit 0, or non-zero with one line on stderr that says what to do."""
    if sys.platform not in _SYSTEMS:
        sys.exit(f"fourstep runs on Linux, macOS and WSL 2, the Linux in Windows; this is {sys.platform}")
    # Imported here because some of it is not there on other systems (`fcntl`, `resource`).
    from server.cli.arguments import command_line  # noqa: PLC0415
    from server.environment import FIELDS, load  # noqa: PLC0415
    from server.settings import SettingsError  # noqa: PLC0415

    parser = command_line()
    arguments = vars(parser.parse_args(argv))
    run: Callable[..., int] | None = arguments.pop("run")
    if run is None:
        parser.print_help()
        sys.exit()
    defaults = arguments.pop("defaults")
    own = {name: arguments.pop(name) for name in list(arguments) if name not in FIELDS}
    try:
        settings = load(arguments, defaults=defaults)
        if settings.compile:
            sys.stderr.write(f"{COMPILE}\n")
        sys.exit(run(settings, **own))
    except SettingsError as error:
        sys.exit(f"fourstep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
