"""Locks that other users of the host can reach: nothing but a lock is ever opened, and nothing is cut off."""

import errno
import fcntl
import os

import pytest

from distill_energy.energy.exclusive import DeviceLocks, MeterRegister
from distill_energy.errors import UserError
from distill_energy.store.lock import artifact_lock


def quiet(text):
    raise AssertionError(text)


@pytest.mark.parametrize("kind", ["link", "hard link", "large", "pipe"])
def test_something_else_in_a_locks_place(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious " * (10 if kind == "large" else 1))
    folder = tmp_path / "locks"
    folder.mkdir()
    place = folder / "GPU-1.lock"
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "hard link":
        place.hardlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.write_text(victim.read_text())
    before = victim.read_text()
    with pytest.raises(OSError):
        DeviceLocks(folder).acquire(["GPU-1"], quiet)
    assert victim.read_text() == before
    assert kind != "large" or place.read_text() == before


def test_the_folder_is_no_link(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "home")
    with pytest.raises(OSError, match="not a folder"):
        DeviceLocks(tmp_path / "locks").acquire(["GPU-1"], quiet)
    with pytest.raises(OSError, match="not a folder"):
        MeterRegister(os.getpid(), tmp_path / "locks")
    assert not list((tmp_path / "home").iterdir())


def test_a_lock_is_taken_again(tmp_path):
    for _ in range(2):
        locks = DeviceLocks(tmp_path / "locks")
        locks.acquire(["GPU-1"], quiet)
        assert (tmp_path / "locks" / "GPU-1.lock").read_text().strip() == str(os.getpid())
        locks.release()


def refuse(number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with artifact_lock(tmp_path, quiet):
        if (pid := os.fork()) == 0:  # POSIX locks: another process finds it taken
            with open(tmp_path / "lock", "a+") as handle:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    monkeypatch.setattr(fcntl, "lockf", refuse(number))
    with pytest.raises(UserError, match="lock: its file system has no locks"), artifact_lock(tmp_path, quiet):
        pass
