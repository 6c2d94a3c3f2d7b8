# Generated from router/_async/pool/inside/__init__.py by tools/async_to_sync.py: do not edit.
"""The wall: the only package of the router that uses private names of psycopg and psycopg_pool.

Each operation on their insides has a name here, and all other code uses those names. When a process makes its first
router, ``check.py`` checks that the installed releases have everything that is used. ``tests/test_wall.py`` shows that
no other code uses a private name; ``docs/decisions/0027-the-wall-around-psycopg-pool.md`` says why.
"""
