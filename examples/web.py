"""A WSGI service on lagging replicas: who writes, reads it at once, since a cookie says how far their writes are.

It starts a cluster of its own, with replicas half a second behind; in a service, `RouterSettings()` reads the
environment. A client that writes and reads, once with the cookie and once without, is part of it.
"""

from __future__ import annotations

from http.client import HTTPConnection
from http.cookies import SimpleCookie
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from router import Router, RouterSettings
from router.testing import PostgresCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def application(router: Router) -> Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]:
    """The service: POST adds a visit, GET counts the visits; each on behalf of whoever has the cookie."""

    def serve(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        cookies = SimpleCookie(environ.get("HTTP_COOKIE", ""))
        with router.session(cookies["seen"].value if "seen" in cookies else None) as session:
            if environ["REQUEST_METHOD"] == "POST":
                router.execute("INSERT INTO visit DEFAULT VALUES")
            visits = router.execute("SELECT count(*) FROM visit").value
        headers = [("Set-Cookie", f"seen={session.token}; HttpOnly; SameSite=Lax")] if session.token else []
        start_response("200 OK", headers)
        return [str(visits).encode()]

    return serve


class Quiet(WSGIRequestHandler):
    """Without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def call(port: int, method: str, cookie: str = "") -> tuple[str, str]:
    """Call the service; what it answers, and the cookie it sets."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/", headers={"Cookie": cookie})
    response = connection.getresponse()
    answer = response.read().decode(), (response.headers["Set-Cookie"] or "").partition(";")[0]
    connection.close()
    return answer


with PostgresCluster(standbys=2) as cluster:
    cluster.primary.execute("CREATE TABLE visit (at timestamptz DEFAULT now())")
    cluster.wait_replayed()
    for standby in cluster.standbys:
        standby.lag(0.5)
    with Router(RouterSettings(default_version="v1", versions={"v1": cluster.version_settings()})) as router:
        server = make_server("127.0.0.1", 0, application(router), handler_class=Quiet)
        Thread(target=server.serve_forever, daemon=True).start()
        _, cookie = call(server.server_port, "POST")
        print("with the cookie:   ", call(server.server_port, "GET", cookie)[0], "visit")
        print("without the cookie:", call(server.server_port, "GET")[0], "visits, so far")
        server.shutdown()
        server.server_close()
