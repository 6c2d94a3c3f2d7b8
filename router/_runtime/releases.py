"""The releases of psycopg and psycopg_pool that the router works with, and those that are installed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool

from router.core.errors import RouterError

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKING = {"psycopg": ((3, 3, 6), (3, 4)), "psycopg-pool": ((3, 3, 3), (3, 4))}
"""For each package, the lowest release that works, and the first later one that may not; as in ``pyproject.toml``."""


def installed() -> dict[str, str]:
    """Return the installed releases.

    Returns:
        The release of each package, by the package's name.
    """
    return {"psycopg": psycopg.__version__, "psycopg-pool": psycopg_pool.__version__}


def out_of_range() -> bool:
    """Tell whether an installed release is not one of those that work; an unknown release is accepted."""
    for name, release in installed().items():
        number = tuple(map(int, re.findall(r"\d+", release)[:3]))
        low, high = WORKING[name]
        if any(number) and not low <= number < high:
            return True
    return False


def unfit(lacking: Sequence[str]) -> RouterError:
    """Make the error for releases that the router does not work with.

    Args:
        lacking: The parts that are missing or different.

    Returns:
        The error.
    """
    found = " and ".join(f"{name} {release}" for name, release in installed().items())
    wanted = " ".join(
        f'"{name}>={".".join(map(str, low))},<{".".join(map(str, high))}"' for name, (low, high) in WORKING.items()
    )
    details = "".join(f"\n  - {each}" for each in lacking)
    return RouterError(
        f"the installed {found} do not work with this release of psycopg-router, which uses parts of both that may "
        f"change: install {wanted}{':' if details else ''}{details}"
    )
