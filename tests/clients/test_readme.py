"""The lines of README and docs/, run as they stand but for ports and file names, or parsed where they can't be run."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.arguments import command_line
from tests.clients.kit import JS, install_javascript, node
from tests.support.server_process import clean_env

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([ROOT / "README.md", ROOT / "UPGRADING.md", *ROOT.glob("docs/*.md")])
}


def blocks(language, *names):
    """The fenced blocks in one language, of some pages or all."""
    text = "\n".join(PAGES[name] for name in names or PAGES)
    return re.findall(rf"^```{language}\n(.*?)```", text, re.DOTALL | re.MULTILINE)


def here(text, server):
    """A block with its addresses replaced by the server's."""
    return text.replace("localhost:8443", server.tls_host).replace("localhost:8000", server.host)


def run(command, cwd, **env):
    """What the command printed."""
    done = subprocess.run(command, cwd=cwd, env=clean_env(env), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md"])
def test_the_python_lines_work_with_the_exported_variables(page, instant, tmp_path):
    [exports] = [block for block in blocks("sh", page) if "FAL_RUN_HOST" in block]
    [program] = blocks("python", "docs/clients.md")
    exports = here(exports, instant).replace("~/.local/share/fourstep", str(instant.data_dir))
    exports = "\n".join(line for line in exports.splitlines() if line.startswith("export"))

    url = run(["sh", "-c", f'{exports}\nexec "$0" -c "$1"', sys.executable, program], tmp_path)

    assert url.startswith(f"{instant.tls_url}/cdn/files/")


def test_the_javascript_lines_work_through_the_proxy(instant, tmp_path):
    install_javascript()
    [program] = [block for block in blocks("js") if "fal.subscribe" in block]
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    (tmp_path / "program.mjs").write_text(here(program, instant))

    url = run([node(), "--no-warnings", "program.mjs"], tmp_path)

    assert url.startswith(f"{instant.url}/cdn/files/")


def test_the_curl_lines_work(instant, tmp_path):
    [line] = [block for block in blocks("sh") if block.startswith("curl")]

    assert '"images":[{"url":' in run(["sh", "-c", here(line, instant)], tmp_path)


def test_the_lines_for_realtime_lead_to_the_server(instant, picture, tmp_path):
    """They stand before a program of fal's client, which knows nothing of them."""
    [lines] = [block for block in blocks("js") if "WebSocket" in block]
    install_javascript()
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    (tmp_path / "kit.mjs").write_text((JS / "kit.mjs").read_text())
    (tmp_path / "program.mjs").write_text(here(lines, instant) + (JS / "realtime.mjs").read_text())

    options = json.dumps({"proxy": f"{instant.url}/api/fal/proxy"})
    said = run([node(), "--no-warnings", "program.mjs", options], tmp_path, PICTURE=picture)

    [results] = re.findall(r"^say (.*)$", said, re.MULTILINE)
    assert [result["request_id"] for result in json.loads(results)["results"]] == ["one", "two"]


# Programs that lines in the documents start and that no test can: what they are given is not looked at.
OTHERS = {"cd", "curl", "export", "git", "mkdir", "pip", "rm", "sudo"}


def lines():
    """Every line of the shell blocks, without comments."""
    for block in blocks("sh"):
        for line in re.sub(r"\\\n|(?<=-d )'.*?'", " ", block, flags=re.DOTALL).splitlines():
            if said := line.partition("#")[0].strip().rstrip("&").strip():
                yield from said.split(" && ")


def inline():
    """Every command of ours in code marks."""
    for page in PAGES.values():
        text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
        yield from re.findall(r"`((?:fourstep|make) [a-z][^`…]*)`", text)


def fault(line):
    """What is wrong with a command line; "" for a good one."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, arguments = words[0].rpartition("/")[2] if "bin/" in words[0] else words[0], words[1:]
    match program:
        case "fourstep":
            return "" if parses(arguments) else "does not parse"
        case "make":
            targets = [word for word in arguments if "=" not in word]
            return "" if all(f"\n{target}:" in f"\n{MAKEFILE}" for target in targets) else "no such target"
        case "python3" if arguments[0] == "-m":
            return "" if importlib.util.find_spec(arguments[1]) else "no such module"
    return "" if words[0] in OTHERS or program in OTHERS else "an unknown program"


MAKEFILE = re.sub(
    r"^([a-z -]+):",
    lambda match: ":\n".join(match[1].split()) + ":",
    (ROOT / "Makefile").read_text(),
    flags=re.MULTILINE,
)


def parses(arguments):
    """Whether the command line takes these; COMMAND stands for any command, one without flags may lack what follows."""
    if arguments[:1] == ["COMMAND"]:
        return True
    if not any(word.startswith("-") for word in arguments):
        arguments = [*arguments, "--help"]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return callable(command_line().parse_args(arguments).run)
    except SystemExit as ended:
        return not ended.code


@pytest.mark.parametrize("line", sorted({*lines(), *inline()}))
def test_every_command_line_is_one_that_there_is(line):
    assert fault(line) == ""


@pytest.mark.parametrize(
    "line",
    [
        "fourstep srve",
        "fourstep serve --prot 8000",
        "venv/bin/fourstep keys ad my-app",
        "FAL_KEY=a fourstep serve --max-batch none",
        "make dmeo",
        "python3 -m pipp download",
        "fuorstep serve",
    ],
)
def test_a_misspelt_command_line_is_found(line):
    assert fault(line) != ""


def test_the_versions_that_the_tables_name_are_run():
    folder = Path(__file__).parent
    pins = [folder / "js/package.json", folder.parents[1] / "constraints.txt", *folder.glob("*.txt")]
    pinned = set(re.findall(r"\d+\.\d+\.\d+", "\n".join(file.read_text() for file in pins)))
    rows = [row for row in PAGES["docs/clients.md"].splitlines() if row.startswith("|") and "| run: " in row]

    named = {version for row in rows for version in re.findall(r"\d+\.\d+\.\d+", row.partition("| run: ")[2])}
    assert named - pinned == set()
    assert len(named) > 10
