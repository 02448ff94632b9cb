"""The command line as a person meets it."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import tools
from server.environment import FIELDS
from server.settings import Settings
from server.transport.takeover import HOSTS_FILE_NAMES
from server.workers.launch import ENVIRONMENT
from tests.support.server_process import clean_env

ROOT = Path(__file__).parents[2]
FOURSTEP = Path(sys.executable).with_name("fourstep")


def fourstep(*arguments, env=None):
    """Run the command to its end."""
    return subprocess.run(
        [FOURSTEP, *arguments], env=clean_env(env), capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_the_commands():
    done = fourstep("--help")

    assert done.returncode == 0
    assert all(
        command in done.stdout
        for command in ("serve", "pull", "demo", "doctor", "bench", "keys", "webhook-keys", "certs", "hosts")
    )


ELSEWHERE = """
import sys
sys.platform = "win32"
sys.modules["fcntl"] = sys.modules["resource"] = None
from server.cli.main import main
main(["serve"])
"""


def test_other_systems_are_told_so_before_anything_is_imported_that_they_lack():
    done = subprocess.run(
        [sys.executable, "-P", "-c", ELSEWHERE], env=clean_env(), capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (
        1,
        "fourstep runs on Linux, macOS and WSL 2, the Linux in Windows; this is win32\n",
    )


@pytest.mark.parametrize(("version", "status"), [((3, 10), 1), ((3, 11), 0), ((3, 14), 0)])
def test_make_asks_for_the_version_of_python_before_it_fetches_anything(version, status, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = {(*version, 0)}\n"
        "if sys.argv[1] == '-c': exec(sys.argv[2])\nelse: print('made', *sys.argv[1:])\n"
    )
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)

    done = subprocess.run(
        ["make", f"PYTHON={python}", ".venv/bin/python"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ("needs Python 3.11 or newer; " in done.stderr) == bool(status)
    assert ("made -m venv" in done.stdout) == (not status)


def test_the_version_is_that_of_the_installation():
    assert fourstep("--version").stdout == f"fourstep {importlib.metadata.version('fourstep')}\n"


@pytest.mark.parametrize(
    ("flags", "env"), [(["--compile"], {}), ([], {"FOURSTEP_COMPILE": "1"}), ([], {}), (["--no-compile"], {})]
)
def test_the_setting_of_a_compiler_is_taken_and_does_nothing(flags, env, tmp_path):
    done = fourstep("bench", "--model", "instant", "--seconds", "1", "--data-dir", str(tmp_path), *flags, env=env)

    assert done.returncode == 0
    assert ("--compile (FOURSTEP_COMPILE) does nothing any more" in done.stderr) == bool("--compile" in flags or env)


def test_doctor_knows_the_names_of_a_takeover(tmp_path):
    done = fourstep("doctor", "--model", "demo", "--port", "0", "--data-dir", str(tmp_path))

    (said,) = [line for line in done.stdout.splitlines() if "hosts file" in line]
    assert f"of fal's {len(HOSTS_FILE_NAMES)} names" in said or "lacks" in said


def test_tools_run_in_the_environment_of_engines(monkeypatch):
    given = {}
    monkeypatch.setattr(subprocess, "call", lambda command, env: given.update(env) or 0)

    assert tools.pull(Settings()) == 0
    assert given["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert ENVIRONMENT.items() <= given.items()


def test_serve_help_names_every_setting_with_its_default_and_its_variable():
    text = " ".join(fourstep("serve", "--help").stdout.split())

    missing = [name for name in FIELDS if f"$FOURSTEP_{name.upper()}" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("command", "model"), [("serve", "sd15"), ("pull", "sd15"), ("bench", "sd15"), ("demo", "auto"), ("doctor", "auto")]
)
def test_help_names_the_model_that_the_command_takes(command, model):
    assert f"(default: {model}; $FOURSTEP_MODEL)" in " ".join(fourstep(command, "--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--port", "http"], "argument --port: 'http' is no whole number. `fourstep serve --help` says"),
        (
            ["serve", "--prot", "1"],
            "arguments: --prot 1. Did you mean --port? `fourstep serve --help` says what there is",
        ),
        (
            ["serve", "--hots=1", "--prot=1"],
            "arguments: --hots=1 --prot=1. Did you mean --host? `fourstep serve --help`",
        ),
        (["keys", "limit", "me", "--cals", "1"], "--cals 1. Did you mean --calls? `fourstep keys limit --help` says"),
        (["srve"], "fourstep: 'srve' is no command. Did you mean serve? `fourstep --help` says what there is"),
        (["keys", "ad", "me"], "fourstep keys: 'ad' is no action. Did you mean add? `fourstep keys --help` says"),
        (["keys", "42"], "'42' is no action; there are add, list, revoke, limit, and flags come after them."),
        (["keys", "list", "me"], "unrecognized arguments: me. `fourstep keys list --help` says what there is"),
        (["keys"], "required: ACTION. `fourstep keys --help` says what there is"),
        (["bench", "--requests", "0"], "no whole number above 0"),
        (["keys", "limit", "me", "--calls", "-1"], "no whole number"),
        (["keys", "limit", "stranger", "--calls", "1", "--data-dir", "/nowhere"], "no key in use is called 'stranger'"),
        (["keys", "add", ""], "'' is no name for a key. Hint: say whose it is in 1 to 64 printable characters"),
        (["keys", "add", "me", "--data-dir", "/dev/null/data"], "choose another --data-dir"),
        (["keys", "list", "--data-dir", "/dev/null/data"], "/dev/null/data/keys.json can't be read"),
        (["certs", "--data-dir", "/dev/null/data"], "choose another --data-dir"),
        (["webhook-keys", "rotate", "--data-dir", "/dev/null/data"], "choose another --data-dir"),
        (["nothing"], "'nothing' is no command; there are serve, pull, demo, "),
        (["--port", "1", "serve"], "'1' is no command; there are serve, "),
        (["hosts", "--address", "example"], "does not appear to be an IPv4 or IPv6 address"),
        (["serve", "--data-dir", "/dev/null/data"], "can't be written"),
        (["demo", "--output", "/nowhere/picture.jpg"], "there is no folder /nowhere"),
        (["demo", "--output", "/"], "/ is a folder; name a file in it"),
    ],
)
def test_a_mistake_is_answered_with_what_is_wrong(arguments, said):
    done = fourstep(*arguments)

    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["srve"], ["serve", "--prot", "1"], ["keys", "limit", "--calls"]])
def test_a_mistake_is_said_before_the_usage_which_is_one_line(arguments):
    mistake, usage = fourstep(*arguments, env={"COLUMNS": "40"}).stderr.splitlines()

    assert mistake.startswith("fourstep")
    assert usage.startswith("usage: fourstep")


def test_without_a_command_there_is_help():
    bare = fourstep()

    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == fourstep("--help").stdout


def test_an_unknown_variable_is_a_mistake():
    done = fourstep("hosts", env={"FOURSTEP_PROT": "1"})

    assert (done.returncode, "FOURSTEP_PROT names no setting. Did you mean FOURSTEP_PORT?" in done.stderr) == (1, True)


def test_hosts_prints_lines_for_a_hosts_file():
    done = fourstep("hosts", "--address", "192.168.1.5")

    assert "192.168.1.5 queue.fal.run\n" in done.stdout
    assert "192.168.1.5 fal.ai\n" not in done.stdout


def test_hosts_takes_the_site_over_only_when_told():
    assert "127.0.0.1 fal.ai\n" in fourstep("hosts", "--with-site").stdout


def test_certs_makes_the_ca_and_says_where_it_is(tmp_path):
    done = fourstep("certs", "--data-dir", str(tmp_path))

    assert str(tmp_path / "tls" / "ca.pem") in done.stdout
    assert re.search(r"^SHA-256: [0-9A-F]{2}(:[0-9A-F]{2}){31}$", done.stdout, re.MULTILINE)
    assert (tmp_path / "tls" / "bundle.pem").exists()


def test_certs_writes_what_haproxy_reads(tmp_path):
    done = fourstep("certs", "--pem", "--data-dir", str(tmp_path))

    folder = tmp_path / "tls" / "haproxy"
    assert f"For HAProxy: {folder / 'names.pem'}, certificate and key" in done.stdout
    assert re.search(r"good until 20\d\d-\d\d-\d\d;", done.stdout)
    assert sorted(path.name for path in folder.iterdir()) == ["addresses.pem", "crt-list", "names.pem"]


def test_a_key_is_shown_once_and_kept_hashed(tmp_path):
    secret = fourstep("keys", "--data-dir", str(tmp_path), "add", "me").stdout.split()[0].partition(":")[2]

    assert secret
    assert secret not in fourstep("keys", "--data-dir", str(tmp_path), "list").stdout
    assert secret not in (tmp_path / "keys.json").read_text()


def test_a_keys_limits_are_shown_and_taken_back(tmp_path):
    fourstep("keys", "--data-dir", str(tmp_path), "add", "me")

    limited = fourstep("keys", "limit", "me", "--calls", "4", "--queued", "9", "--data-dir", str(tmp_path)).stdout
    freed = fourstep("keys", "limit", "me", "--calls", "0", "--data-dir", str(tmp_path)).stdout

    assert limited.endswith("me  (calls 4, queued 9)\n")
    assert freed.endswith("me  (queued 9)\n")


def test_the_data_dir_may_stand_behind_the_action(tmp_path):
    fourstep("keys", "add", "me", "--data-dir", str(tmp_path))

    assert "in use" in fourstep("keys", "--data-dir", str(tmp_path), "list").stdout


def test_a_revoked_key_is_listed_as_revoked(tmp_path):
    fourstep("keys", "--data-dir", str(tmp_path), "add", "me")

    fourstep("keys", "--data-dir", str(tmp_path), "revoke", "me")

    assert "revoked" in fourstep("keys", "--data-dir", str(tmp_path), "list").stdout


def test_revoking_an_unknown_key_is_a_mistake(tmp_path):
    done = fourstep("keys", "--data-dir", str(tmp_path), "revoke", "stranger")

    assert (done.returncode, done.stderr) == (
        1,
        "fourstep: no key in use is called 'stranger'. `fourstep keys list` shows them\n",
    )


def test_a_rotated_webhook_key_is_published_beside_the_old_one_and_signs_later(tmp_path):
    rotated = fourstep("webhook-keys", "rotate", "--data-dir", str(tmp_path)).stdout.strip()

    [first, second] = fourstep("webhook-keys", "--data-dir", str(tmp_path), "list").stdout.splitlines()
    assert second == rotated
    assert first.endswith("signs from the beginning")
    assert not rotated.endswith("signs from the beginning")


def test_listing_the_webhook_keys_makes_none(tmp_path):
    done = fourstep("webhook-keys", "list", "--data-dir", str(tmp_path / "data"))

    assert (done.returncode, "the first `fourstep serve`" in done.stderr) == (1, True)
    assert not (tmp_path / "data").exists()
