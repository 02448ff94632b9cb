"""Starting on a data directory that can't be used: one line that says what to do, and status 1."""

import os
import random
import shutil
import sqlite3
import subprocess
import urllib.error
from pathlib import Path

import pytest

from server.cli.main import main
from tests.cli.test_serve import FOURSTEP, serve
from tests.support.server_process import clean_env, serving

A_PAGE = 4096


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """The data directory of a server that has run."""
    folder = tmp_path_factory.mktemp("used")
    with serving("--model", "instant", data_dir=folder):
        pass
    return folder


@pytest.fixture
def data(used, tmp_path):
    """A copy of it."""
    return shutil.copytree(used, tmp_path / "data")


def refusal(done):
    """Return the one line that a server has refused to start with."""
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "Hint: " in done.stderr
    return done.stderr


def refusal_here(data):
    """Return the line that a server refuses to start with, in this process."""
    before = os.umask(0o077)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["serve", "--model", "instant", "--data-dir", str(data), "--port", "0"])
    finally:
        os.umask(before)
    assert "Hint: " in ended.value.code
    assert "\n" not in ended.value.code
    return ended.value.code


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def foreign(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def too_new(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()


def renamed(path):
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE jobs RENAME TO jobs_of_others")
    connection.close()


DAMAGES = {
    "random": (lambda path: path.write_bytes(random.randbytes(5 * A_PAGE)), "file is not a database"),
    "cut": (lambda path: os.truncate(path, A_PAGE), "malformed"),
    "pages of zeros": (lambda path: overwrite(path, A_PAGE, bytes(path.stat().st_size - A_PAGE)), "malformed"),
    "foreign": (foreign, "is another program's database"),
    "too new": (too_new, "is of version 1000"),
    "without its table": (renamed, "no such table: jobs"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "unable to open database file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_database_that_can_not_be_used_is_said(data, damage):
    wreck, said = DAMAGES[damage]
    wreck(data / "jobs.sqlite")

    assert said in refusal_here(data)


def test_the_command_refuses_with_one_line_and_status_1(data):
    (data / "jobs.sqlite").write_bytes(b"no database")

    assert "file is not a database" in refusal(serve(data, "--port", "0"))


@pytest.mark.parametrize("name", ["token.secret", "files/upload.secret"])
@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_secret_is_said_and_not_replaced(data, name, content):
    (data / name).write_bytes(content)

    assert "holds no secret" in refusal_here(data)
    assert (data / name).read_bytes() == content


@pytest.mark.parametrize("name", ["webhook-keys.json", "keys.json", "token.secret", "files", "lock"])
def test_a_file_or_folder_in_the_wrong_place_is_said(data, name):
    path = data / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink(missing_ok=True)
        path.mkdir()

    refusal_here(data)


def test_a_data_directory_that_is_a_file_is_said(tmp_path):
    (tmp_path / "data").touch()

    refusal_here(tmp_path / "data")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
@pytest.mark.parametrize("name", ["", "jobs.sqlite"])
def test_what_this_user_may_not_write_is_said(data, name):
    for path in (data, *data.rglob("*")):
        os.chown(path, 65534, 65534)
    path = data / name
    os.chown(path, 0, 0)
    path.chmod(0o555 if path.is_dir() else 0o444)

    done = as_another_user(data)
    if done.returncode in {126, 127}:
        pytest.skip("another user may not run this interpreter")
    said = refusal(done)

    assert str(path) in said


def as_another_user(data):
    """Run the command as `nobody`, who may enter the folders above."""
    above = [each for each in data.parents if each.stat().st_uid == 0 and each.stat().st_mode & 0o055 != 0o055]
    modes = {each: each.stat().st_mode for each in above}
    for each in above:
        each.chmod(0o755)
    try:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", FOURSTEP, "serve"]
        return subprocess.run(
            [*command, "--model", "instant", "--data-dir", str(data), "--port", "0"],
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


# A tmpfs of that size, some of it filled, with a server on it.
ON_A_SMALL_DISK = """
mount -t tmpfs -o "$1" fourstep "$2" || exit 77
cd "$2" && shift 2
head -c "$1" /dev/zero > ballast 2>/dev/null
shift
exec "$@" --data-dir data
"""


@pytest.mark.parametrize(
    ("disk", "ballast"),
    [("size=64k", "64K"), ("size=1m", "992K"), ("nr_inodes=3", "0"), ("nr_inodes=9", "0")],
)
def test_a_disk_without_room_is_said(tmp_path, disk, ballast):
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", ON_A_SMALL_DISK, "sh", disk, str(tmp_path), ballast]
    try:
        done = subprocess.run(
            [*command, FOURSTEP, "serve", "--model", "instant", "--port", "0"],
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except OSError as error:
        pytest.skip(str(error))
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount can be made here: {done.stderr}")

    said = refusal(done)

    assert "free some space" in said or "whether the disk is full" in said


@pytest.mark.parametrize("gone", [lambda path: path.write_bytes(b""), Path.unlink], ids=["emptied", "deleted"])
def test_an_empty_database_beside_stored_files_is_said_and_the_server_goes_on(data, gone):
    gone(data / "jobs.sqlite")
    (data / "files/stored/ab").mkdir(exist_ok=True)
    (data / "files/stored/ab" / f"ab{'0' * 30}.jpg").write_bytes(b"a picture")

    with serving("--model", "instant", data_dir=data):
        assert "is empty although files are stored" in (data / "log").read_text()


def test_an_empty_database_without_files_is_a_first_start(tmp_path):
    with serving("--model", "instant", data_dir=tmp_path):
        assert "is empty although" not in (tmp_path / "log").read_text()


def test_a_database_that_is_damaged_while_it_is_used_is_an_error_in_fals_shape_and_one_line(tmp_path):
    with serving("--model", "instant", data_dir=tmp_path) as server:
        path = "/queue/fal-ai/lcm-sd15-i2i/requests/00000000-0000-0000-0000-000000000000/status"
        with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        size = (tmp_path / "jobs.sqlite").stat().st_size
        overwrite(tmp_path / "jobs.sqlite", A_PAGE, random.randbytes(size - A_PAGE))
        with pytest.raises(urllib.error.HTTPError) as failed:
            server.get(path)
        with failed.value as answer:
            body = answer.read().decode()

    assert (failed.value.code, "The server's job database is damaged" in body) == (500, True)
    assert "Traceback" not in (tmp_path / "log").read_text()
