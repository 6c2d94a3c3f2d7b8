"""``router dsn`` and ``router psql``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from router import Router
from router.cli._common import Config, ReadOnly, Tenant, Version, fail, load
from router.cli._libpq import find, uri

_REFUSE_WRITES = "-c default_transaction_read_only=on"


def dsn(*, version: Version = None, tenant: Tenant = None, read_only: ReadOnly = False, config: Config = None) -> None:
    """Print the connection string of the right node now.

    It connects to find the node. The password is left out. With --read-only, sessions opened with it refuse writes;
    with --tenant, they are the tenant's.

    \b
    pg_dump "$(router dsn --version v2 --read-only)"
    pg_dump -n acme "$(router dsn --tenant acme)"
    """  # noqa: D301  (\b keeps the lines as they are)
    with Router(load(config)) as router:
        params = find(router, version, tenant, read_only=read_only).params
    if read_only:
        params["options"] = _refusing(params.get("options"))
    print(uri(params))


def psql(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- PSQL_ARGUMENT", help="Passed on to psql.")
    ] = None,
    *,
    version: Version = None,
    tenant: Tenant = None,
    read_only: ReadOnly = False,
    config: Config = None,
) -> None:
    """Run psql on the right node now.

    The password passes by PGPASSWORD, never as an argument. With --read-only, the session refuses writes; with
    --tenant, it is the tenant's.

    \b
    router psql --version v2
    router psql --tenant acme
    router psql --version v2 --read-only -- -c "SELECT count(*) FROM customer"
    """  # noqa: D301  (\b keeps the lines as they are)
    with Router(load(config)) as router:
        place = find(router, version, tenant, read_only=read_only)
    params, environment = place.params, dict(os.environ)
    if place.password:
        environment["PGPASSWORD"] = place.password
    if read_only:
        # Out of the connection string, where options would hide PGOPTIONS.
        environment["PGOPTIONS"] = _refusing(params.pop("options", environment.get("PGOPTIONS")))
    sys.stdout.flush()
    try:
        os.execvpe("psql", ["psql", "-d", uri(params), *(arguments or ())], environment)  # noqa: S606,S607
    except OSError as error:
        fail(f"psql cannot be run ({error.strerror}): install PostgreSQL's client programs, or add psql to PATH")


def _refusing(options: str | None) -> str:
    return f"{options} {_REFUSE_WRITES}" if options else _REFUSE_WRITES
