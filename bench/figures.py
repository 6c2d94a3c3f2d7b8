"""What a row of the benchmark yields: figures, each with its spread and its bar."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must hold.

    Attributes:
        relation: How the figure must relate to the limit.
        limit: The limit.
    """

    relation: Literal["at most", "at least", "exactly"]
    limit: float

    def holds(self, value: float) -> bool:
        """Say whether a figure holds it."""
        match self.relation:
            case "exactly":
                return value == self.limit
            case "at most":
                return value <= self.limit
            case "at least":
                return value >= self.limit

    def __str__(self) -> str:
        return f"{self.relation} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        what: What was measured.
        value: The figure: a ratio or a count; a time, which else says more about the machine, only of waiting.
        unit: What it counts.
        bar: What it must hold; ``None`` where it is there to compare with.
        spread: The quartiles of the measurements whose median it is, for a figure that varies.
    """

    what: str
    value: float
    unit: str
    _: KW_ONLY
    bar: Bar | None = None
    spread: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether it holds its bar, if it has one."""
        return self.bar is None or self.bar.holds(self.value)


def ratio(what: str, times: Sequence[float], to: Sequence[float], unit: str, *, bar: Bar | None = None) -> Figure:
    """Compare two series of times by the median of their ratios round by round: what slows both down cancels out.

    Args:
        what: What was measured.
        times: Its times, one a round.
        to: The times compared with, of the same rounds.
        unit: What the ratio counts.
        bar: What the ratio must hold.

    Returns:
        The figure.
    """
    ratios = [one / other for one, other in zip(times, to, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return Figure(what, median(ratios), unit, bar=bar, spread=(low, high))
