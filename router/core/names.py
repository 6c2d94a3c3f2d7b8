"""Renders the names of schemas, roles, databases and hosts from the keys of a tenant and a version, and quotes them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.core.topology import Home, Node


NAME_BYTES = 63
"""How many bytes of a name PostgreSQL keeps. It cuts the rest off, so that two tenants might get the same name."""

# Patterns, which `re` compiles when one is first used.
_PLACEHOLDER = r"\{(tenant|version)\}"
# Names that PostgreSQL gives a special meaning in search_path, and as a role.
_NO_SCHEMA = r"(?s)pg_.*|information_schema|\$user"
_NO_ROLE = r"(?s)pg_.*|none|public"
_RESERVED = {"schema": _NO_SCHEMA, "role": _NO_ROLE, "user": _NO_ROLE}
# These schemas, roles and databases exist already: no key of a tenant may make one of these names.
_EVERYBODYS = frozenset({"public", "postgres", "template0", "template1"})
_PLAIN = r"\w[\w.-]*"
_LABEL = r"[A-Za-z0-9_-]+"

OWN_SERVERS = "tenant"
"""The prefix of the name of a tenant's own cluster; the tenant's key follows."""


def names_of(home: Home) -> list[str]:
    """List the values of a home that may hold a tenant's key, and so separate tenants.

    Args:
        home: Where a tenant lives.

    Returns:
        The names, and the values of the parameters of its own servers.
    """
    own = () if home.cluster is None else home.cluster.nodes
    return [home.database, home.user, home.role, *home.schema, *(value for node in own for _, value in node.params)]


class InvalidName(ValueError):
    """The keys make a name that PostgreSQL or libpq would read as something else; the message says which name."""


def rendered(home: Home, tenant: str, version: str) -> Home:
    """Replace ``{tenant}`` and ``{version}`` in a home by the keys, in one pass: braces inside a key stay as they are.

    Args:
        home: Where a tenant lives.
        tenant: The tenant.
        version: The version.

    Returns:
        The home, without placeholders.

    Raises:
        InvalidName: A resulting name could belong to others than this tenant.
    """
    keys = {"tenant": tenant, "version": version}
    cluster = home.cluster
    if cluster is not None:
        cluster = cluster._replace(nodes=tuple(_rendered_node(node, keys) for node in cluster.nodes))
    return home._replace(
        cluster=cluster,
        database=_name("database", home.database, keys),
        user=_name("user", home.user, keys),
        schema=tuple(_name("schema", schema, keys) for schema in home.schema),
        role=_name("role", home.role, keys),
    )


def _rendered_node(node: Node, keys: Mapping[str, str]) -> Node:
    """A node of a tenant's own servers; its parameters are separate values, so nothing has to be quoted."""
    if not any("{" in text for text in texts_of(node)):
        return node
    params = tuple((param, _value(param, value, keys)) for param, value in node.params)
    server = replace(node.server, host=_render(node.server.host, keys), database=_render(node.server.database, keys))
    file = node.password_file and type(node.password_file)(_value("password_file", str(node.password_file), keys))
    return replace(node, server=server, params=params, password_file=file)


def texts_of(node: Node) -> list[str]:
    """List the values of a node that may hold a placeholder.

    Args:
        node: A node of a tenant's own servers.

    Returns:
        The values of its parameters that are not secret, and its password file.
    """
    return [*(value for _, value in node.params), *([str(node.password_file)] if node.password_file else [])]


def _value(param: str, template: str, keys: Mapping[str, str]) -> str:
    """A parameter of libpq; in most parameters some characters would begin another host, directory or option."""
    if param in ("dbname", "user"):
        return _name("database" if param == "dbname" else param, template, keys)
    for key in re.findall(_PLACEHOLDER, template):
        # Only the settings name versions, but a tenant's key may come from outside: a dot in it could lead elsewhere.
        in_host = key == "tenant" and param in ("host", "hostaddr")
        if not re.fullmatch(_LABEL if in_host else _PLAIN, keys[key]):
            takes = "ASCII letters, digits, _ and -" if in_host else "letters, digits, _, . and -"
            raise InvalidName(f"the key {keys[key]!r} cannot stand in {param}: there it takes {takes}")
    return _render(template, keys)


def _name(kind: str, template: str, keys: Mapping[str, str]) -> str:
    name = _render(template, keys) if "{" in template else template
    if len(name) > NAME_BYTES // 4 and len(name.encode()) > NAME_BYTES:  # a character has up to 4 bytes
        raise InvalidName(f"the name of its {kind} is longer than {NAME_BYTES} bytes")
    reserved = _RESERVED.get(kind)
    if (reserved and re.fullmatch(reserved, name)) or (name in _EVERYBODYS and name != template):
        raise InvalidName(f"{name!r} is not a {kind} of a tenant's own")
    return name


def _render(text: str, keys: Mapping[str, str]) -> str:
    return re.sub(_PLACEHOLDER, lambda match: keys[match[1]], text)


def quoted(name: str) -> str:
    """Quote a name, by PostgreSQL's rules.

    Args:
        name: The name, of a schema for example.

    Returns:
        The name as it is written in SQL and in ``search_path``.
    """
    return '"' + name.replace('"', '""') + '"'


def option(name: str, value: str) -> str:
    """Write a setting as a startup option.

    Args:
        name: The setting.
        value: Its value.

    Returns:
        The option for libpq's ``options``, with white space and backslashes escaped.
    """
    return "-c " + re.sub(r"([\s\\])", r"\\\1", f"{name}={value}")


def counted(number: int, noun: str) -> str:
    """Write a number of things.

    Args:
        number: The number.
        noun: What one of them is called; its plural ends in ``s``.

    Returns:
        Such as ``1 pool`` or ``2 pools``.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def all_are(number: int | None, noun: str, state: str) -> str:
    """Write that all of some things are in a state.

    Args:
        number: How many there are.
        noun: What one of them is called, and what describes it.
        state: The state.

    Returns:
        Such as ``all 2 connections to db1 are in use``, or ``the one connection to db1 is in use``.
    """
    what, space, rest = noun.partition(" ")
    return f"the one {noun} is {state}" if number == 1 else f"all {number} {what}s{space}{rest} are {state}"
