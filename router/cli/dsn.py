"""``router dsn`` and ``router psql``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, NamedTuple
from urllib.parse import quote, urlencode

import typer

from router import Router
from router.cli._common import Config, ReadOnly, Version, fail, load

if TYPE_CHECKING:
    from pathlib import Path

_REFUSE_WRITES = "-c default_transaction_read_only=on"


class _Chosen(NamedTuple):
    params: dict[str, str]
    password: str


def dsn(*, version: Version = None, read_only: ReadOnly = False, config: Config = None) -> None:
    """Print the connection string of the right node now.

    It connects to find the node. The password is left out. With --read-only, sessions opened with it refuse writes.

    \b
    pg_dump "$(router dsn --version v2 --read-only)"
    """  # noqa: D301  (\b keeps the lines as they are)
    params, _ = _choose(config, version, read_only=read_only)
    if read_only:
        params["options"] = _refusing(params.get("options"))
    print(_uri(params))


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- PSQL_ARGUMENT", help="Passed on to psql.")
    ] = None,
    *,
    version: Version = None,
    read_only: ReadOnly = False,
    config: Config = None,
) -> None:
    """Run psql on the right node now.

    The password passes by PGPASSWORD, never as an argument. With --read-only, the session refuses writes.

    \b
    router psql --version v2
    router psql --version v2 --read-only -- -c "SELECT count(*) FROM customer"
    """  # noqa: D301  (\b keeps the lines as they are)
    params, password = _choose(config, version, read_only=read_only)
    environment = dict(os.environ)
    if password:
        environment["PGPASSWORD"] = password
    if read_only:
        # Out of the connection string, where options would hide PGOPTIONS.
        environment["PGOPTIONS"] = _refusing(params.pop("options", environment.get("PGOPTIONS")))
    sys.stdout.flush()
    try:
        os.execvpe("psql", ["psql", "-d", _uri(params), *(arguments or ())], environment)  # noqa: S606,S607
    except OSError as error:
        fail(f"psql cannot be run ({error.strerror}): install PostgreSQL's client programs, or add psql to PATH")


def _choose(config: Path | None, version: str | None, *, read_only: bool) -> _Chosen:
    with Router(load(config)) as router, router.connection(version=version, read_only=read_only) as connection:
        # The only connection that is borrowed shows which node serves it.
        node = next(
            node.node
            for cluster in router.stats().versions
            for node in cluster.nodes
            if any(pool is not None and pool.in_use for pool in (node.read, node.write))
        )
        return _Chosen(dict(node.params), connection.info.password)


def _refusing(options: str | None) -> str:
    return f"{options} {_REFUSE_WRITES}" if options else _REFUSE_WRITES


def _uri(params: dict[str, str]) -> str:
    rest = dict(params)
    host, port, user, dbname = (rest.pop(key, "") for key in ("host", "port", "user", "dbname"))
    place = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    login = f"{quote(user, safe='')}@" if user else ""
    query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    return f"postgresql://{login}{place}:{port}/{quote(dbname, safe='')}{query}"
