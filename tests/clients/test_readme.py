"""The README's own lines, run as they stand but for ports and file names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.arguments import command_line
from tests.clients.kit import JS, install_javascript, node
from tests.support.server_process import clean_env

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language):
    """The fenced blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def here(text, server):
    """A block with its addresses replaced by the server's."""
    return text.replace("localhost:8443", server.tls_host).replace("localhost:8000", server.host)


def run(command, cwd, **env):
    """What the command printed."""
    done = subprocess.run(command, cwd=cwd, env=clean_env(env), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_lines_work_with_the_exported_variables(instant, tmp_path):
    [exports] = [block for block in blocks("sh") if "FAL_RUN_HOST" in block]
    [program] = blocks("python")
    exports = here(exports, instant).replace("~/.local/share/fourstep", str(instant.data_dir))
    exports = "\n".join(line for line in exports.splitlines() if line.startswith("export"))

    url = run(["sh", "-c", f'{exports}\nexec "$0" -c "$1"', sys.executable, program], tmp_path)

    assert url.startswith(f"{instant.tls_url}/cdn/files/")


def test_the_javascript_lines_work_through_the_proxy(instant, tmp_path):
    install_javascript()
    [program] = blocks("js")
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    (tmp_path / "program.mjs").write_text(here(program, instant))

    url = run([node(), "--no-warnings", "program.mjs"], tmp_path)

    assert url.startswith(f"{instant.url}/cdn/files/")


def test_the_curl_lines_work(instant, tmp_path):
    [line] = [block for block in blocks("sh") if block.startswith("curl")]

    assert '"images":[{"url":' in run(["sh", "-c", here(line, instant)], tmp_path)


def commands():
    """Every `fourstep …` line of the README, without comments."""
    lines = [
        line.partition("#")[0].strip().rstrip("&").strip() for block in blocks("sh") for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("fourstep ")]


@pytest.mark.parametrize("line", commands())
def test_every_fourstep_line_parses(line):
    _, *words = shlex.split(line)

    assert callable(command_line().parse_args(words).run)


def test_every_make_target_of_the_readme_exists():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()

    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {name for name in named if f"\n{name}:" not in makefile} == set()


def test_the_versions_that_the_tables_name_are_run():
    folder = Path(__file__).parent
    pins = [folder / "js/package.json", folder.parents[1] / "constraints.txt", *folder.glob("*.txt")]
    pinned = set(re.findall(r"\d+\.\d+\.\d+", "\n".join(file.read_text() for file in pins)))
    rows = [row for row in README.splitlines() if row.startswith("|") and "| run: " in row]

    named = {version for row in rows for version in re.findall(r"\d+\.\d+\.\d+", row.partition("| run: ")[2])}
    assert named - pinned == set()
    assert len(named) > 10
