"""Texts in CSV files that people open with a spreadsheet, which runs what begins like a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # the last, so that no two texts become one


def harmless(text: str) -> str:
    """Return the text with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def as_was(text: str) -> str:
    """The text that :func:`harmless` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def harmless_csv(table: pd.DataFrame) -> str:
    """A table of our own as CSV whose texts are harmless; numbers stay as they are."""
    texts = table.select_dtypes(exclude=["number", "bool"])
    safe: dict[str, pd.Series] = {}
    for name, column in texts.items():
        formula = column.astype(str).str.startswith(FORMULA) & column.notna()
        if formula.any():
            safe[str(name)] = column.where(~formula, "'" + column.astype(str))
    return table.assign(**safe).to_csv(index=False)


def sheet(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV whose texts are harmless; numbers stay as they are. Excel reads umlauts by its mark."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return f"\ufeff{text.getvalue()}"
