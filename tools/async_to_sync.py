"""Write the sync shell from the async one: ``router/_async`` to ``router/_sync``, and their tests likewise.

Drops ``async`` and ``await``, renames what ``RENAMES`` lists, and formats the result. Where threads and asyncio differ
in more than a name, the pair of names belongs in ``router/_runtime/``, and here.

Usage: ``python tools/async_to_sync.py [--check]``; with ``--check`` nothing is written, and the exit code is 1 when a
generated file is out of date, or an entry of ``RENAMES`` is used nowhere.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from itertools import accumulate
from pathlib import Path

# Each word on the left, in code, docstrings and comments, becomes the one on the right; a key may be dotted ("a.b").
RENAMES = {
    # modules
    "_async": "_sync",
    # router
    "AsyncCheckout": "Checkout",
    "AsyncCheckouts": "Checkouts",
    "AsyncOperations": "Operations",
    "AsyncDirectory": "Directory",
    "AsyncDriverConnection": "DriverConnection",
    "AsyncDriverPool": "DriverPool",
    "AsyncPoolOwner": "PoolOwner",
    "AsyncPoolSessions": "PoolSessions",
    "AsyncOpens": "Opens",
    "AsyncKnowsSessions": "KnowsSessions",
    "AsyncCloser": "Closer",
    "AsyncRelease": "Release",
    "AsyncQuarantine": "Quarantine",
    "AsyncSessionObjects": "SessionObjects",
    "AsyncBorrows": "Borrows",
    "AsyncHomes": "Homes",
    "AsyncTenantSource": "TenantSource",
    "AsyncToldOfChanges": "ToldOfChanges",
    "AsyncCluster": "SyncCluster",
    "AsyncClusters": "Clusters",
    "AsyncServerInUse": "ServerInUse",
    "AsyncLane": "Lane",
    "AsyncMonitor": "Monitor",
    "AsyncAcquiredConnection": "AcquiredConnection",
    "AsyncAcquiredPooledConnection": "AcquiredPooledConnection",
    "AsyncLease": "Lease",
    "AsyncLogin": "Login",
    "AsyncNodeConnection": "NodeConnection",
    "AsyncNodePool": "NodePool",
    "AsyncOpener": "Opener",
    "AsyncOpening": "Opening",
    "AsyncReading": "Reading",
    "AsyncRouter": "Router",
    "AsyncInForce": "InForce",
    "AsyncLaneTable": "LaneTable",
    "AsyncRoutes": "Routes",
    "AsyncSilence": "Silence",
    "AsyncClosing": "Closing",
    "AsyncClosings": "Closings",
    "AsyncEviction": "Eviction",
    "AsyncServerQueries": "ServerQueries",
    "AsyncSlot": "Slot",
    "AsyncSlotRequest": "SlotRequest",
    "AsyncSlots": "Slots",
    "AsyncSqlSource": "SqlSource",
    "AsyncStatements": "Statements",
    "AsyncLookupCheckout": "LookupCheckout",
    "AsyncAdmission": "Admission",
    "AsyncChoice": "Choice",
    "AsyncLender": "Lender",
    "AsyncLineOwner": "LineOwner",
    "AsyncWaiter": "Waiter",
    "AsyncPoolLine": "PoolLine",
    "AsyncPoolSet": "PoolSet",
    "AsyncPoolRequest": "PoolRequest",
    "AsyncLine": "Line",
    "AsyncPooledConnection": "PooledConnection",
    "AsyncReturnedConnection": "ReturnedConnection",
    "AsyncPools": "Pools",
    "AsyncScopedCheckout": "ScopedCheckout",
    "AsyncSharedPool": "SharedPool",
    "AsyncTrackedCheckout": "TrackedCheckout",
    "AsyncWatcher": "Watcher",
    # router/_runtime: the pairs
    "AConfigure": "Configure",
    "AFlag": "Flag",
    "AWakeup": "Wakeup",
    "AFunction": "Function",
    "AGuard": "Guard",
    "ALimited": "Limited",
    "APassword": "Password",
    "ALoop": "Loop",
    "ASource": "Source",
    "AWorker": "Worker",
    "aaddresses": "addresses",
    "acall": "call",
    "acan_spawn": "can_spawn",
    "acheck_locks": "check_locks",
    "abind_loop": "bind_loop",
    "aconsult": "consult",
    "aconcurrently": "concurrently",
    "aloop_closed": "loop_closed",
    "ajoin": "join",
    "aping": "ping",
    "arunning_loop()": "None",
    "await_end": "wait_end",
    "await_quietly": "wait_quietly",
    "asleep": "sleep",
    "aspawn": "spawn",
    "afree_lock": "free_lock",
    "atake_lock": "take_lock",
    "atry_lock": "try_lock",
    "ashielded": "shielded",
    # the same of the tests' support
    "aall_of": "all_of",
    "acurrent": "current",
    "aeventually": "eventually",
    "aoutside": "outside",
    "arunning": "running",
    "atogether": "together",
    # psycopg, psycopg_pool
    "psycopg_pool.pool_async": "psycopg_pool.pool",
    "AsyncConnection": "Connection",
    "AsyncConnectionPool": "ConnectionPool",
    "AsyncClientCursor": "ClientCursor",
    "AsyncRawCursor": "RawCursor",
    "ALock": "Lock",
    "APoolLock": "PoolLock",
    "AsyncCursor": "Cursor",
    "AsyncPipeline": "Pipeline",
    "AsyncServerCursor": "ServerCursor",
    # the language and its library
    "anext": "next",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}
FOLDERS = {"router/_async": "router/_sync", "tests/_async": "tests/_sync"}

ROOT = Path(__file__).resolve().parent.parent
WORD = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(RENAMES, key=len, reverse=True)))})(?!\w)")
KEYWORD_IN_CODE = re.compile(r"\b(?:async|await)\s+")
KEYWORD_IN_TEXT = re.compile(r"\b(?:async (?=(?:with|for|def)\b)|await (?=\w))")  # "the async shell" stays as it is
# `(await call(…)).attribute` keeps no parentheses; a call broken over lines may need them, and is left alone.
PARENTHESISED_AWAIT = re.compile(r"(?<![\w)\]])\((await [\w.]+\((?:[^()\n]|\([^()\n]*\))*\))\)")
AWAITABLE = re.compile(r"\bAwaitable\[((?:[^\[\]]|\[[^\[\]]*\])*)\]")  # what it gives is left
TEXT_TOKENS = {tokenize.STRING, tokenize.COMMENT} | {
    getattr(tokenize, name) for name in ("FSTRING_MIDDLE", "TSTRING_MIDDLE") if hasattr(tokenize, name)
}


def translate(source: str, used: Counter[str] | None = None) -> str:
    """Turn async source into sync source, not yet formatted.

    Args:
        source: The text of one module.
        used: Counts, when given, how often each entry of ``RENAMES`` was applied.

    Returns:
        The text of the sync module.
    """
    source = AWAITABLE.sub(r"\1", PARENTHESISED_AWAIT.sub(r"\1", source))
    line_starts = list(accumulate((len(line) for line in source.splitlines(keepends=True)), initial=0))
    pieces, done = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXT_TOKENS:
            start, end = (line_starts[row - 1] + column for row, column in (token.start, token.end))
            pieces += [KEYWORD_IN_CODE.sub("", source[done:start]), KEYWORD_IN_TEXT.sub("", source[start:end])]
            done = end
    pieces.append(KEYWORD_IN_CODE.sub("", source[done:]))

    def rename(match: re.Match[str]) -> str:
        if used is not None:
            used[match[0]] += 1
        return RENAMES[match[0]]

    return WORD.sub(rename, "".join(pieces))


def formatted(source: str, path: str) -> str:
    """Sort the imports, drop the unused, and lay out the lines of a module, as the project's ruff does for ``path``."""
    for command in ("check --select=I,F401 --fix-only", "format"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "--quiet", f"--stdin-filename={path}", "-"]
        source = subprocess.run(ruff, cwd=ROOT, input=source, stdout=subprocess.PIPE, text=True, check=True).stdout
    return source


