"""Too few files that may be open: fewer connections, and a line that says so."""

import resource
import subprocess
import sys

import pytest

from server.settings import Settings, SettingsError
from server.transport import open_files
from tests.support.server_process import clean_env, until

LIMIT = 600
LIMITED = f"""
import resource
from server.cli.main import main
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
main()
"""


def test_enough_files_leave_the_settings_as_they_are():
    settings = Settings(max_connections=100, max_downloads=10)

    assert open_files.within(1000, settings) == (settings, "")


def test_with_too_few_files_there_are_fewer_connections_and_a_line_says_how_to_get_more():
    settings, line = open_files.within(600, Settings(max_connections=1024, max_downloads=256))

    assert settings.max_connections == 43  # with as many uploads, two newcomers, 256 downloads and 256 others
    assert line.startswith("max-connections is 43, not 1024: only 600 files may be open. Hint: `ulimit -n 1856`")


@pytest.mark.parametrize(("limit", "connections"), [(514, 1), (1855, 1023), (1856, 1024), (4096, 1024)])
def test_there_are_as_many_connections_as_fit(limit, connections):
    assert open_files.within(limit, Settings())[0].max_connections == connections


def test_with_no_files_to_spare_it_does_not_start():
    with pytest.raises(SettingsError, match=r"may open only 513 files\. Hint: `ulimit -n 1856`"):
        open_files.within(513, Settings(max_connections=1024, max_downloads=256))


def test_where_the_hard_limit_can_not_be_had_as_many_are_taken_as_macos_gives(monkeypatch):
    limits = [256, resource.RLIM_INFINITY]

    def set_limit(_, wanted):
        if resource.RLIM_INFINITY in wanted[:1]:
            raise ValueError("current limit exceeds maximum limit")
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limit)

    assert open_files.raise_limit() == 10_240


def test_a_server_under_a_hard_limit_says_what_it_does(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as sink:
        flags = ("serve", "--model", "instant", "--port", "0", "--data-dir", str(tmp_path / "data"))
        server = subprocess.Popen([sys.executable, "-c", LIMITED, *flags], env=clean_env(), stderr=sink)
        try:
            until(lambda: b"may be open" in log.read_bytes())
            soft, _ = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        finally:
            server.terminate()
            server.wait(30)

    assert soft == LIMIT
    assert "max-connections is 43, not 1024: only 600 files may be open" in log.read_text()
