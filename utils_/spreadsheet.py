"""Texts in CSV files that people open with a spreadsheet, which runs what begins like a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # the last, so that no two texts become one


def harmless(text: str) -> str:
    """Return the text with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def sheet(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV whose texts are harmless; numbers stay as they are. Excel reads umlauts by its mark."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in row])
    return f"\ufeff{text.getvalue()}"
