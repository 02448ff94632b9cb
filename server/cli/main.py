"""The command `fourstep`: parse, then run the command, whose module is imported only now."""

import sys
from collections.abc import Callable, Sequence

from server.cli.arguments import command_line
from server.environment import FIELDS, load
from server.settings import SettingsError

COMPILE = (
    "fourstep: --compile (FOURSTEP_COMPILE) does nothing any more, and the version after this refuses it."
    " Hint: leave it out; graphs of the usual sizes are captured without it"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exit 0, or non-zero with one line on stderr that says what to do."""
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
