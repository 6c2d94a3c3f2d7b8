"""The keeper, a small process that owns the directory and the servers of one cluster, and the client for it.

The servers are children of the keeper, not of the process that made the cluster (the owner). The keeper reads one end
of a socket pair. When the owner ends, for whatever reason, the keeper reads end-of-file, kills the servers and removes
the directory. The keeper leads a session of its own, so a signal to the owner's process group (Ctrl-C) does not reach
it. PostgreSQL refuses to run as root, so a keeper that starts as root first becomes the unprivileged account: all files
and processes that it makes belong to that account.

This file is the client (:class:`Keeper`) and, run as a script, the keeper. It needs only the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_CHILD_SUBREAPER = 36
_IPC_RMID = 0


class ClusterError(RuntimeError):
    """A PostgreSQL server for testing could not be found or started, or did not reach the requested state."""


class Keeper:
    """The client in the owner: each method sends a request to the keeper process and waits for its short answer.

    Args:
        base: The directory in which the cluster's directory is made.
        uid: The account that the keeper and the servers run as.
        gid: Its group.

    Attributes:
        directory: The cluster's directory, which only its account can read.
        pid: The process id of the keeper.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, base: Path, uid: int, gid: int) -> None:
        self.directory = base / f"router-pg-{secrets.token_hex(6)}"
        self._owner = os.getpid()
        # Guards the socket: one request and its answer at a time.
        self._lock = threading.Lock()
        self._asked = 0
        self._kept = False
        self.closed = False
        self._socket, theirs = socket.socketpair()
        self._answers = self._socket.makefile("rb")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__]
                + [str(value) for value in (theirs.fileno(), self._owner, uid, gid, self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._ask("ready")
        except BaseException:
            self.close()
            raise

    def spawn(self, argv: Sequence[str | Path], log: Path) -> int:
        """Start a program in the cluster's directory, append its output to ``log``, and return its process id."""
        return int(self._ask("spawn", [str(word) for word in argv], str(log)))

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a spawned program, negative for a signal; ``None`` while it runs."""
        code: int | None = self._ask("poll", pid)
        return code

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to a spawned program; do nothing if it has ended."""
        self._ask("signal", pid, signum)

    def freeze(self, data: Path) -> None:
        """Stop every process whose working directory is ``data``; return when all are stopped."""
        self._ask("freeze", str(data))

    def thaw(self, data: Path) -> None:
        """Continue every process whose working directory is ``data``."""
        self._ask("thaw", str(data))

    def kill(self, data: Path) -> None:
        """Kill every process whose working directory is ``data``; return when none is left."""
        self._ask("kill", str(data))

    def write(self, path: Path, text: str) -> None:
        """Write a file, or replace it."""
        self._ask("write", str(path), text)

    def remove(self, path: Path) -> None:
        """Remove a directory, and the shared memory of a killed server whose data it holds."""
        self._ask("remove", str(path))

    def keep(self) -> None:
        """Let the keeper and its servers outlive the owner, until the keeper gets SIGTERM."""
        self._ask("keep")
        self._kept = True

    def close(self) -> None:
        """Kill the servers and remove the directory, unless :meth:`keep` was called; return when that is done.

        In a forked child, which does not own the cluster, this does nothing.
        """
        if os.getpid() != self._owner:
            return
        self.closed = True
        if self._kept:
            self._process.returncode = 0  # it outlives this process on purpose: no ResourceWarning
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the keeper reads end-of-file, even if a forked child has a copy
        self._answers.close()
        self._socket.close()
        self._process.wait()

    def _ask(self, operation: str, *arguments: object) -> Any:
        if os.getpid() != self._owner:
            raise ClusterError(f"process {self._owner} made this cluster; a forked child may only connect to it")
        with self._lock:
            self._asked += 1
            try:
                self._socket.sendall(json.dumps([self._asked, operation, *arguments]).encode() + b"\n")
                # If a signal handler raised an exception during an earlier request, that answer is still unread.
                while (answer := json.loads(self._answers.readline() or "[]")) and answer[0] != self._asked:
                    pass
            except (OSError, ValueError) as error:
                raise ClusterError("the cluster is closed") from error
        if not answer:
            raise ClusterError(f"the cluster's keeper (process {self.pid}) has ended, and its servers with it")
        _, value, problem = answer
        if problem is not None:
            raise ClusterError(problem)
        return value


class _Process:
    """The operations in the keeper process, with the method names of :class:`Keeper`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ended: dict[int, int] = {}
        self.kept = False
        # The orphans of a killed postmaster become children of the keeper, which so finds and reaps them, even where
        # PID 1 reaps nothing.
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def ready(self) -> None:
        """Answer the first request: the keeper is set up."""

    def spawn(self, argv: list[str], log: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawnp(
            argv[0],
            argv,
            # No PG* variable of the owner may reach a server or its tools.
            {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        self._ended.pop(pid, None)
        return pid

    def poll(self, pid: int) -> int | None:
        self.reap()
        return self._ended.get(pid)

    def signal(self, pid: int, signum: int) -> None:
        # A process that is not reaped keeps its id, so this signal cannot reach another process.
        if self.poll(pid) is None:
            os.kill(pid, signum)

    def freeze(self, data: str) -> None:
        # The postmaster may fork more processes until it is stopped itself: scan until all processes are stopped.
        while running := [pid for pid, state in self._descendants(data) if state != "T"]:
            _send(running, signal.SIGSTOP)
            time.sleep(0.001)

    def thaw(self, data: str) -> None:
        _send([pid for pid, _ in self._descendants(data)], signal.SIGCONT)

    def kill(self, data: str | None = None) -> None:
        killed: set[int] = set()
        while living := [pid for pid, _ in self._descendants(data)]:
            _send(living, signal.SIGKILL)
            killed.update(living)
            time.sleep(0.001)
        # A process that is ending has no working directory any more, so wait for those that were killed by their ids.
        # They are reaped here, because PID 1 of a container may never do so.
        while any(Path(f"/proc/{pid}").exists() for pid in killed):
            self.reap()
            time.sleep(0.001)

    def write(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        # A killed postmaster leaves its System V shared memory segment; line 7 of its lock file is "key id".
        for lock in Path(path).glob("**/postmaster.pid"):
            with suppress(OSError, ValueError, IndexError):
                self._libc.shmctl(int(lock.read_text(encoding="utf-8").splitlines()[6].split()[1]), _IPC_RMID, None)
        shutil.rmtree(path, ignore_errors=True)

    def keep(self) -> None:
        self.kept = True

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                self._ended[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def _descendants(self, data: str | None) -> list[tuple[int, str]]:
        """Return the living descendants and their states: all, or those whose working directory is ``data``.

        The working directory of every server process is its data directory, also when its postmaster has ended.
        """
        children: dict[int, list[tuple[int, str]]] = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 - names are enough
            if entry.isdigit():
                with suppress(OSError):
                    stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                    state, parent = stat.rpartition(")")[2].split()[:2]
                    children.setdefault(int(parent), []).append((int(entry), state))
        found = []
        families = [os.getpid()]
        while families:
            for pid, state in children.get(families.pop(), ()):
                families.append(pid)
                if state not in "ZX" and (data is None or _works_in(pid, data)):
                    found.append((pid, state))
        return found


def _works_in(pid: int, data: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == Path(data)
    except OSError:
        return False


def _send(pids: list[int], signum: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def _serve(process: _Process, connection: socket.socket, owner: int) -> None:
    """Answer requests until the owner has ended.

    End-of-file alone does not show that: a child that the owner forked may hold a copy of its end of the socket pair.
    So the parent's process id is checked as well.
    """
    questions = connection.makefile("rb")
    while process.kept or os.getppid() == owner:
        process.reap()
        if not select.select([connection], [], [], 0.5)[0]:
            continue
        try:
            number, operation, *arguments = json.loads(questions.readline())
        except (OSError, ValueError):
            break
        value, problem = None, None
        try:
            value = getattr(process, operation)(*arguments)
        except OSError as error:
            problem = str(error)
        with suppress(OSError):
            connection.sendall(json.dumps([number, value, problem]).encode() + b"\n")
    while process.kept:
        process.reap()
        time.sleep(0.5)


def _main(number: str, owner: str, uid: str, gid: str, directory: str) -> None:
    connection = socket.socket(fileno=int(number))
    connection.set_inheritable(False)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: sys.exit())
    try:
        if os.geteuid() != int(uid):
            os.setgroups([])
            os.setgid(int(gid))
            os.setuid(int(uid))
        os.umask(0o077)
        Path(directory).mkdir()
        os.chdir(directory)
    except OSError as error:
        connection.sendall(json.dumps([1, None, f"cannot prepare {directory} as user {uid}: {error}"]).encode() + b"\n")
        return
    process = _Process(Path(directory))
    try:
        _serve(process, connection, int(owner))
    finally:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        process.kill()
        process.remove(directory)


if __name__ == "__main__":
    _main(*sys.argv[1:])
