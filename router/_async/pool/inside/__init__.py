"""The wall: the only package of the router that uses private names of psycopg and psycopg_pool.

Each operation on their insides has a name here, and everything else uses those names. ``check.py`` looks at the first
router of a process whether the installed releases have all that is used. ``tests/test_wall.py`` shows that nothing else
touches a private name; ``docs/decisions/0027-the-wall-around-psycopg-pool.md`` says why.
"""
