"""What a statement of its own gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)  # no `Value`: one is made for each statement, and this is made faster
class Result:
    """The whole result of a statement run by ``execute()``; of several in one text, the first one's.

    Attributes:
        rows: Its rows; none for a statement that returns none.
        columns: Their names.
        rowcount: How many rows it read or changed, as PostgreSQL counts; -1 where it does not.
        status: PostgreSQL's word for what was done, such as ``INSERT 0 1``.
    """

    rows: list[tuple[Any, ...]]
    columns: tuple[str, ...]
    rowcount: int
    status: str

    @property
    def first(self) -> tuple[Any, ...] | None:
        """The first row; ``None`` when there is none."""
        return self.rows[0] if self.rows else None

    @property
    def value(self) -> Any:
        """The first value of the first row; ``None`` when there is none."""
        return self.rows[0][0] if self.rows and self.rows[0] else None
