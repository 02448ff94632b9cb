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

    assert settings.max_connections == 88
    assert line.startswith("max-connections is 88, not 1024: only 600 files may be open. Hint: `ulimit -n 1536`")


def test_with_no_files_to_spare_it_does_not_start():
    with pytest.raises(SettingsError, match=r"may open only 256 files\. Hint: `ulimit -n 1536`"):
        open_files.within(256, Settings(max_connections=1024, max_downloads=256))


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
    assert "max-connections is 88, not 1024: only 600 files may be open" in log.read_text()
