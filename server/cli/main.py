"""The command `fourstep`: parse, then hand over. Everything heavy is imported by the command that needs it."""

import argparse
import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from server import settings as settings_module
from server.settings import FIELDS, SECTIONS, Settings, SettingsError

if TYPE_CHECKING:
    from server.access import api_keys

_EPILOG = """\
try it:      fourstep demo
serve:       fourstep serve --model auto
real model:  fourstep pull && fourstep serve
"""

# Settings that a command shows beside `--data-dir`, which every command takes.
_MODEL_SETTINGS = ("model", "lora", "vae", "safety_checker", "device", "dtype")

# What `fourstep keys limit` sets.
_KEY_LIMITS = {"calls": "runs and streams at once", "queued": "jobs that wait", "sessions": "open realtime sockets"}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script: exits 0, or non-zero with one line on stderr that says what to do."""
    arguments = vars(command_line().parse_args(argv))
    run: Callable[..., int] = arguments.pop("run")
    own = {name: arguments.pop(name) for name in list(arguments) if name not in FIELDS}
    try:
        sys.exit(run(settings_module.load(arguments), **own))
    except SettingsError as error:
        sys.exit(f"fourstep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    """Says at a mistake where to look, and finds it in the command that it was made in."""

    def parse_known_args(self, *arguments: Any, **options: Any) -> tuple[Any, list[str]]:
        """As the base class, but nothing is left over for the command's parser to complain of."""
        found, rest = super().parse_known_args(*arguments, **options)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        super().error(f"{message}. `{self.prog} --help` says what there is")


def command_line() -> argparse.ArgumentParser:
    """Every command with its settings."""
    parser = _Parser(
        prog="fourstep",
        description="Self-hosted, drop-in replacement for fal.ai's fal-ai/lcm-sd15-i2i.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], about: str, settings: Sequence[str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        _add_settings(sub, settings)
        return sub

    command("serve", _serve, "serve the model over HTTP", list(FIELDS)).usage = "fourstep serve [SETTING …]"
    command("pull", _pull, "fetch the weights; afterwards no network is needed", _MODEL_SETTINGS)
    demo = command("demo", _demo, "start a server, send it one request through fal's own client, stop", _MODEL_SETTINGS)
    demo.add_argument("--output", default="demo-output.jpg", help="where the picture goes (default: %(default)s)")
    command(
        "doctor", _doctor, "check driver, memory, disk, weights, port, certificates", (*_MODEL_SETTINGS, "host", "port")
    )
    bench = command(
        "bench", _bench, "measure this box; the last line is JSON", (*_MODEL_SETTINGS, "max_batch", "compile")
    )
    bench.add_argument(
        "--requests", type=_count, default=20, help="to send, alone and then together (default: %(default)s)"
    )
    bench.add_argument("--clients", type=_count, default=8, help="requests in flight at once (default: %(default)s)")
    keys = command("keys", _keys, "add, list, limit and revoke API keys", ())
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="whose it is")
    listing = actions.add_parser("list", help="every key, without its secret")
    listing.set_defaults(name="")
    revoke = actions.add_parser("revoke", help="let a key in no more")
    revoke.add_argument("name", help="its name or id")
    limit = actions.add_parser("limit", help="bound what a key may have in hand at once; a running server obeys")
    limit.add_argument("name", help="its name or id")
    for what, about in _KEY_LIMITS.items():
        limit.add_argument(f"--{what}", type=_limit, metavar="N", help=f"{about}; 0: the share that --key-share gives")
    for action in (add, listing, revoke, limit):  # --data-dir may stand behind the action too
        _add_setting(action, "data_dir", default=argparse.SUPPRESS)
    signing = command("webhook-keys", _webhook_keys, "list and rotate the keys that sign webhooks", ())
    actions = signing.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, about in (
        ("list", "every key that is published, and from when it signs"),
        ("rotate", "publish a new key, which signs from tomorrow; the old one stays published for a day longer"),
    ):
        _add_setting(actions.add_parser(name, help=about), "data_dir", default=argparse.SUPPRESS)
    command("certs", _certs, "make the local CA and certificate; how to trust them", ("tls_names",))
    hosts = command("hosts", _hosts, "the hosts-file lines that send fal's host names to a server", ())
    hosts.add_argument("--address", default="127.0.0.1", help="the server's IP address (default: %(default)s)")
    hosts.add_argument("--with-site", action="store_true", help="fal.ai too: its web site is then out of reach")
    return parser


def _limit(written: str) -> int:
    if not written.isdecimal():
        raise argparse.ArgumentTypeError(f"{written!r} is no whole number")
    return int(written)


