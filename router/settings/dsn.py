"""Connection strings, read as libpq reads them: their hosts, libpq's defaults, their secrets apart."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from router.core.errors import nearest
from router.core.topology import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_QUOTING = "special characters are percent-encoded in a URI, values with spaces stand in '…' in key=value form"


KEEPALIVE = {
    "keepalives_idle": "60",
    "keepalives_interval": "15",
    "keepalives_count": "3",
    "tcp_user_timeout": "45000",
}
"""These are set unless the connection string or a service file says otherwise. Gateways drop idle connections silently,
some after 240 s, and with the system's own defaults that is noticed after hours."""


class Dsn(str):
    """One connection string, which may name several hosts; as text it has every parameter but the secret ones.

    Attributes:
        nodes: For each host, its server and its libpq parameters in alphabetical order, without the secret ones.
        password: The password that stood in the connection string.
        secrets: The other secret parameters that did.
    """

    __slots__ = ("nodes", "password", "secrets")
    nodes: tuple[tuple[Server, tuple[tuple[str, str], ...]], ...]
    password: str | None
    secrets: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Dsn:
        """Read a URI or libpq's ``key=value`` form.

        Args:
            text: The connection string.

        Returns:
            What it says, with host and port filled in.

        Raises:
            ValueError: libpq would refuse it; the message holds nothing of it that may be secret.
        """
        if not text.strip():
            raise ValueError("is empty; postgresql:// stands for libpq's defaults")
        if _has_stray_at(text):
            raise ValueError(f"has one @ too many: {_QUOTING}")
        defaults = pq.Conninfo.get_defaults()
        try:
            params = {key: str(value) for key, value in conninfo_to_dict(text).items()}
        except ProgrammingError as error:
            known = [option.keyword.decode() for option in defaults]
            raise ValueError(_why_refused(text, str(error), known)) from None
        secret = {option.keyword.decode() for option in defaults if _is_secret(option)}
        secrets = {key: params.pop(key) for key in secret & params.keys()}
        dsn = cls(make_conninfo("", **params))
        dsn.password = secrets.pop("password", None)
        dsn.secrets = secrets
        dsn.nodes = tuple(_split(params, defaults))
        return dsn


def _is_uri(text: str) -> bool:
    return re.match(r"\s*postgres(?:ql)?://", text) is not None


def _has_stray_at(text: str) -> bool:
    """Whether libpq, which ends the password at the first ``@``, would take a part of it for a host or a database."""
    authority, _, path = text.partition("://")[2].partition("?")[0].partition("/")
    return _is_uri(text) and (authority.count("@") > 1 or "@" in path)


def _is_secret(option: pq.ConninfoOption) -> bool:
    # libpq marks with "*" what a form should hide; SCRAM keys, as good as the password, it only marks as internal.
    return option.dispchar == b"*" or option.keyword.startswith(b"scram_")


def _split(
    params: Mapping[str, str], defaults: list[pq.ConninfoOption]
) -> list[tuple[Server, tuple[tuple[str, str], ...]]]:
    """One server a host, by the rules of libpq's ``connectOptions2``.

    Its documentation: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
    """
    if "service" in params and not (params.keys() >= {"port"} and params.keys() & {"host", "hostaddr"}):
        raise ValueError("names a service without host and port: add both, because the router must know each server")
    inherited = _inherited(params)
    nodes = []
    for name, address, port in _hosts(params, defaults):
        host = name or ("" if address else socket_directory())
        place = {"host": host, "hostaddr": address, "port": str(port)}
        own = {**inherited, **params, **place}
        # The address decides which process answers; the name beside it is for TLS and .pgpass.
        server = Server(address or host, port)
        nodes.append((server, tuple(sorted((key, value) for key, value in own.items() if value or key not in place))))
    return nodes


def _hosts(params: Mapping[str, str], defaults: list[pq.ConninfoOption]) -> Iterator[tuple[str, str, int]]:
    """For each host its name, its address and its port; name and address may be empty."""
    by_default = {option.keyword.decode(): option.val.decode() for option in defaults if option.val is not None}
    hosts, addresses, ports = (
        params.get(key, by_default.get(key, "")).split(",") for key in ("host", "hostaddr", "port")
    )
    count = len(addresses) if addresses != [""] else len(hosts)
    if addresses == [""]:
        addresses *= count
    if hosts == [""]:
        hosts *= count
    if len(ports) == 1:
        ports *= count
    if len(hosts) != count:
        raise ValueError(f"names {len(hosts)} hosts but {count} addresses in hostaddr: give one for each")
    if len(ports) != count:
        raise ValueError(f"names {count} hosts but {len(ports)} ports: give one port for all, or one for each")
    built_in = next(option.compiled for option in defaults if option.keyword == b"port") or b"5432"
    for host, address, port in zip(hosts, addresses, ports, strict=True):
        yield host, address, _port(port or built_in.decode())


def _inherited(params: Mapping[str, str]) -> dict[str, str]:
    """What a service file or the environment says of parameters to which the router adds something of its own."""
    refused = pq.PGconn.connect_start(make_conninfo("", **{**params, "sslmode": "none"}).encode())  # before any I/O
    found = {option.keyword.decode(): option.val.decode() for option in refused.info if option.val}
    refused.finish()
    return {key: found[key] for key in ("options", *KEEPALIVE) if key in found and key not in params}


def _port(digits: str) -> int:
    stripped = digits.strip()
    if not (stripped.isascii() and stripped.isdecimal() and 1 <= int(stripped) <= 65535):  # noqa: PLR2004 (of TCP)
        raise ValueError("has a port that is not a number from 1 to 65535")
    return int(stripped)


@cache
def socket_directory() -> str:
    """Tell where this libpq looks when no host is named.

    Returns:
        The directory that it was built with, or localhost.
    """
    # Refused for its sslmode before any I/O, but after libpq has filled in where it would have gone.
    refused = pq.PGconn.connect_start(b"host='' hostaddr='' port='' sslmode=none")
    host = refused.host.decode()
    refused.finish()
    return host or "localhost"


def _why_refused(text: str, message: str, known: list[str]) -> str:
    """What is wrong with ``text``, without libpq's message, which quotes from it, even the password."""
    if re.match(r"\s*postgres\w*\+\w+://", text):
        return "names a driver, which libpq does not know: write postgresql://"
    if not _is_uri(text) and ("=" not in text or "://" in text.partition("=")[0]):
        return "is not a connection string: that is a URI which begins with postgresql://, or has the form key=value"
    unknown = re.match(r'invalid (?:connection option|URI query parameter):? "([^"]*)"', message)
    if unknown is None:
        return f"is not a connection string that libpq can read: {_QUOTING}"
    if near := nearest(unknown[1], known, cutoff=0.8):
        return f"has an unknown parameter {unknown[1]!r}; did you mean {near!r}?"
    # A password that was not quoted ends at its first space, & or ?, and libpq takes its rest for a parameter.
    parameters = text.partition("?")[2] if _is_uri(text) else text
    if re.search(r"@|password|secret|scram_", parameters):
        return f"has an unknown parameter, or a value that is not quoted: {_QUOTING}"
    return f"has an unknown parameter {unknown[1]!r}"
