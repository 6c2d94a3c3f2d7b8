"""``router each``: a command or SQL for many tenants, each done once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections import deque
from contextlib import closing, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.text import Text

from router import Router
from router._runtime.workers import concurrently
from router.cli._common import BAD_USAGE, FAILED, AsJson, Config, fail, load, print_json
from router.cli._job import CommandJob, SqlJob
from router.cli._journal import Journal, JournalError
from router.cli._screen import Column, console, in_terminal, table
from router.cli._tenants import meant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from router import RouterSettings
    from router.cli._job import Failure, Job

WIDTH = 200
"""How many characters of the last message are shown."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FOR_DIRECTORY = 2  # connections: one hears of changes, one asks

# A statement that would end the transaction, or belongs to one that would; and texts in which it is none.
_ENDS_TRANSACTION = re.compile(
    r"\s*(BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!(\s+(WORK|TRANSACTION))?\s+TO\b))\b",
    re.IGNORECASE,
)
_NO_STATEMENT = re.compile(
    r"--[^\n]*|(?P<comment>/\*.*?\*/)|\bE'(?:[^'\\]|\\.)*'|'[^']*'|\"[^\"]*\"|"
    r"(?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|\bBEGIN\s+ATOMIC\b.*?\bEND\b",
    re.IGNORECASE | re.DOTALL,
)


def each(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND", help="What to run, with its arguments.")
    ] = None,
    *,
    pattern: Annotated[
        str,
        typer.Option(
            "--tenants",
            metavar="all|PATTERN",
            help="All listed tenants; or keys, and patterns (* ? [...]) of listed keys, separated by commas.",
        ),
    ],
    version: Annotated[
        str | None,
        typer.Option(
            "--version",
            metavar="KEY",
            help="The version to work in; patterns match only tenants that live there.",
            show_default="each tenant's first",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--sql", metavar="FILE", help="Run SQL instead of a command, in one transaction for each tenant."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many tenants to work on at the same time.")] = 8,
    canary: Annotated[
        int, typer.Option(min=0, metavar="N", help="Do N tenants first, and stop if one of them fails.")
    ] = 0,
    stop_on_error: Annotated[
        bool, typer.Option("--stop-on-error", help="Begin no further tenant once one has failed.")
    ] = False,
    log: Annotated[Path, typer.Option(metavar="PATH", help="The file that records what is done.")] = Path(
        "router-each.log"
    ),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the last run in the log, and try again what failed. Without it, a run does every tenant.",
        ),
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="With --resume: also repeat what was cut off, and may or may not be done.")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Run a command for every tenant, or SQL.

    The command gets the tenant's database, on the current primary, in DATABASE_URL, and for programs that use libpq
    in PGHOST, PGOPTIONS and so on; the password in PGPASSWORD; and the key in ROUTER_TENANT. Its sessions are set to
    the tenant: search_path, role and row setting are startup options. It reads no input. SQL runs in a session like
    those of the tenant's requests; what cannot run in a transaction needs a command, such as psql.

    Each tenant is done once. After Ctrl-C or SIGTERM, the tenants that have begun are finished; after a second one,
    running commands are left alone, and still record their end in the log, also if this process is killed. --resume
    waits for them.

    \b
    router each --tenants all --canary 3 -- alembic upgrade head
    router each --tenants "eu-*,acme" --version v2 --sql backfill.sql
    router each --tenants all --resume -- alembic upgrade head
    """  # noqa: D301  (\b keeps the lines as they are)
    if (file is None) == (not command):
        fail("give either a command, after --, or SQL by --sql FILE", BAD_USAGE)
    if redo and not resume:
        fail("--redo is about what --resume finds: it needs --resume", BAD_USAGE)
    text = None if file is None else _read(file)
    if command and shutil.which(command[0]) is None:
        fail(f"{command[0]} is not found, or cannot be run: name a program that is there", BAD_USAGE)
    settings = load(config)
    topology = settings.topology()
    keys = list(meant(settings, topology, pattern, version))
    if not keys:
        fail("no tenant is listed: name their keys, or list them in the settings or the directory", BAD_USAGE)
    what = f"--sql {file}" if command is None else command[0]
    run = {"router": "each", "what": what, "run": _digest(command or text), "version": version}
    screen = _Screen(log, as_json=as_json)
    try:
        journal = Journal(log, run, resume=resume, wait=lambda: screen.say("waiting for commands that still run ..."))
    except JournalError as error:
        fail(error, BAD_USAGE)
    todo = [key for key in keys if journal.entries.get(key, {}).get("code") != 0]
    with closing(journal):
        with Router(_limited(settings, jobs)) as router:
            job: Job
            if text is None:
                job = CommandJob(router, version, journal, command or [], redo=redo)
            else:
                job = SqlJob(router, version, journal, text, redo=redo)
            runner = _Runner(job, screen, stop_on_error=stop_on_error)
            with screen.showing(len(todo)), runner.interruptible():
                runner.run(todo[:canary], jobs)
                if not runner.failures:
                    runner.run(todo[canary:], jobs)
        left = [key for key in todo if key not in runner.done]
        if not left:
            journal.note({"end": True})
    screen.end(len(keys), runner.failures, left)
    if runner.failures or left:
        raise typer.Exit(FAILED)


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}", BAD_USAGE)
    if "\0" in text:  # libpq would send what stands before it, and all would seem done
        fail(f"{file} has a NUL character, after which nothing would be run: take it out", BAD_USAGE)
    if any("/*" in comment[2:] for found in _NO_STATEMENT.finditer(text) if (comment := found["comment"])):
        fail(f"{file} has a comment in a comment, in which a COMMIT could hide: take it out", BAD_USAGE)
    for statement in _NO_STATEMENT.sub(" ", text).split(";"):
        if found := _ENDS_TRANSACTION.match(statement):
            fail(
                f"{file} has {found[1].upper()}, and for each tenant it is one transaction: leave that out, or run a "
                f"command: router each ... -- psql -f {file}",
                BAD_USAGE,
            )
    return text


def _digest(what: object) -> str:
    """Make a digest of a command or SQL, which may hold a secret: the log must not show it."""
    return sha256(json.dumps(what).encode()).hexdigest()[:16]


def _limited(settings: RouterSettings, jobs: int) -> RouterSettings:
    """Limit the connections to those needed: commands open their own, and need room for them."""
    servers = {node.server for cluster in settings.topology().versions.values() for node in cluster.nodes}
    needed = jobs + len(servers) + _FOR_DIRECTORY
    return settings.model_copy(update={"max_connections": min(settings.max_connections, needed)})


class _Runner:
    """Runs the job for one tenant after the other, several at a time.

    Attributes:
        done: The tenants for whom it has ended, well or not.
        failures: Why it failed, for those for whom it did.
    """

    def __init__(self, job: Job, screen: _Screen, *, stop_on_error: bool) -> None:
        self.done: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self._job = job
        self._screen = screen
        self._stop_on_error = stop_on_error
        self._todo: deque[str] = deque()
        self._stopped = False

    def run(self, tenants: Sequence[str], jobs: int) -> None:
        """Run it for each tenant, unless all is stopped before."""
        if not self._stopped:
            self._todo = deque(tenants)
            concurrently(self._work, min(jobs, len(tenants)), self._todo.clear)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal stop all that has not begun, for the length of a block; a second one, all."""
        before = {number: signal.signal(number, self._interrupted) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self, *_: object) -> None:
        if self._stopped:
            self._screen.say("leaving what still runs to itself: --resume finds out what became of it", last=True)
            os._exit(FAILED)  # anything else would wait for it
        self._stopped = True
        self._todo.clear()
        self._screen.say("stopping: what has begun is finished first; once more leaves it to itself")

    def _work(self) -> None:
        while self._todo:
            try:
                tenant = self._todo.popleft()
            except IndexError:  # another thread took the last one
                return
            failure = self._job.run(tenant, partial(self._screen.show, tenant))
            self.done.add(tenant)
            if failure is not None:
                self.failures[tenant] = failure
                if self._stop_on_error:
                    self._todo.clear()
            self._screen.over(tenant, failure)


