"""How requests are spread over nodes by weight: one at random, the better of two drawn at random, or in rotation."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import gcd, lcm
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


PAIRS = 256
"""How many draws :func:`pairs` lays out: enough to tell weights of 1 and 100 apart, few enough to be made at once."""


def cumulate(weights: Sequence[float]) -> tuple[float, ...]:
    """Add weights up, for :func:`draw` and :func:`draw_two`.

    Args:
        weights: One positive weight a place.

    Returns:
        The running totals.
    """
    return tuple(accumulate(weights))


def draw(totals: Sequence[float], number: float) -> int:
    """Draw one place, each as likely as its weight.

    Args:
        totals: From :func:`cumulate`.
        number: A random number, at least 0 and less than 1.

    Returns:
        The place, from 0.
    """
    return min(bisect_right(totals, number * totals[-1]), len(totals) - 1)


def draw_two(totals: Sequence[float], number: float) -> tuple[int, int]:
    """Draw two different places, for the power of two choices (Mitzenmacher, 2001); one random number is enough.

    Args:
        totals: From :func:`cumulate`, of at least two weights.
        number: A random number, at least 0 and less than 1.

    Returns:
        The places, from 0.
    """
    point = number * totals[-1]
    last = len(totals) - 1
    one = min(bisect_right(totals, point), last)
    if last == 1:
        return one, 1 - one
    below = totals[one - 1] if one else 0.0
    weight = totals[one] - below
    # Where the point fell in its interval is itself uniform: it draws from the line with that interval cut out.
    point = (point - below) / weight * (totals[-1] - weight)
    if point >= below:
        point += weight
    two = min(bisect_right(totals, point), last)
    if two == one:  # rounding at an edge of the interval cut out
        two = one - 1 if one else 1
    return one, two


def pairs(weights: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Lay out :data:`PAIRS` draws of two different places, so that a random index is all that a draw takes.

    Args:
        weights: One positive weight a place; at least two.

    Returns:
        Pairs of places; the first is as frequent as its weight, the second among the others likewise.
    """
    totals = cumulate(weights)
    return tuple(draw_two(totals, (k + 0.5) / PAIRS) for k in range(PAIRS))


def rotation(weights: Sequence[float]) -> tuple[int, ...]:
    """Lay out one round of a weighted round-robin, each place spread evenly over the round.

    Args:
        weights: One positive weight a place; the largest gets at most 120 turns a round, each at least one.

    Returns:
        The places in the order of their turns.
    """
    most = max(weights)
    turns = [max(round(weight / most * 120), 1) for weight in weights]  # 120 has many divisors: common ratios are exact
    divisor = gcd(*turns)
    turns = [n // divisor for n in turns]
    round_length = lcm(*turns)
    # Each place starts at a moment of its own: places with equal turns must not all come in one run. In whole numbers,
    # since moments that are the same must compare so.
    spread = sorted(
        ((2 * len(turns) * k + 2 * place + 1) * (round_length // n), place)
        for place, n in enumerate(turns)
        for k in range(n)
    )
    return tuple(place for _, place in spread)
