"""Reading what is saved, one file or stream at a time, and telling when it was not whole.

A file is taken for what its directory said when it was listed: a reader that meets another file, or a file that
changes before its last byte is read, says `SourceChanged` rather than deliver a mixture. Which files are read, and
under which names they are saved, is decided in `sources`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Final, Protocol

from cas_checkpoint.errors import InvalidArgumentType, SourceChanged, SourceError, SourceNotFound, SourceUnreadable
from cas_checkpoint.extents import Extents, find_extents
from cas_checkpoint.ids import Buffer

__all__ = ["BufferReader", "FileReader", "GivenStream", "SourceReader", "open_path", "shown", "source_error"]

_MAX_CALL_PATH_SIZE: Final = 1000  # less than PATH_MAX on every system
_NO_ATIME: Final[int] = getattr(os, "O_NOATIME", 0)
_PATH_ONLY: Final[int] = getattr(os, "O_PATH", os.O_RDONLY)
# A FIFO that took the place of a file must not make the open wait, nor a terminal become ours.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_SKIP_ADVICE: Final = "or leave out what cannot be saved with on_error='skip'"


class SourceReader(Protocol):
    """One open file or stream. Belongs to one thread at a time.

    Attributes:
        extents: (offset, size) of the runs of data, if the file has holes; None if it has not.
    """

    extents: Extents | None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill as much of `buffer` (bytes) as there is data for, holes left out; 0 only at the end.

        Data that cannot be read is `SourceUnreadable`.
        """

    def read_at(self, offset: int, size: int) -> bytes:
        """Return so many bytes from an offset on, fewer if there are no more; none if only `readinto` can read.

        What `readinto` reads is not affected. Data that cannot be read is `SourceUnreadable`.
        """

    def finish(self) -> int:
        """After the last byte: return the size of the file, holes included, in bytes.

        A file that is not what it was when it was listed, or was not read to its end, is `SourceChanged`.
        """

    def close(self) -> None:
        """Let go of the file. A reader given by the caller stays open."""


def shown(path: bytes) -> str:
    """Return `path` as it stands in messages."""
    return path.decode("utf-8", "backslashreplace")


