"""What ``router each`` runs for each tenant: a command, or SQL.

What runs a command writes into the log itself that it begins and how it ended (``_child.py``). With SQL, the number of
the transaction is in the log before COMMIT is sent: if nothing follows it there, PostgreSQL is asked what became of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import psycopg

from router._sync.each import STALLED
from router._sync.pool.scripts import cursor_of
from router.cli import _child
from router.cli._libpq import environment, find
from router.core import sql
from router.core.errors import PoolExhausted, RouterError, TransactionOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeAlias

    from router import Router
    from router.cli._journal import Journal

    Show: TypeAlias = Callable[[Iterable[str]], str]

T = TypeVar("T")

AGAIN = 0.05
"""Seconds until what is not ready yet is tried again: a connection, or the end of a transaction."""


class Failure(NamedTuple):
    """Why a tenant is not done.

    Attributes:
        code: An exit code, a SQLSTATE, or the kind of the error.
        text: What was said last.
    """

    code: str
    text: str


CUT_OFF = Failure("unknown", "was cut off, and may be done or not: check it, then --resume --redo does it again")


class _Progress:
    """How far all jobs together are: whether the connections that one waits for are held by the others."""

    def __init__(self) -> None:
        self._busy: list[None] = []  # an entry for each tenant whose work is done now
        self._at = monotonic()  # when the last one ended

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Do the work for a tenant, for which connections may be in use."""
        self._busy.append(None)
        try:
            yield
        finally:
            self._at = monotonic()  # first: else a thread that waits could see nothing busy, and a moment long ago
            self._busy.pop()

    def when_free(self, do: Callable[[], T]) -> T:
        """Do it, if need be once the work for other tenants has given its connections back."""
        while True:
            try:
                return do()
            except PoolExhausted:
                if not self._busy and monotonic() - self._at > STALLED:
                    raise
                sleep(AGAIN)


class Job(ABC):
    """What is run for each tenant."""

    def __init__(self, router: Router, version: str | None, journal: Journal, *, redo: bool) -> None:
        """Prepare it.

        Args:
            router: Finds the tenants' databases.
            version: The version to work in; ``None`` for each tenant's first.
            journal: The log.
            redo: Whether to run it again where it was cut off, and it is not known how far it came.
        """
        self._router = router
        self._version = version
        self._journal = journal
        self._redo = redo
        self._progress = _Progress()

    @abstractmethod
    def run(self, tenant: str, show: Show) -> Failure | None:
        """Do it, and note that in the log.

        Args:
            tenant: The tenant.
            show: Shows lines of what is said, and returns the last.

        Returns:
            Why it is not done; ``None`` if it is.
        """

    def _failed(self, tenant: str, error: Exception) -> Failure:
        said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        code = getattr(error, "sqlstate", None) or type(error).__name__
        self._journal.note({"tenant": tenant, "code": code})
        return Failure(code, said or " ".join(str(error).split()))


class CommandJob(Job):
    """Runs a command, which goes on when this process is killed."""

    def __init__(
        self, router: Router, version: str | None, journal: Journal, command: Sequence[str], *, redo: bool
    ) -> None:
        """Prepare it; ``command`` is what is run, all else as for :class:`Job`."""
        super().__init__(router, version, journal, redo=redo)
        self._command = command

    def run(self, tenant: str, show: Show) -> Failure | None:
        """Run it for a tenant."""
        if not self._redo and "code" not in self._journal.entries.get(tenant, {"code": None}):
            return CUT_OFF
        try:
            place = self._progress.when_free(lambda: find(self._router, self._version, tenant))
        except (RouterError, psycopg.Error) as error:
            return self._failed(tenant, error)
        entry, log = json.dumps({"tenant": tenant})[:-1], self._journal.descriptor
        # Into a file: to write into a pipe whose reader was killed would end the command, too.
        with self._progress.under_way(), TemporaryFile() as output:
            subprocess.run(
                [sys.executable, "-I", "-S", _child.__file__, str(log), entry, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(place) | {"ROUTER_TENANT": tenant},
                start_new_session=True,  # a Ctrl-C on the terminal is not meant for it
                pass_fds=[log],
                check=False,
            )
            output.seek(0)
            last = show(line.decode(errors="replace").rstrip("\r\n") for line in output)
        self._journal.read()
        code = self._journal.entries.get(tenant, {}).get("code")
        if code == 0:
            return None
        return CUT_OFF if code is None else Failure(str(code), last)


class SqlJob(Job):
    """Runs SQL, in one transaction and in the session of the tenant's requests."""

    def __init__(self, router: Router, version: str | None, journal: Journal, text: str, *, redo: bool) -> None:
        """Prepare it; ``text`` is the statements, all else as for :class:`Job`."""
        super().__init__(router, version, journal, redo=redo)
        self._text = text

    def run(self, tenant: str, show: Show) -> Failure | None:
        """Run them for a tenant."""
        before = self._journal.entries.get(tenant, {})
        said: list[str] = []
        try:
            committed = self._was_committed(tenant, before) if "transaction" in before else False
            if committed is None and not self._redo:
                return CUT_OFF
            if not committed:
                self._progress.when_free(lambda: self._run(tenant, said))
        except TransactionOutcomeUnknown:  # what is in the log now is the truth
            return Failure("unknown", "the connection died during COMMIT: --resume finds out whether it is committed")
        except (RouterError, psycopg.Error) as error:
            show(said)
            return self._failed(tenant, error)
        self._journal.note({"tenant": tenant, "code": 0})
        show(said)
        return None

    def _run(self, tenant: str, said: list[str]) -> None:
        with self._router.connection(version=self._version, tenant=tenant) as connection, self._progress.under_way():

            def hear(notice: psycopg.errors.Diagnostic) -> None:
                said.append(f"{notice.severity}: {notice.message_primary}")

            connection.add_notice_handler(hear)
            try:
                # Not prepared: only then may it be several statements.
                cursor = connection.execute(self._text, prepare=False)
                while True:
                    if cursor.description is not None:
                        said += ["\t".join("" if value is None else str(value) for value in row) for row in cursor]
                    if not cursor.nextset():
                        break
            finally:
                connection.remove_notice_handler(hear)
            [(number, timeline)] = (row.values() for row in cursor_of(connection).execute(sql.TRANSACTION))
            self._journal.note({"tenant": tenant, "transaction": number, "timeline": timeline})

    def _was_committed(self, tenant: str, before: Any) -> bool | None:
        """Whether the transaction of an earlier process was committed; ``None`` if that is not known."""

        def ask() -> tuple[str | None, int]:
            state: str | None
            timeline: int
            with self._router.connection(version=self._version, tenant=tenant) as connection:
                try:
                    cursor = cursor_of(connection).execute(sql.TRANSACTION_STATE, [before["transaction"]])
                    [(state, timeline)] = (row.values() for row in cursor)
                except psycopg.errors.InvalidParameterValue:  # lost by a failover, and none has had its number since
                    return "aborted", before["timeline"]
                return state, timeline

        while (found := self._progress.when_free(ask))[0] == "in progress":
            sleep(AGAIN)
        state, timeline = found
        if state == "aborted":
            return False
        # After a failover, another transaction may have had the number.
        return True if state == "committed" and timeline == before["timeline"] else None
