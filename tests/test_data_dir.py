"""The data directory: who may look in, and that its files are never half."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from server.data_dir import Held, locked, prepare, usable, write_whole
from server.settings import SettingsError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o777, 0o2750])
def test_other_users_are_shut_out_whoever_made_the_folder(tmp_path, before):
    folder = tmp_path / "data"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)

    prepare(folder)

    assert mode(folder) & 0o777 == 0o700


def test_a_folder_that_is_everybodys_stays_so(tmp_path):
    tmp_path.chmod(0o1777)

    prepare(tmp_path)

    assert mode(tmp_path) == 0o1777


def test_a_folder_that_can_not_be_is_said_with_what_would_do():
    with pytest.raises(SettingsError, match=r"can't be written .* Hint: name a folder, or choose another --data-dir"):
        prepare(Path("/dev/null/data"))


def test_a_fault_of_something_else_is_not_laid_to_the_folder(tmp_path):
    with pytest.raises(OSError, match="Too many open files"), usable(tmp_path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("wanted", [0o600, 0o644])
def test_a_written_file_has_the_mode_that_was_asked_for(tmp_path, wanted):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "file", b"new", wanted)
    finally:
        os.umask(before)

    assert (mode(tmp_path / "file"), (tmp_path / "file").read_bytes()) == (wanted, b"new")


def test_a_file_replaces_the_old_one_and_the_draft_of_a_writer_that_died(tmp_path):
    (tmp_path / "file").write_bytes(b"the old one, and longer")
    (tmp_path / "file.part").write_bytes(b"half a dr")

    write_whole(tmp_path / "file", b"new")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


def test_a_link_in_the_drafts_place_is_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(b"untouched")
    (tmp_path / "file.part").symlink_to(tmp_path / "other")

    write_whole(tmp_path / "file", b"new")

    assert (tmp_path / "other").read_bytes() == b"untouched"


def test_a_lock_excludes_others_and_ends_with_a_killed_process(tmp_path):
    lock = tmp_path / "lock"
    lock.write_bytes(b"an older server's")
    program = (
        "import pathlib, sys\n"
        "from server.data_dir import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print(1, flush=True)\n"
        "    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(Held), locked(lock, wait=False):
            pass
        holder.kill()

    with locked(lock, wait=False):
        assert lock.read_bytes() == b"an older server's"
