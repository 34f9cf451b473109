"""One driver per study: the living are named, the dead are replaced, clocks play no part."""

import errno
import json
import os
import subprocess
import sys

import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.study.lock import StudyLock


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(str(tmp_path))


def lock(folder):
    return StudyLock(folder, beat_seconds=0.05)


def test_the_second_driver_is_refused_and_told_who_has_the_study(folder):
    first = lock(folder)
    first.acquire()
    with pytest.raises(UserError, match=r"is being run by process \d+ on host .+ since "):
        lock(folder).acquire()
    with pytest.raises(UserError):
        lock(folder).acquire(takeover=True)
    first.release()
    lock(folder).acquire()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_folder_that_may_not_be_written_is_a_mistake_and_one_that_fails_is_not(folder, monkeypatch, number):
    def fails(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(StudyFolder, "_write", fails)
    with pytest.raises(OSError if number == errno.EIO else UserError) as told:
        lock(folder).acquire()
    if number != errno.EIO:
        assert f"folder '{folder.shown}' cannot be written: {os.strerror(number)}; choose another" in str(told.value)


def test_a_dead_driver_of_this_host_is_replaced_without_asking(folder):
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"from kdtvit_ray.paths import StudyFolder; from kdtvit_ray.study.lock import StudyLock; "
            f"StudyLock(StudyFolder({folder.location!r})).acquire()",
        ],
        check=True,
    )
    assert folder.exists("lock.json")
    lock(folder).acquire()


OTHER = {
    **{"host": "elsewhere", "boot": "", "pid_namespace": "", "pid": 1, "started": "1", "since": "today"},
    **{"beat": 0, "token": "other"},
}


def elsewhere(beat=0):
    """The lock of a driver on another host."""
    return {**OTHER, "beat": beat}


def test_another_hosts_driver_is_taken_over_only_when_its_beat_stands_still(folder):
    folder.write_json("lock.json", elsewhere())
    with pytest.raises(UserError, match="on host elsewhere"):
        lock(folder).acquire()
    lock(folder).acquire(takeover=True)


def test_another_hosts_living_driver_is_not_taken_over(folder, monkeypatch):
    folder.write_json("lock.json", elsewhere())
    waited = []

    def meanwhile(seconds):
        waited.append(seconds)
        folder.write_json("lock.json", elsewhere(beat=1))

    monkeypatch.setattr("kdtvit_ray.study.lock.time.sleep", meanwhile)
    with pytest.raises(UserError, match="on host elsewhere"):
        lock(folder).acquire(takeover=True)
    assert waited == [pytest.approx(0.15)], "three beats"


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"host": "elsewhere"}', '{"token": 1, "pid": "x"}'])
@pytest.mark.parametrize("takeover", [False, True])
def test_a_damaged_lock_names_nobody(folder, content, takeover):
    folder.write("lock.json", content.encode())
    own = lock(folder)
    own.acquire(takeover)
    own.release()
    assert not folder.exists("lock.json")


def test_a_driver_that_was_taken_over_notices(folder):
    first = lock(folder)
    first.acquire()
    found = json.loads((folder.local / "lock.json").read_text())
    folder.write_json("lock.json", {**found, "token": "other"})
    assert first.lost.wait()
    first.release()
    assert folder.exists("lock.json"), "the lock is the other's now"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this process one of the given boot and PID namespace."""

    def be(boot, namespace):
        (tmp_path / "boot_id").write_text(f"{boot}\n")
        (tmp_path / namespace).touch()
        monkeypatch.setattr("kdtvit_ray.study.lock.BOOT", tmp_path / "boot_id")
        monkeypatch.setattr("kdtvit_ray.study.lock.PID_NAMESPACE", tmp_path / namespace)

    be("first boot", "namespace a")
    return be


def test_a_driver_in_another_container_of_the_same_name_is_not_taken_for_dead(folder, machine):
    first = lock(folder)
    first.acquire()
    machine("first boot", "namespace b")
    found = StudyLock.read(folder)
    assert StudyLock.alive_here(found) is None
    assert StudyLock.alive_here({**found, "pid": 2**22 + 1}) is None, "a process of this number is not here"
    with pytest.raises(UserError, match="is being run by process"):
        lock(folder).acquire()
    machine("another boot", "namespace b")
    assert StudyLock.alive_here(found) is None, "containers of the same name on two machines"
    first.release()


def test_a_driver_of_another_boot_is_dead_when_its_beat_stands_still_though_its_number_is_taken(
    folder, machine, monkeypatch
):
    first = lock(folder)
    first.acquire()
    found = StudyLock.read(folder)
    first.release()
    assert StudyLock.alive_here(found) is True
    machine("second boot", "namespace a")
    assert StudyLock.alive_here(found) is None
    folder.write_json("lock.json", found)

    def meanwhile(seconds):
        folder.write_json("lock.json", {**found, "beat": found["beat"] + 1})

    with monkeypatch.context() as patched:
        patched.setattr("kdtvit_ray.study.lock.time.sleep", meanwhile)
        with pytest.raises(UserError, match="is being run by process"):  # of another machine of the same name
            lock(folder).acquire()
    lock(folder).acquire()


def test_a_lock_that_lacks_what_every_lock_has_names_nobody(folder):
    first = lock(folder)
    first.acquire()
    whole = StudyLock.read(folder)
    first.release()
    for name in whole:
        folder.write_json(folder.lock, {each: value for each, value in whole.items() if each != name})
        assert StudyLock.read(folder) is None, name


def test_where_there_is_no_proc_the_host_counts(folder, machine, monkeypatch, tmp_path):
    first = lock(folder)
    first.acquire()
    found = StudyLock.read(folder)
    for name in ("BOOT", "PID_NAMESPACE"):
        monkeypatch.setattr(f"kdtvit_ray.study.lock.{name}", tmp_path / "nothing" / "here")
    assert StudyLock.alive_here(found) is True
    first.release()