def source_error(path: bytes, error: OSError) -> SourceError:
    """Return the error to raise where the system refused to read `path`."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return SourceNotFound(f"{shown(path)}: not there, or it vanished; check the path, {_SKIP_ADVICE}")
    if error.errno == errno.ELOOP:
        return _changed(path, "a symlink took its place")
    reason = error.strerror or str(error)
    return SourceUnreadable(f"{shown(path)}: cannot be read ({reason}); make it readable, {_SKIP_ADVICE}")


def _changed(path: bytes, what: str) -> SourceChanged:
    return SourceChanged(
        f"{shown(path)}: changed while it was saved ({what}); save again when nobody writes to it, {_SKIP_ADVICE}"
    )


# --- memory and streams -------------------------------------------------------------------------


class BufferReader:
    """Reads bytes that are in memory already."""

    extents: Extents | None = None

    def __init__(self, data: Buffer) -> None:
        """Read `data` from its beginning."""
        view = memoryview(data)
        self._data = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        self._offset = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """See `SourceReader`."""
        piece = self._data[self._offset : self._offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._offset += len(piece)
        return len(piece)

    def read_at(self, offset: int, size: int) -> bytes:
        """See `SourceReader`."""
        return bytes(self._data[offset : offset + size])

    def finish(self) -> int:
        """See `SourceReader`."""
        return len(self._data)

    def close(self) -> None:
        """See `SourceReader`."""
        self._data.release()


class GivenStream:
    """A reader given by the caller, to be read from where it stood; once, or as often as needed if it can seek.

    Attributes:
        rereadable: whether it can seek.
    """

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 -- anything with `readinto` or `read`
        """Remember where `stream` stands."""
        self._stream = stream
        self._start = _position(stream)
        self._opened = False
        self.rereadable = self._start is not None

    def open(self) -> SourceReader:
        """Return a reader from where the stream stood; a second one is `SourceUnreadable` if it cannot seek."""
        if self._start is None and self._opened:
            raise SourceUnreadable("a reader that cannot seek can be read only once; pass a new one")
        self._opened = True
        try:
            if self._start is not None:
                self._stream.seek(self._start)
        except (OSError, ValueError) as error:
            raise _stream_error(error) from error
        return _GivenReader(self._stream)


class _GivenReader:
    extents: Extents | None = None

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 -- see GivenStream
        self._stream = stream
        self._readinto = getattr(stream, "readinto", None) or self._copy
        self._size = 0

    def readinto(self, buffer: memoryview, /) -> int:
        filled = 0
        while filled < len(buffer):
            try:
                size = self._readinto(buffer[filled:])
            except (OSError, ValueError) as error:
                if isinstance(error, (InvalidArgumentType, SourceError)):
                    raise
                raise _stream_error(error) from error
            if size is None:
                raise SourceUnreadable("the reader has no data yet; pass one that waits for its data")
            if size == 0:
                break
            filled += size
        self._size += filled
        return filled

    def _copy(self, buffer: memoryview) -> int | None:
        data = self._stream.read(len(buffer))
        if isinstance(data, str):
            raise InvalidArgumentType("the reader gives text; open it for bytes (mode 'rb')")
        if data is None:
            return None
        if len(data) > len(buffer):
            raise SourceUnreadable(f"the reader gave {len(data)} bytes where {len(buffer)} were asked for")
        buffer[: len(data)] = data
        return len(data)

    def read_at(self, offset: int, size: int) -> bytes:  # noqa: ARG002 -- where it stands is the caller's business
        return b""

    def finish(self) -> int:
        return self._size

    def close(self) -> None:
        pass  # it is the caller's


def _position(stream: Any) -> int | None:  # noqa: ANN401 -- see GivenStream
    try:
        return int(stream.tell()) if stream.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _stream_error(error: Exception) -> SourceUnreadable:
    return SourceUnreadable(f"the reader failed ({type(error).__name__}: {error}); pass one that is open for reading")


# --- files --------------------------------------------------------------------------------------


class FileReader:
    """Reads a regular file on the local disk. Never by mmap: a truncation would kill the process."""

    def __init__(self, path: bytes, listed: os.stat_result) -> None:
        """Open the file at `path`, which must still be the one that `listed` describes.

        Raises:
            SourceNotFound: it is gone.
            SourceChanged: it is another file, or has changed.
            SourceUnreadable: the system does not let us.
        """
        self._path, self._listed, self._delivered = path, listed, 0
        try:
            self._fd = open_path(path, _OPEN_FLAGS)
        except OSError as error:
            raise source_error(path, error) from error
        try:
            self._check(self._stat())
            self.extents = find_extents(self._fd, listed)
        except BaseException:
            os.close(self._fd)
            raise
        runs = ((0, listed.st_size),) if self.extents is None else self.extents
        self._expected = sum(size for _, size in runs)
        self._runs = iter(runs)
        self._left = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """See `SourceReader`."""
        filled = 0
        try:
            while filled < len(buffer) and (self._left or self._next_run()):
                size = os.readv(self._fd, [buffer[filled : filled + self._left]])
                if size == 0:  # shorter than listed: `finish` says so
                    self._runs, self._left = iter(()), 0
                self._left -= size
                filled += size
        except OSError as error:
            raise source_error(self._path, error) from error
        self._delivered += filled
        return filled

    def _next_run(self) -> bool:
        offset, self._left = next(self._runs, (0, 0))
        if self.extents is not None and self._left:
            os.lseek(self._fd, offset, os.SEEK_SET)
        return self._left > 0

    def read_at(self, offset: int, size: int) -> bytes:
        """See `SourceReader`."""
        parts = []
        try:
            while size > 0 and (part := os.pread(self._fd, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise source_error(self._path, error) from error
        return b"".join(parts)

    def finish(self) -> int:
        """See `SourceReader`."""
        self._check(self._stat())
        if self._delivered != self._expected:
            raise _changed(self._path, f"{self._delivered} bytes instead of {self._expected}")
        # Files that the kernel makes up, as in /proc, say that they are empty.
        if self._expected == 0 and self.extents is None and os.read(self._fd, 1):
            raise _changed(self._path, "it has more data than its size says")
        return self._listed.st_size

    def close(self) -> None:
        """See `SourceReader`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _stat(self) -> os.stat_result:
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise source_error(self._path, error) from error

    def _check(self, now: os.stat_result) -> None:
        """Raise `SourceChanged` unless `now` is the file as it was listed.

        The change time counts too: it moves with mode, owner, attributes and links, which are saved as listed.
        """
        listed = self._listed
        if not stat.S_ISREG(now.st_mode) or (now.st_ino, now.st_dev) != (listed.st_ino, listed.st_dev):
            raise _changed(self._path, "something else took its place")
        if now.st_nlink == 0:
            raise _changed(self._path, "it was deleted or replaced")
        if now.st_size != listed.st_size:
            raise _changed(self._path, f"from {listed.st_size} to {now.st_size} bytes")
        if (now.st_mtime_ns, now.st_ctime_ns) != (listed.st_mtime_ns, listed.st_ctime_ns):
            raise _changed(self._path, "its times moved")


def open_path(path: bytes, flags: int) -> int:
    """Open an absolute path of any length, if possible without a trace in its access time."""
    directory = -1
    try:
        while len(path) > _MAX_CALL_PATH_SIZE:
            cut = path.rindex(b"/", 1, _MAX_CALL_PATH_SIZE)
            inner = _open_below(directory, path[:cut], os.O_DIRECTORY | os.O_CLOEXEC | _PATH_ONLY)
            if directory >= 0:
                os.close(directory)
            directory, path = inner, path[cut + 1 :]
        return _open_below(directory, path, flags)
    finally:
        if directory >= 0:
            os.close(directory)


def _open_below(directory: int, path: bytes, flags: int) -> int:
    dir_fd = None if directory < 0 else directory
    if _NO_ATIME and not flags & _PATH_ONLY:
        try:
            return os.open(path, flags | _NO_ATIME, dir_fd=dir_fd)
        except PermissionError:  # only the owner may ask for it
            pass
    return os.open(path, flags, dir_fd=dir_fd)