def main(arguments: list[str]) -> int:
    """Write or check every generated file.

    Args:
        arguments: Empty, or ``["--check"]``.

    Returns:
        The exit code: 0 when all is well, 1 when ``--check`` found a fault, 2 for another argument.
    """
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    used: Counter[str] = Counter()
    wanted: dict[Path, str] = {}
    for source_folder, folder in FOLDERS.items():
        for path in sorted((ROOT / source_folder).rglob("*.py")):
            name = path.relative_to(ROOT / source_folder).as_posix()
            header = f"# Generated from {source_folder}/{name} by tools/async_to_sync.py: do not edit.\n"
            text = header + translate(path.read_text(encoding="utf-8"), used)
            wanted[ROOT / folder / name] = formatted(text, f"{folder}/{name}")
    present = {path: path.read_text(encoding="utf-8") for to in FOLDERS.values() for path in (ROOT / to).rglob("*.py")}
    stale = sorted(path for path in wanted.keys() | present if wanted.get(path) != present.get(path))

    if arguments:
        problems = [f"{path.relative_to(ROOT)}: out of date; run `make generate`" for path in stale]
        unused = [word for word in RENAMES if not used[word]]
        problems += [f"tools/async_to_sync.py: {word!r} in RENAMES is used nowhere" for word in unused]
        print("\n".join(problems), end="\n" if problems else "")
        return bool(problems)
    for path in stale:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
        print(f"{'wrote' if path in wanted else 'removed'} {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
