"""The command `fourstep`: parse, then hand over. Everything heavy is imported by the command that needs it."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

from server import settings as settings_module
from server.settings import FIELDS, Settings, SettingsError

_EPILOG = """\
try it:      fourstep demo
serve:       fourstep serve --model auto
real model:  fourstep pull && fourstep serve
"""

# Settings that a command shows beside `--data-dir`, which every command takes.
_MODEL_SETTINGS = ("model", "lora", "vae", "safety_checker", "device", "dtype")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exits 0, or non-zero with one line on stderr that says what to do."""
    arguments = vars(_parser().parse_args(argv))
    run: Callable[..., int] = arguments.pop("run")
    own = {name: arguments.pop(name) for name in list(arguments) if name not in FIELDS}
    try:
        sys.exit(run(settings_module.load(arguments), **own))
    except SettingsError as error:
        sys.exit(f"fourstep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fourstep",
        description="Self-hosted, drop-in replacement for fal.ai's fal-ai/lcm-sd15-i2i.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], about: str, settings: Sequence[str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        for setting in (*settings, "data_dir"):
            _add_setting(sub, setting)
        return sub

    command("serve", _serve, "serve the model over HTTP", [name for name in FIELDS if name != "data_dir"])
    command("pull", _pull, "fetch the weights; afterwards no network is needed", _MODEL_SETTINGS)
    demo = command("demo", _demo, "start a server, send it one request through fal's own client, stop", _MODEL_SETTINGS)
    demo.add_argument("--output", default="demo-output.jpg", help="where the picture goes (default: %(default)s)")
    command("doctor", _doctor, "check driver, memory, disk, weights, port, certificates", (*_MODEL_SETTINGS, "port"))
    return parser


def _add_setting(parser: argparse.ArgumentParser, name: str) -> None:
    field = FIELDS[name]
    flag = "--" + name.replace("_", "-")
    default = "none" if field.default in {None, ""} else field.default
    text = f"{field.metadata['help']} (default: {default}; ${settings_module.PREFIX}{name.upper()})".replace("%", "%%")
    if field.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return

    def value(written: str) -> object:
        try:
            return settings_module.parse(name, written)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser.add_argument(flag, type=value, default=None, metavar=name.rsplit("_", 1)[-1].upper(), help=text)


def _serve(settings: Settings) -> int:
    from server import serve

    return serve.run(settings)


def _demo(settings: Settings, output: str) -> int:
    from server import demo

    if settings.model == Settings.model:
        settings = dataclasses.replace(settings, model="auto")
    return demo.run(settings, output)


def _pull(settings: Settings) -> int:
    from server import device_tools

    return device_tools.run("pull", settings)


def _doctor(settings: Settings) -> int:
    from server import device_tools

    return device_tools.run("doctor", settings)
