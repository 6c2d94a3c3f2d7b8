"""The keeper: a small process that owns one cluster's directory and servers, and both ends of the talk with it.

The servers are the keeper's children, not the owner's. It reads one end of a socket pair; when the owner ends, however
it ends, the keeper reads end-of-file, kills the servers and removes the directory. It leads a session of its own, so a
signal to the owner's process group (Ctrl-C) does not reach it. As root it gives its rights up first, since PostgreSQL
refuses to run as root: everything it writes, starts and signals is then the unprivileged account's.

The same file is the client (:class:`Keeper`) and, run as a script, the process. It needs the standard library alone.
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
    """A PostgreSQL server for testing could not be found, started or brought into the state asked for."""


class Keeper:
    """The owner's end: every method asks the keeper process and waits for its short answer.

    Args:
        base: Where the cluster's directory is made.
        uid: The account that the keeper and the servers run as.
        gid: Its group.

    Attributes:
        directory: The cluster's directory, readable by its account alone.
        pid: The keeper process.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, base: Path, uid: int, gid: int) -> None:
        self.directory = base / f"router-pg-{secrets.token_hex(6)}"
        self._owner = os.getpid()
        # Guards the socket: one question and its answer at a time.
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
        """Start a program in the cluster's directory, its output appended to ``log``, and return its process id."""
        return int(self._ask("spawn", [str(word) for word in argv], str(log)))

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a program that was spawned, negative for a signal; ``None`` while it runs."""
        code: int | None = self._ask("poll", pid)
        return code

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to one program that was spawned; nothing when it has ended."""
        self._ask("signal", pid, signum)

    def freeze(self, data: Path) -> None:
        """Stop every process that works in ``data``; return when none of them runs."""
        self._ask("freeze", str(data))

    def thaw(self, data: Path) -> None:
        """Let every process that works in ``data`` go on."""
        self._ask("thaw", str(data))

    def kill(self, data: Path) -> None:
        """Kill every process that works in ``data``; return when none is left."""
        self._ask("kill", str(data))

    def write(self, path: Path, text: str) -> None:
        """Replace a file whole."""
        self._ask("write", str(path), text)

    def remove(self, path: Path) -> None:
        """Remove a directory, and the shared memory of a killed server whose data it holds."""
        self._ask("remove", str(path))

    def keep(self) -> None:
        """Let the keeper and its servers outlive the owner, until the keeper gets SIGTERM."""
        self._ask("keep")
        self._kept = True

    def close(self) -> None:
        """Kill the servers and remove the directory, unless kept; return when that is done.

        A forked child owns nothing: there this does nothing.
        """
        if os.getpid() != self._owner:
            return
        self.closed = True
        if self._kept:
            self._process.returncode = 0  # it outlives us on purpose; no ResourceWarning
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends it also where a forked child holds a copy
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
                # An exception raised by a signal handler can leave an earlier answer unread.
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
    """The keeper process's side: one method an operation, named as in :class:`Keeper`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ended: dict[int, int] = {}
        self.kept = False
        # Orphans of a killed postmaster come to us: they are found, and reaped even where PID 1 reaps nothing.
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def ready(self) -> None:
        """Answer the first question: the set-up is done."""

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
        # Not reaped means not reused: the id is still our child's.
        if self.poll(pid) is None:
            os.kill(pid, signum)

    def freeze(self, data: str) -> None:
        # Until it is stopped itself, the postmaster may fork another: scan until all that there are have stopped.
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
        # One that is about to end works nowhere any more. And what we leave, PID 1 of a container may never reap.
        while any(Path(f"/proc/{pid}").exists() for pid in killed):
            self.reap()
            time.sleep(0.001)

    def write(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        # A killed postmaster leaves its System V segment; line 7 of its lock file is "key id".
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
        """Return our living descendants and their states, all or those that work in ``data``.

        Every server process has its data directory as working directory, also when its postmaster is gone.
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
    """Answer until the owner is gone.

    End-of-file alone would not do: a child that the owner forked may hold a copy of its end. So watch our parent, too.
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
