"""The command line: ``router``, or ``python -m router``; it needs the extra ``cli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    try:
        from router.cli._app import run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print("the command line needs its extra: pip install 'psycopg-router[cli]'", file=sys.stderr)
        sys.exit(2)
    run()
