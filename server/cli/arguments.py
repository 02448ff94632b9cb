"""The command line: every command, its flags and their help, in argparse's terms."""

import argparse
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from server.cli.output import show
from server.environment import FIELDS, PREFIX, SECTIONS, did_you_mean, parse, version
from server.settings import Settings, SettingsError

_EPILOG = """\
try it:      fourstep demo
serve:       fourstep serve --model auto
real model:  fourstep pull && fourstep serve
"""

# Settings that a command shows beside `--data-dir`, which every command takes.
MODEL_SETTINGS = ("model", "lora", "vae", "safety_checker", "device", "dtype")

# Defaults of commands that have to work on a machine as it comes, with or without an accelerator and real weights.
_AS_IT_COMES = {"model": "auto"}

# What `fourstep keys limit` sets.
KEY_LIMITS = {"calls": "runs and streams at once", "queued": "jobs that wait", "sessions": "open realtime sockets"}


class _Parser(argparse.ArgumentParser):
    """Says first what is wrong and what is near it, then the usage, in the command where the mistake was made."""

    @override
    def parse_known_args(self, *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
        found, rest = super().parse_known_args(*arguments, **options)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            words = [word.partition("=")[0] for word in rest if word.startswith("--")]
            near = next(filter(None, (did_you_mean(word, flags, "--") for word in words)), "")
            self.error(f"unrecognized arguments: {' '.join(rest)}{near}")
        return found, rest

    @override
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = ", ".join(action.choices)
            near = did_you_mean(value, action.choices) or f"; there are {known}, and flags come after them"
            self.error(f"{value!r} is no {str(action.metavar).lower()}{near}")

    @override
    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())
        end = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{end} `{self.prog} --help` says what there is\n{usage}\n")