def _count(written: str) -> int:
    if not written.isdecimal() or int(written) < 1:
        raise argparse.ArgumentTypeError(f"{written!r} is no whole number above 0")
    return int(written)


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Flags for some settings, and for `data_dir`, in the groups that all of them form."""
    group: argparse._ActionsContainer = parser
    for name in FIELDS:
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        if name in names or name == "data_dir":
            _add_setting(group, name)


def _add_setting(parser: argparse._ActionsContainer, name: str, default: str | None = None) -> None:
    field = FIELDS[name]
    flag = "--" + name.replace("_", "-")
    shown = "none" if field.default in {None, ""} else field.default
    text = f"{field.metadata['help']} (default: {shown}; ${settings_module.PREFIX}{name.upper()})".replace("%", "%%")
    if field.type is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        return

    def value(written: str) -> object:
        try:
            return settings_module.parse(name, written)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from error  # argparse says the flag itself

    parser.add_argument(flag, type=value, default=default, metavar=name.rsplit("_", 1)[-1].upper(), help=text)


def _serve(settings: Settings) -> int:
    from server.cli import serve

    return serve.run(settings)


def _demo(settings: Settings, output: str) -> int:
    from server.cli import demo

    if settings.model == Settings.model:
        settings = dataclasses.replace(settings, model="auto")
    return demo.run(settings, output)


def _pull(settings: Settings) -> int:
    from server.cli import device_tools

    return device_tools.run("pull", settings)


def _doctor(settings: Settings) -> int:
    from server.cli import device_tools

    return device_tools.run("doctor", settings, "--host", settings.host, "--port", str(settings.port))


def _bench(settings: Settings, requests: int, clients: int) -> int:
    from server.cli import device_tools

    return device_tools.run("bench", settings, f"--requests={requests}", f"--clients={clients}")


def _keys(settings: Settings, action: str, name: str, **limits: int | None) -> int:
    from server.access import api_keys

    file = api_keys.path(settings)
    with _data_dir(settings, made=action == "add"):
        if action == "add":
            _print(f"{api_keys.add(file, name)}\n\nThis is shown once. Clients: export FAL_KEY=…")
        elif action == "revoke":
            _print(f"revoked {api_keys.revoke(file, name).id}")
        elif action == "limit":
            given = {what: count for what, count in limits.items() if count is not None}
            _print(_shown(api_keys.limit(file, name, **given)))
        else:
            for key in api_keys.read(file):
                _print(_shown(key))
    return 0


def _shown(key: "api_keys.Key") -> str:
    own = [f"{what} {count}" for what in _KEY_LIMITS if (count := getattr(key, what))]
    state = "revoked" if key.revoked else "in use "
    return f"{key.id}  {key.created}  {state}  {key.name}" + (f"  ({', '.join(own)})" if own else "")


def _webhook_keys(settings: Settings, action: str) -> int:
    from server.webhooks.signing_keys import SigningKeys

    file, rotates = settings.webhook_keys_path, action == "rotate"
    with _data_dir(settings, made=rotates):
        if not rotates and not file.exists():
            raise SettingsError(f"there is no {file} yet; the first `fourstep serve` with this --data-dir makes a key")
        keys = SigningKeys(file)
        for key in [keys.rotate()] if rotates else keys.published():
            since = datetime.datetime.fromtimestamp(key.signs_from, datetime.UTC).isoformat(" ", "seconds")
            _print(f"{key.jwk['x']}  signs from {since if key.signs_from else 'the beginning'}")
    return 0


def _certs(settings: Settings) -> int:
    from server.transport import takeover, tls

    with _data_dir(settings, made=True):
        files = tls.ensure(settings)
    _print(f"CA: {files.ca}\nCertificate: {files.cert}\n\n{takeover.trust_instructions(files.ca, files.bundle)}")
    return 0


@contextlib.contextmanager
def _data_dir(settings: Settings, *, made: bool) -> Iterator[None]:
    """Around what works on the data directory, `made` first where there is none: faults of the disk become one line."""
    from server import data_dir

    try:
        if made:
            data_dir.prepare(settings.data_dir)
        yield
    except OSError as error:
        where = error.filename or settings.data_dir
        raise SettingsError(
            f"data-dir: {where}: {error.strerror}. Mend: let this user write there, or choose another --data-dir"
        ) from error


def _hosts(settings: Settings, address: str, *, with_site: bool) -> int:
    from server.transport import takeover

    try:
        _print(takeover.hosts_lines(address, with_site=with_site))
    except ValueError as error:
        raise SettingsError(f"--address: {error}") from error
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
