"""What the cells of a column of labels mean: 0 and 1, words, blanks, and -1 for uncertain."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

POSITIVE, NEGATIVE, BLANK, UNCERTAIN, NO_LABEL = 1.0, 0.0, np.nan, -1.0, np.inf
NUMBER = re.compile(r"[01]([.,]0*)?")
MINUS_ONE = re.compile(r"-1([.,]0*)?")
# Pairs of words that mean 1 and 0. A column uses one of them and no numbers beside it.
WORDS = (
    *(("true", "false"), ("t", "f"), ("yes", "no"), ("y", "n"), ("present", "absent")),
    *(("positive", "negative"), ("pos", "neg"), ("ja", "nein"), ("oui", "non"), ("sim", "não")),
)
# What pandas, R, SAS, SPSS and Excel write for an empty cell; "none" and "?" may be findings.
NOT_GIVEN = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "null", "#null!", "."))
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?|(19|20)\d{2}(0\d|1[0-2])[0-3]\d")
GRADE = re.compile(r"1?\d([.,]0*)?")  # 0 to 19
FIGURE = re.compile(r"[-+]?\d+([.,]\d+)?")


@dataclass(frozen=True)
class Column:
    """One column of the label files, over all of them.

    Attributes:
        name: as in the header.
        cells: N texts.
    """

    name: str
    cells: Sequence[str]

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each text occurs."""
        return Counter(self.cells)

    @cached_property
    def words(self) -> tuple[str, str] | None:
        """The pair of words that the column uses for 1 and 0, or None where it has numbers."""
        used = {text.casefold() for text in self.counts} - NOT_GIVEN
        used = {text for text in used if not MINUS_ONE.fullmatch(text)}
        return next((pair for pair in WORDS if used and used <= set(pair)), None)

    @cached_property
    def meaning(self) -> dict[str, float]:
        """What each text means; NO_LABEL where that cannot be told."""
        return {text: self._meaning(text) for text in self.counts}

    def _meaning(self, text: str) -> float:
        folded = text.casefold()
        if folded in NOT_GIVEN:
            return BLANK
        if MINUS_ONE.fullmatch(text):
            return UNCERTAIN
        if self.words:
            return float(folded == self.words[0])
        return float(text[0]) if NUMBER.fullmatch(text) else NO_LABEL

    def count(self, meaning: float) -> int:
        """How many cells mean this."""
        return sum(n for text, n in self.counts.items() if self.meaning[text] == meaning)

    @property
    def filled(self) -> int:
        """How many cells say anything."""
        return sum(n for text, n in self.counts.items() if not np.isnan(self.meaning[text]))

    @property
    def is_label(self) -> bool:
        """Whether at least half of what is written are labels; the rest are then mistakes."""
        return 2 * self.count(NO_LABEL) <= self.filled

    @property
    def graded(self) -> bool:
        """Whether small whole numbers beyond 0 and 1 are too many for slips of the pen."""
        strange = self.strange()
        some = max(3, 0.02 * self.filled)
        return self.count(NO_LABEL) >= some and all(map(GRADE.fullmatch, strange))

    @property
    def values(self) -> np.ndarray:
        """(N,) float32 of POSITIVE, NEGATIVE, BLANK, UNCERTAIN and NO_LABEL."""
        return np.fromiter(map(self.meaning.__getitem__, self.cells), np.float32, len(self.cells))

    def strange(self) -> list[str]:
        """The texts that are no label, the frequent ones first."""
        return [text for text, _ in self.counts.most_common() if self.meaning[text] == NO_LABEL]


def kind_of(texts: Iterable[str]) -> str:
    """What texts that are no label look like: dates, numbers or text, with an example."""
    texts = list(texts)
    for what, pattern in (("dates", DATE), ("numbers", FIGURE)):
        if all(pattern.fullmatch(text) for text in texts):
            return f"{what} such as {_short(texts[0])}"
    return f"text such as {_short(texts[0])}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:21] + "...")


def advice(text: str, column: str | None) -> str:
    """How to mend a cell that is no label; ``column`` is its column, if that can be left out."""
    folded = text.casefold()
    if folded in {"x", "xx", "*", "+", "\u2713", "\u2714"}:
        return "write 1 for a mark, and 0 where somebody looked and found nothing"
    if column and re.fullmatch(r"\d+([.,]0*)?", text):
        return (
            "write 0 or 1, or leave the cell blank where nobody looked; a column of grades is left "
            f"out by --ignore-columns {shlex.quote(column)}"
        )
    if folded.endswith("%") or re.fullmatch(r"[01]?[.,]\d+", text):
        return "write 0 or 1: from which share on is it present? Or leave the cell blank"
    if folded in {word for pair in WORDS for word in pair}:
        return "the column mixes words and numbers; write one of the two, such as 0 and 1"
    return "write 0 or 1, or leave the cell blank where nobody looked"