class _Version(argparse.Action):
    """Print the version and exit. As argparse's own, but the version is looked up only now."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        show(f"fourstep {version()}")
        parser.exit()


def command_line() -> argparse.ArgumentParser:
    """Return the parser of every command with its settings."""
    parser = _Parser(
        prog="fourstep",
        description="Self-hosted, drop-in replacement for fal.ai's fal-ai/lcm-sd15-i2i.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="say which version it is"
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(
        name: str, run: str, about: str, settings: Sequence[str], defaults: Mapping[str, Any] = {}
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=functools.partial(_run, run), defaults=defaults)
        _add_settings(sub, settings, defaults)
        sub.usage = f"fourstep {name} [SETTING …]"
        return sub

    command("serve", "serve:run", "serve the model over HTTP", list(FIELDS))
    command("pull", "tools:pull", "fetch the weights; afterwards no network is needed", MODEL_SETTINGS)
    demo = command(
        "demo",
        "demo:run",
        "start a server, send it one request through fal's own client, stop",
        MODEL_SETTINGS,
        _AS_IT_COMES,
    )
    demo.add_argument("--output", default="demo-output.jpg", help="where the picture goes (default: %(default)s)")
    command(
        "doctor",
        "tools:doctor",
        "check driver, memory, disk, weights, port, certificates, hosts file",
        (*MODEL_SETTINGS, "host", "port"),
        _AS_IT_COMES,
    )
    bench = command(
        "bench",
        "tools:bench",
        "measure this box; the last line is JSON",
        (*MODEL_SETTINGS, "max_batch", "graphs", "compile"),
    )
    bench.add_argument(
        "--seconds",
        type=_count,
        default=20,
        help="to measure for; what takes longer is left out (default: %(default)s)",
    )
    bench.add_argument(
        "--requests", type=_count, help="to send instead, alone and then together, however long that takes"
    )
    bench.add_argument("--clients", type=_count, default=8, help="requests in flight at once (default: %(default)s)")
    keys = command("keys", "keys:api_keys", "add, list, limit and revoke API keys", ())
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION", prog="fourstep keys")
    keys.usage = "fourstep keys ACTION …"
    add = actions.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="whose it is")
    listing = actions.add_parser("list", help="every key, without its secret")
    listing.set_defaults(name="")
    revoke = actions.add_parser("revoke", help="let a key in no longer")
    revoke.add_argument("name", help="its name or id")
    limit = actions.add_parser("limit", help="bound what a key may have in flight at once; a running server obeys")
    limit.add_argument("name", help="its name or id")
    for what, about in KEY_LIMITS.items():
        limit.add_argument(f"--{what}", type=_limit, metavar="N", help=f"{about}; 0: the share that --key-share gives")
    for action in (add, listing, revoke, limit):  # --data-dir may stand behind the action too
        _add_data_dir(action)
    signing = command("webhook-keys", "keys:webhook_keys", "list and rotate the keys that sign webhooks", ())
    actions = signing.add_subparsers(dest="action", required=True, metavar="ACTION", prog="fourstep webhook-keys")
    signing.usage = "fourstep webhook-keys ACTION …"
    for name, about in (
        ("list", "every key that is published, and from when it signs"),
        ("rotate", "publish a new key, which signs from tomorrow; the old one stays published for a day longer"),
    ):
        _add_data_dir(actions.add_parser(name, help=about))
    nodes = command("nodes", "nodes:nodes", "the servers that share a database", ("database", "database_patience"))
    nodes.add_argument("--json", action="store_true", help="as JSON")
    moving = ("database", "database_patience", "inline_bytes", "files")
    migrate = command("migrate", "nodes:migrate", "move all of one server to a database and files of several", moving)
    migrate.add_argument("--back", action="store_true", help="from there into the data folder, which has no jobs yet")
    certs = command("certs", "certs:certs", "make the local CA and certificate; how to trust them", ("tls_names",))
    certs.add_argument("--pem", action="store_true", help="certificate and key in one file too, for HAProxy")
    hosts = command("hosts", "certs:hosts", "the hosts-file lines that send fal's host names to a server", ())
    hosts.add_argument("--address", default="127.0.0.1", help="the server's IP address (default: %(default)s)")
    hosts.add_argument("--with-site", action="store_true", help="fal.ai too: its web site is then out of reach")
    return parser


def _run(command: str, settings: Settings, **own: Any) -> int:
    """Run `module:function` and return its exit status. Imports the module only now, so that `--help` stays instant."""
    module, _, function = command.partition(":")
    status: int = getattr(importlib.import_module(f"server.cli.{module}"), function)(settings, **own)
    return status


def _limit(written: str) -> int:
    if not written.isdecimal():
        raise argparse.ArgumentTypeError(f"{written!r} is no whole number")
    return int(written)


def _count(written: str) -> int:
    if not written.isdecimal() or int(written) < 1:
        raise argparse.ArgumentTypeError(f"{written!r} is no whole number above 0")
    return int(written)


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str], defaults: Mapping[str, Any]) -> None:
    """Add flags for some settings, and for `data_dir`, in one group per section. `defaults`: the command's own."""
    for section, title in SECTIONS.items():
        group = parser.add_argument_group(title)
        for name in section.__annotations__:
            if name in names or name == "data_dir":
                _add_setting(group, name, shown=defaults.get(name, FIELDS[name].default))


def _add_data_dir(action: argparse.ArgumentParser) -> None:
    """Add `--data-dir` to an action, whose command has it too: the one that is given counts."""
    _add_setting(action, "data_dir", shown=FIELDS["data_dir"].default, default=argparse.SUPPRESS)


def _add_setting(parser: argparse._ActionsContainer, name: str, shown: object, default: str | None = None) -> None:
    """Add the flag of a setting. `shown`: the default that its help names; `default`: argparse's."""
    field = FIELDS[name]
    flag = "--" + name.replace("_", "-")
    shown = "none" if shown in {None, ""} else shown
    text = f"{field.metadata['help']} (default: {shown}; ${PREFIX}{name.upper()})".replace("%", "%%")
    if field.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return

    def value(written: str) -> object:
        try:
            return parse(name, written)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from error  # argparse says the flag itself

    parser.add_argument(flag, type=value, default=default, metavar=name.rsplit("_", 1)[-1].upper(), help=text)
