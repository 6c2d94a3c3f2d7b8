"""The log of ``router each``: what is done, so that it is not done again.

Each line is a JSON object, added to the end of the file in one write, and on the disk before anything follows from it.
The first line of a run says what it does; of each tenant, the last line counts; a run that came to its end says so.

Two locks: a POSIX one, which ends with the process that took it; and a ``flock``, which the commands that it started
hold, too: they go on when it is killed, and write their lines themselves.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from router.core.errors import RouterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Entry: TypeAlias = Mapping[str, Any]


class JournalError(RouterError):
    """The log cannot be used as was asked; the message says what to do."""


class Journal:
    """The lines of one run, which an earlier process may have begun.

    Attributes:
        descriptor: The open file, to be handed to the commands.
        entries: Of each tenant, its last line.
    """

    def __init__(self, path: Path, run: Entry, *, resume: bool, wait: Callable[[], None]) -> None:
        """Open it, and read how far the run has come.

        Args:
            path: The file.
            run: What its first line says that the run does.
            resume: Whether to go on with the last run; else a new one begins.
            wait: Called before it is waited for what a process that was killed has started.

        Raises:
            JournalError: It is in use, of another run, or of one that has not come to its end; or there is none.
            OSError: The file cannot be opened or written.
        """
        self.entries: dict[str, Entry] = {}
        self._path = path
        self._guard = Lock()  # guards what has been read, and how far
        self._run: Entry = {}  # empty until there is one
        self._ended = True
        self._read_bytes = 0
        if resume and not path.exists():
            raise JournalError(f"there is no {path} to go on with: leave --resume out, or name another file by --log")
        # From here on, never open the file a second time: closing any descriptor of it ends the POSIX lock.
        self.descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._lock(wait if resume else None)
            self.read()
            os.ftruncate(self.descriptor, self._read_bytes)  # a last line without an end counts for nothing
            self._check(run, resume=resume)
            if not resume:
                self.note(run)
                _sync_directory(path)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Leave it to others."""
        os.close(self.descriptor)

    def note(self, entry: Entry) -> None:
        """Write a line.

        Args:
            entry: What it says; the time is added.

        Raises:
            OSError: It could not be written.
        """
        line = json.dumps({**entry, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}, ensure_ascii=False)
        data = f"{line}\n".encode()
        if os.write(self.descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self.descriptor)
        self.read()

    def read(self) -> None:
        """Read what has been written since, by whomever.

        Raises:
            JournalError: There is a line that is not of `router each`.
        """
        with self._guard:
            text = b""
            while part := os.pread(self.descriptor, 1 << 20, self._read_bytes + len(text)):
                text += part
            lines, end, _ = text.rpartition(b"\n")
            for line in lines.split(b"\n") if end else ():
                self._take(line)
            self._read_bytes += len(lines + end)

    def _take(self, line: bytes) -> None:
        try:
            match json.loads(line):
                case {"router": "each"} as run:
                    self._run, self._ended = run, False
                    self.entries.clear()
                case {"tenant": str(tenant)} as entry if self._run:
                    self.entries[tenant] = entry
                    self._ended = False
                case {"end": True} if self._run:
                    self._ended = True
                case _:
                    raise ValueError
        except ValueError:
            raise JournalError(
                f"{self._path} has a line that `router each` has not written, or that is damaged: {line[:60]!r}; "
                "name another file by --log"
            ) from None

    def _lock(self, wait: Callable[[], None] | None) -> None:
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"{self._path} is in use by another `router each`") from None
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                raise JournalError(
                    f"{self._path} is of a run that was killed, and commands of it still go on: --resume waits for them"
                ) from None
            wait()
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def _check(self, run: Entry, *, resume: bool) -> None:
        if resume and not self._run:
            raise JournalError(f"{self._path} is empty, there is nothing to go on with: leave --resume out")
        if resume and any(self._run.get(key) != value for key, value in run.items()):
            raise JournalError(
                f"{self._path} is of another run, {_in_words(self._run)}: --resume needs the same command or SQL, and "
                "the same --version"
            )
        if not resume and not self._ended and self.entries:
            raise JournalError(
                f"{self._path} is of a run that has not come to its end, {_in_words(self._run)}: go on with --resume, "
                "or name another file by --log"
            )


def _in_words(run: Entry) -> str:
    version = f" --version {run['version']}" if run.get("version") else ""
    return f"{run.get('what')}{version}, begun {run.get('at')}"


def _sync_directory(path: Path) -> None:
    """Have a new file found after a crash of the machine, too."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