class _Screen:
    """What is shown: on a terminal with a bar, elsewhere in plain lines; on stderr when stdout is for JSON."""

    def __init__(self, log: Path, *, as_json: bool) -> None:
        self._log = log
        self._as_json = as_json
        self._guard = Lock()  # so that what is said for one tenant stays together
        self._total = 0
        self._over = 0
        self._bar: Progress | None = None

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """Show how far it is, for the length of a block."""
        self._total = total
        if self._as_json or not in_terminal():
            yield
            return
        with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console()) as self._bar:
            self._bar.add_task("", total=total)
            yield
        self._bar = None

    def say(self, line: str, *, last: bool = False) -> None:
        """Say something on stderr, and if it is the last leave the terminal as it was."""
        if last and self._bar is not None:
            self._bar.stop()
        # A signal may come while what the one before has to say is written: sys.stderr would not be entered twice.
        os.write(sys.stderr.fileno(), f"{line}\n".encode())

    def show(self, tenant: str, lines: Iterable[str]) -> str:
        """Show what was said for a tenant; the last of it."""
        last = ""
        with self._guard:
            for line in lines:
                last = line.strip() or last
                self._line(f"{tenant} | {line}")
        return last

    def over(self, tenant: str, failure: Failure | None) -> None:
        """Show that the job has ended for a tenant."""
        with self._guard:
            self._over += 1
            if self._bar is not None:
                self._bar.advance(self._bar.task_ids[0])
            if failure is not None:
                said = f": {failure.text[:WIDTH]}" if failure.text else ""
                self._line(f"{tenant}: failed: {failure.code}{said} ({self._over} of {self._total})")
            elif self._bar is None:
                self._line(f"{tenant}: done ({self._over} of {self._total})")

    def end(self, count: int, failures: Mapping[str, Failure], left: Sequence[str]) -> None:
        """Show what came of it all."""
        done = count - len(failures) - len(left)
        if self._as_json:
            print_json(
                {
                    "ok": done == count,
                    "log": str(self._log),
                    "done": done,
                    "failed": {tenant: failure._asdict() for tenant, failure in failures.items()},
                    "left": left,
                }
            )
            return
        if failures:
            screen = console()
            columns = (Column("tenant", share=0.3), Column("code"), Column("said last", share=0.5))
            rows = [(tenant, failure.code, failure.text[:WIDTH]) for tenant, failure in failures.items()]
            screen.print(table(columns, rows, screen))
        go_on = "" if done == count else "; go on with --resume"
        print(f"{done} of {count} done, {len(failures)} failed, {len(left)} left; log: {self._log}{go_on}")

    def _line(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(Text(line), soft_wrap=True)
        else:
            print(line, file=sys.stderr if self._as_json else sys.stdout, flush=True)
