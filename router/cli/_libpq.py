"""The node for a request now, as programs that use libpq are told of it: a connection string, and an environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from psycopg import pq

from router.core.errors import RouterError
from router.core.names import option

if TYPE_CHECKING:
    from router import Router


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes now.

    Attributes:
        params: libpq's parameters, nothing secret; ``options`` makes the session the tenant's.
        password: The password; empty for none.
    """

    params: dict[str, str]
    password: str = field(repr=False)


def find(router: Router, version: str | None, tenant: str | None, *, read_only: bool = False) -> Place:
    """Connect as a request would, to see which node serves it and that the tenant is there.

    Args:
        router: The router.
        version: The version; ``None`` for the tenant's, or the default.
        tenant: The tenant; ``None`` for none.
        read_only: Whether it is for reading.

    Returns:
        The node's place.

    Raises:
        UnknownTenant: The tenant is not there.
        Unavailable: No node can serve it now.
        RouterError: A transaction pooler stands there, which would drop the session's settings.
    """
    checkout = router.connection(version=version, tenant=tenant, read_only=read_only)
    with checkout as connection:
        node, password = checkout.pool.node, connection.info.password
        target = router.explain(version=version, tenant=tenant, read_only=read_only).target
    params = dict(node.params)
    # What a session of a shared pool is set to later, one of its own begins with.
    settings = {} if target.scope is None else dict(target.scope.settings)
    params |= {key: settings.pop(key) for key in ("application_name",) if key in settings}
    options = [params.get("options"), *(option(*setting) for setting in settings.items())]
    if settings and node.pooler == "transaction":
        raise RouterError(
            f"tenant {tenant!r} is kept apart by {', '.join(settings)}, which {node}, a transaction pooler, does not "
            "keep for a session: a program of its own has to connect to PostgreSQL itself"
        )
    if any(options):
        params["options"] = " ".join(filter(None, options))
    return Place(params, password)


def uri(params: dict[str, str]) -> str:
    """Write a connection string.

    Args:
        params: libpq's parameters.

    Returns:
        A URI.
    """
    rest = dict(params)
    host, port, user, dbname = (rest.pop(key, "") for key in ("host", "port", "user", "dbname"))
    where = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    login = f"{quote(user, safe='')}@" if user else ""
    query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    return f"postgresql://{login}{where}:{port}/{quote(dbname, safe='')}{query}"


def environment(place: Place) -> dict[str, str]:
    """Make the environment of a program that is to work in a place.

    Args:
        place: The place.

    Returns:
        This process's variables, with ``DATABASE_URL``, and with those of libpq that say the same: whichever a program
        looks at, and be it none, it gets there. Only ``PGPASSWORD`` has the password.
    """
    params, variables = dict(place.params), dict(os.environ)
    if service := variables.pop("PGSERVICE", ""):  # as a variable it would be stronger than those below
        params.setdefault("service", service)
    variables["DATABASE_URL"] = uri(params)
    for known in pq.Conninfo.get_defaults():
        value = params.get(known.keyword.decode())
        if value is not None and known.envvar and known.keyword != b"service":
            variables[known.envvar.decode()] = value
    if place.password:
        variables["PGPASSWORD"] = place.password
    return variables
