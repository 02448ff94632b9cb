"""The parts of docs/ that the program itself knows: settings, commands, routes, metrics.

    python .ci/documents.py    write them anew; starts a server without a model, for its metrics

A part stands between `<!-- NAME: by make documents -->` and `<!-- end -->`; what is around it is written by hand.
"""

import argparse
import json
import re
import tempfile
import textwrap
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.routing import Route

from server.app import ROUTES
from server.cli.arguments import command_line
from server.cli.launcher import Server, running
from server.environment import FIELDS, PREFIX, SECTIONS
from server.fal.endpoints import LCM_SD15_I2I

DOCS = Path(__file__).parent.parent / "docs"
PLACES = {
    "settings": DOCS / "settings.md",
    "commands": DOCS / "start.md",
    "routes": DOCS / "clients.md",
    "metrics": DOCS / "metrics.md",
}
WIDTH = 120
DAY_S = 86400
MIB = 1024**2


def main() -> None:
    """Write every part."""
    with (
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), "--model", "instant", log=log) as server,
    ):
        text = exposition(server)
    for name, part in parts(text).items():
        PLACES[name].write_text(with_part(PLACES[name].read_text(), name, part))


def parts(exposition: str) -> dict[str, str]:
    """Return each part by its name; `exposition`: a server's metrics, in Prometheus' text format."""
    return {"settings": settings(), "commands": commands(), "routes": routes(), "metrics": metrics(exposition)}


def with_part(page: str, name: str, part: str) -> str:
    """Return the page with this part in its place. Raises `ValueError` for a page without the part's marks."""
    begin, end = f"<!-- {name}: by make documents -->\n", "<!-- end -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"no place for {name}: the page lacks {begin.strip()} … {end}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def settings() -> str:
    """Return every setting by section, with flag, variable, default and reason."""
    lines = []
    for section, title in SECTIONS.items():
        lines += ["", f"## {title.capitalize()}", ""]
        for name in section.__annotations__:
            field = FIELDS[name]
            flag = "--" + name.replace("_", "-")
            if field.type is bool:
                flag += f"`, `--no-{flag[2:]}"
            lines.append(item(f"`{flag}`, `{PREFIX}{name.upper()}`, {default(name)}", field.metadata["help"]))
    return "\n".join(lines).lstrip() + "\n"


def default(name: str) -> str:
    """Return a setting's default in words, with a reader's unit where the number is large."""
    value = FIELDS[name].default
    if value in {None, ""}:
        return "none by default"
    if isinstance(value, bool):
        return f"{'on' if value else 'off'} by default"
    shown = str(value).removesuffix(".0")
    if "bytes" in name and value >= MIB and not value % MIB:
        return f"default `{shown}` ({value // MIB} MiB)"
    if isinstance(value, float) and value >= DAY_S:
        return f"default `{shown}` ({value / DAY_S:g} days)"
    return f"default `{shown}`"


def commands() -> str:
    """Return every command with its own arguments; settings have a page of their own."""
    return "".join(f"{item(f'`{usage}`', about)}\n" for usage, about in _commands(command_line()))


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    [branches] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help or "" for choice in branches._choices_actions}
    for name, sub in branches.choices.items():
        if any(isinstance(action, argparse._SubParsersAction) for action in sub._actions):
            yield from _commands(sub)
            continue
        own = [action for action in sub._actions if action.dest not in {*FIELDS, "help"}]
        usage = [sub.prog, *(action.dest.upper() for action in own if not action.option_strings)]
        flags = [f"`{action.option_strings[0]}`: {_help(action)}" for action in own if action.option_strings]
        yield " ".join(usage), "; ".join([helps[name], *flags])


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def routes() -> str:
    """Return every route with its methods and what it answers with; the first line of its function's docstring."""
    lines = []
    for route in ROUTES:
        methods = sorted(route.methods - {"HEAD"}) if isinstance(route, Route) else ["websocket"]
        kind = "any method" if len(methods) > 2 else ", ".join(methods)
        about = route.endpoint.__doc__.partition("\n")[0].removeprefix("Answer with ")
        path = re.sub(r"\{(\w+)(:path)?\}", lambda match: match[1].upper(), route.path)
        lines.append(item(f"`{path}`, {kind}", about[0].lower() + about[1:].rstrip(".")))
    return "\n".join(lines) + "\n"


def metrics(exposition: str) -> str:
    """Return every metric with its kind, its labels and what it counts."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE))
    lines = []
    for name, about in re.findall(r"^# HELP (\S+) (.*)$", exposition, re.MULTILINE):
        samples = re.findall(rf"^{name}(?:_bucket|_sum|_count)?\{{(.*?)\}} ", exposition, re.MULTILINE)
        labels = sorted({label for sample in samples for label in re.findall(r'(\w+)="', sample)} - {"le"})
        by = f" by {', '.join(f'`{label}`' for label in labels)}" if labels else ""
        lines.append(item(f"`{name}`, {kinds[name]}{by}", about))
    return "\n".join(sorted(lines)) + "\n"


def exposition(server: Server) -> str:
    """Return the metrics of a server that has made a picture, so that every one has its labels."""
    sample = "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"
    call: Mapping[str, Any] = {"prompt": "a beach", "image_url": sample, "sync_mode": True}
    body, headers = json.dumps(call).encode(), {"Content-Type": "application/json"}
    url = f"{server.url}/run/{LCM_SD15_I2I.id}"
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).close()  # noqa: S310 - our own
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def item(head: str, text: str) -> str:
    """Return one item of a list, wrapped; no line is broken inside code."""
    text = re.sub(r"\*(?![^`]*`)", r"\\*", text)
    kept = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), f"- {head}: {text}")
    lines = textwrap.wrap(kept, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


if __name__ == "__main__":
    main()
