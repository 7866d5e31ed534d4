"""Tables for a paper: text that LaTeX sets as it stands, and tables with the rules of booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What LaTeX reads as a command, and what its usual fonts lack.
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # its own command needs another encoding of fonts than the usual
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "\u00a0": "~",
}
PLAIN = str.maketrans(SPECIAL)
BOLD = "**"  # as in Markdown, so that one list of cells serves both


def escape(text: str) -> str:
    """Return text that LaTeX sets as it was given, on one line."""
    plain = " ".join(text.splitlines()).translate(PLAIN)
    return re.sub("-(?=-)", "-{}", plain)  # two hyphens would be joined to a dash


def booktabs(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None
) -> str:
    r"""Return a table that needs ``\usepackage{booktabs}``; the text is escaped here.

    Args:
        head: names of the columns; the first is set to the left, the others to the right.
        rows: as long as ``head``; a cell ``**0.351**`` is set bold.
        caption: text above the table, in an environment ``table``; without it the bare tabular.
    """
    columns = "l" + "r" * (len(head) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line(head), r"\midrule"]
    lines += [*map(_line, rows), r"\bottomrule", r"\end{tabular}"]
    if caption is not None:
        opening = [r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}"]
        lines = [*opening, *lines, r"\end{table}"]
    return "\n".join(["% needs \\usepackage{booktabs}", *lines])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(text: str) -> str:
    bold = len(text) > 2 * len(BOLD) and text.startswith(BOLD) and text.endswith(BOLD)
    plain = escape(text[len(BOLD) : -len(BOLD)] if bold else text)
    # At the start of a row these would be read as arguments of the line's end above it.
    plain = f"{{{plain}}}" if plain.startswith(("[", "*")) else plain
    return rf"\textbf{{{plain}}}" if bold else plain
