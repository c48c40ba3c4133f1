"""Files that are written as a whole or not at all, and files that are read only so far as they may be large.

A write goes to a scratch file in the same directory, to the disk, and then over the old file in one step. The directory
itself is locked meanwhile (flock), so that processes take turns and a scratch file that is found under the lock is what
a killed process left. Where a file system has no locks, single files are whole all the same.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DataError, SparsifyError

SCRATCH = ".writing-"
HEX_DIGITS = 64
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def write_file(path: Path, data: bytes) -> None:
    """Puts bytes in place of a file; the directory has to be there. OSError leaves the old file, or none."""
    with locked(path.parent) as alone:
        _clean(path.parent, alone)
        _put(path, data)
        _sync(path.parent)


def append_file(path: Path, data: bytes) -> None:
    """Adds bytes to a file, made if it is not there. OSError leaves what was there, and perhaps a part of the new."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def write_set(directory: Path, files: Mapping[str, bytes | None], last: str) -> None:
    """Writes files of a directory so that whoever reads it, at any time, finds all of the old ones or all new ones.

    files: contents by name; None removes a file. last: the one that names the others by their SHA-256. Until it is
    replaced the new others wait beside the old ones, where read_member finds them. Makes the directory; OSError leaves
    the old files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    others = {name: data for name, data in files.items() if name != last and data is not None}
    with locked(directory) as alone:
        _clean(directory, alone)
        waiting = {name: _waiting(directory, name, sha256(data)) for name, data in others.items()}
        try:
            for name, path in waiting.items():
                _put(path, others[name])
            _sync(directory)
            _put(directory / last, files[last] or b"")
        except BaseException:
            # An interrupt may come when the new ones count already.
            if not _holds(directory / last, files[last]):
                _remove(waiting.values())
            raise
        _sync(directory)
        # From here on the new ones count: what is left is tidying, and the next write does what a kill prevents.
        with suppress(OSError):
            for name, path in waiting.items():
                os.replace(path, directory / name)
            _remove(path for name in files for path in _all_waiting(directory, name))
            _remove(directory / name for name, data in files.items() if data is None)
            _sync(directory)


def read_member(directory: Path, name: str, digest: str, most: int) -> bytes:
    """A file that write_set wrote, by its SHA-256 in hex. Raises what read_file raises, DataError if it is another."""
    places = [directory / name, *([_waiting(directory, name, digest)] if _is_digest(digest) else [])]
    for path in places:
        if path.exists():
            data = read_file(path, most)
            if sha256(data) == digest:
                return data
    if not any(path.exists() for path in places):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory / name))
    raise DataError(f"{directory / name} has another content than its recipe names")


def settle(directory: Path, name: str, digest: str) -> None:
    """Puts a file that still waits, because its writer was killed, into its place."""
    with locked(directory):
        waiting = _waiting(directory, name, digest)
        if _is_digest(digest) and waiting.exists():
            os.replace(waiting, directory / name)


def read_file(path: Path, most: int) -> bytes:
    """All bytes of a regular file. OSError as open(); DataError if it is something else or has more than `most`."""
    # A pipe that somebody left here would otherwise be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise DataError(f"{path} is no file")
        if facts.st_size > most:
            raise DataError(f"{path} is larger than {most >> 20} MiB, which no such file is")
        data = file.read(facts.st_size + 1)
    if len(data) > facts.st_size:
        raise DataError(f"{path} grew while it was read: start again")
    return data


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def locked(directory: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Waits until no other process writes to a directory (shared: readers do not wait for each other).

    Yields whether there is a lock. OSError if the directory cannot be opened, BlockingIOError instead of waiting.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        yield _lock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def same_place(left: str | Path, right: str | Path) -> bool:
    """Whether two paths mean the same place, there or not; a loop of links means only itself."""
    return os.path.realpath(left) == os.path.realpath(right)


def below(directory: Path, name: object) -> Path:
    """The path that a file which may come from a stranger names; DataError if that is outside the directory."""
    path = directory / str(name)
    # realpath takes a loop of links as it is, where resolve() raises.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise DataError(f"{path} is outside {directory}")
    return path


def cannot_write(what: str, place: Path, error: OSError) -> SparsifyError:
    """The sentence for a write that failed."""
    return SparsifyError(f"cannot write the {what} to {place}: {error.strerror or error}")


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _put(path: Path, data: bytes) -> None:
    """Under the lock: the bytes are on the disk before the name says so."""
    scratch = path.with_name(f"{SCRATCH}{path.name}-{secrets.token_hex(4)}")
    try:
        # Never through a link that somebody left here; readable for whom the umask lets.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(scratch, path)
    except BaseException:
        _remove([scratch])
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync(directory: Path) -> None:
    """Makes new names last; a file system that cannot do that for a directory is taken as it is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)


def _clean(directory: Path, alone: bool) -> None:
    """Removes what killed processes left; without a lock it may be in use."""
    if alone:
        _remove(directory.glob(f"{SCRATCH}*"))


def _remove(paths: Iterable[Path]) -> None:
    """What can be removed of files that nobody needs."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _holds(path: Path, data: bytes | None) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _waiting(directory: Path, name: str, digest: str) -> Path:
    return directory / f".{name}.{digest}"


def _all_waiting(directory: Path, name: str) -> list[Path]:
    prefix = f".{name}."
    return [path for path in directory.glob(f"{prefix}*") if _is_digest(path.name.removeprefix(prefix))]


def _is_digest(text: str) -> bool:
    return len(text) == HEX_DIGITS and not set(text) - set("0123456789abcdef")
