"""The input `rows` of TextBoost: reading it, its errors, and in words which rows do nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ..mmdit_core.control.boost_rows import BoostRow, RowTextError, parse_rows
from .errors import InputError

NODE, NAME = "TextBoost", "rows"
OFF = "off"


def read_rows(text: str) -> tuple[BoostRow, ...]:
    """The rows of a text, as `parse_rows` gives them. Raises: InputError that names the row."""
    try:
        return parse_rows(text)
    except RowTextError as error:
        raise InputError(NODE, NAME, error.found, error.right) from error


def in_row(row: int, error: InputError) -> InputError:
    """An error of one of the node's inputs as the same error of a row. Args: row, from 1."""
    return InputError(NODE, NAME, f"row {row}: {error.found}", error.right)


def idle_rows(reasons: Mapping[int, str]) -> str:
    """In words, what does nothing, a line for each reason: "row 1, row 3: off"; "" if all acts.

    Args: reasons, by row, at 0 those of the node's own inputs; "" of a row that acts.
    """
    if set(reasons) == {0}:
        return reasons[0]
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for row, reason in reasons.items():
        rows[reason].append(f"row {row}" if row else "the node's own inputs")
    return "\n".join(f"{', '.join(names)}: {reason}" for reason, names in rows.items() if reason)
