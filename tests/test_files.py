"""Files are written as a whole or not at all, alone and as a set, and read within bounds."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk, disk_full
from hf_sparsify import files
from hf_sparsify.errors import DataError

OLD = {"data": b"old data", "gone": b"old", "index": b"old index"}
NEW = {"data": b"new data", "gone": None, "index": b"new index"}
CALLS = 14  # to the file system, of writing NEW over OLD


def written(directory: Path, what: dict[str, bytes | None]) -> Path:
    files.write_set(directory, what, last="index")
    return directory


def found(directory: Path) -> dict[str, bytes | None]:
    """What a reader finds: the index, and the data that belongs to it."""
    index = files.read_file(directory / "index", 99)
    belonging = OLD if index == OLD["index"] else NEW
    data = belonging["data"] or b""
    return {**belonging, "data": files.read_member(directory, "data", files.sha256(data), 99), "index": index}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_set_is_written_and_replaced(tmp_path: Path) -> None:
    directory = written(tmp_path / "deep" / "set", OLD)
    assert names(directory) == ["data", "gone", "index"]
    written(directory, NEW)
    assert names(directory) == ["data", "index"]
    assert (directory / "data").read_bytes() == b"new data"


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("error", [disk_full, KeyboardInterrupt])
@pytest.mark.parametrize("failing", range(CALLS))
def test_whatever_call_fails_the_set_is_old_or_new(
    failing: int, error: type[BaseException], stays: bool, tmp_path: Path
) -> None:
    directory = written(tmp_path / "set", OLD)
    disk = FaultyDisk(directory, failing, error, stays)
    try:
        with disk.at_work():
            written(directory, NEW)
    except (OSError, KeyboardInterrupt):
        assert failing < len(disk.calls)
    assert found(directory) in (OLD, NEW)
    if found(directory) == OLD:
        assert names(directory) == ["data", "gone", "index"], "nothing is left over"
    written(directory, NEW)
    assert names(directory) == ["data", "index"]


def test_those_were_all_calls(tmp_path: Path) -> None:
    directory = written(tmp_path / "set", OLD)
    with FaultyDisk(directory).at_work() as disk:
        written(directory, NEW)
    assert len(disk.calls) == CALLS, disk.calls
    assert disk.calls.count("replace") == 3


@pytest.mark.parametrize("failing", range(5))
def test_a_single_file_is_old_or_new(failing: int, tmp_path: Path) -> None:
    files.write_file(tmp_path / "file", b"old")
    with FaultyDisk(tmp_path, failing).at_work(), pytest.raises(OSError, match="No space left"):
        files.write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == (b"new" if failing == 4 else b"old")
    assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_cleaned(tmp_path: Path) -> None:
    directory = written(tmp_path / "set", OLD)
    (directory / ".writing-data-0123").write_bytes(b"half")
    (directory / f".data.{'0' * 64}").write_bytes(b"never counted")
    (directory / ".data.backup").write_bytes(b"a person's")
    assert found(directory) == OLD
    written(directory, NEW)
    assert names(directory) == [".data.backup", "data", "index"]


def test_a_file_that_waits_counts_and_can_be_settled(tmp_path: Path) -> None:
    """As a kill leaves it between the index and the last renaming."""
    directory = written(tmp_path / "set", OLD)
    digest = files.sha256(b"new data")
    (directory / f".data.{digest}").write_bytes(b"new data")
    (directory / "index").write_bytes(b"new index")
    assert found(directory)["data"] == b"new data"
    files.settle(directory, "data", digest)
    assert (directory / "data").read_bytes() == b"new data"
    assert names(directory) == ["data", "gone", "index"]
    files.settle(directory, "data", "../../data")


def test_a_waiting_file_outlives_a_failed_further_write(tmp_path: Path) -> None:
    directory = written(tmp_path / "set", OLD)
    (directory / f".data.{files.sha256(b'new data')}").write_bytes(b"new data")
    (directory / "index").write_bytes(b"new index")
    third: dict[str, bytes | None] = {"data": b"third", "index": b"third index"}
    for failing in range(1, 10):
        with FaultyDisk(directory, failing).at_work(), pytest.raises(OSError, match="No space left"):
            written(directory, third)
        assert found(directory)["data"] == b"new data"


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    directory = written(tmp_path / "set", OLD)
    with pytest.raises(DataError, match="has another content"):
        files.read_member(directory, "data", "0" * 64, 99)
    with pytest.raises(DataError, match="has another content"):
        files.read_member(directory, "data", "/../index", 99)
    with pytest.raises(FileNotFoundError):
        files.read_member(directory, "nowhere", "0" * 64, 99)


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2**20 + 1))
    with pytest.raises(DataError, match="is larger than 1 MiB"):
        files.read_file(tmp_path / "file", 2**20)
    assert len(files.read_file(tmp_path / "file", 2**20 + 1)) == 2**20 + 1
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(DataError, match="is no file"):
            files.read_file(tmp_path / name, 99)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert len(files.read_file(tmp_path / "link", 2**21)) == 2**20 + 1


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    files.write_file(tmp_path / "file", b"new")
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def test_others_may_read_what_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_file(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_where_there_are_no_locks_files_are_whole_and_nothing_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".writing-by-another").write_bytes(b"half")
    files.write_file(tmp_path / "file", b"new")
    assert names(tmp_path) == [".writing-by-another", "file"]
