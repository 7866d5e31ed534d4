"""Which columns of a label file are classes, and which would be learnt as diseases by mistake."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from utils_.datasets.label_files.cells import (
    NEGATIVE,
    NO_LABEL,
    POSITIVE,
    UNCERTAIN,
    Column,
    kind_of,
)
from utils_.datasets.label_files.tables import bare_name, shown
from utils_.errors import UserError, nearest

# Names, as tables.plain gives them, of what hospitals keep beside the labels.
_PROPERTIES = """
    sex gender male female age ageyears agegroup patientage patientsex patientgender patient pat
    subject ethnicity race bmi smoker mrn index idx row rownumber number no nr fold folds kfold
    cvfold split splits partition subset set train test val valid validation traintest istrain
    istest isval trainvaltest phase isext isexternal external ext date datetime time timestamp year
    month studydate view viewposition viewpos projection laterality side eye camera scanner device
    manufacturer vendor site center centre hospital institution ward clinic department source
    dataset origin database comment comments note notes remark remarks report reader rater
    annotator grader radid radiologist path filename file filepath image img url followup weight
    weightkg height width modality offset duplicate isduplicate
"""
PROPERTIES = frozenset(_PROPERTIES.split())
IDENTIFIER = re.compile(r"(?i:(?:^|[ _.#-])(?:u?id|idx|index|date|time|fold|split))$|[a-z]U?ID$")
LEADING = ("unnamed", "patient", "study", "series", "accession", "sopinstance", "rater", "reader")
EXPLAINED = 0.99  # of the positives of a column that is taken for the OR of others
LEAST_POSITIVES = 5  # fewer may be an OR by chance
SUMMARIES = ("diseaserisk", "anydisease", "anyfinding", "any")  # what such columns are called
LEAST_TO_BE_SAME = 5  # positives and negatives of two columns that are the same by no chance


def join_names(names: Iterable[str]) -> str:
    """Names as one argument of a shell, with commas between: what split_names reads."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return shlex.quote(line.getvalue())


def split_names(text: str, option: str) -> list[str]:
    """Read ``a,b,"c, d"``.

    Raises:
        UserError: a name is blank or given twice.
    """
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not all(names) or len(set(names)) < len(names) or not names:
        raise UserError(f"{option} {shown(text)}: give each name once, with commas between")
    return names


def pick(names: Sequence[str], wanted: str, option: str) -> list[str]:
    """Return the ``wanted`` ones of ``names``, in the order of ``names``.

    Raises:
        UserError: one is not among them.
    """
    chosen = split_names(wanted, option)
    for name in chosen:
        if name not in names:
            raise UserError(f"{option}: there is no {shown(name)}; {nearest(name, names)}")
    return [name for name in names if name in chosen]


def find_problems(columns: Sequence[Column]) -> dict[str, str]:
    """Say of each column that is no class, or may be none, why; a class has no entry."""
    found: dict[str, str] = {}
    for column in columns:
        reason = _problem(column)
        if reason:
            found[column.name] = reason
    rest = [column for column in columns if column.name not in found]
    found |= _twins(rest)
    rest = [column for column in rest if column.name not in found]
    return found | dict(_sums(rest))


def named_like_a_property(name: str) -> bool:
    """Whether a column is called as ids, dates, sexes and the like are."""
    simple = bare_name(name)
    return simple in PROPERTIES or bool(IDENTIFIER.search(name)) or simple.startswith(LEADING)


def _problem(column: Column) -> str | None:
    """Why one column is no class for itself."""
    if not column.is_label and _counts_rows(column):
        return "counts the rows"
    strange = column.strange()
    if strange and all(re.fullmatch(r"([12]([.,]0*)?)?", text) for text in column.counts):
        return "is coded 1 and 2; write 1 and 0"
    if column.graded:
        return f"holds grades or codes such as {shown(strange[0])}"
    if not column.is_label:
        return f"holds {kind_of(strange)}"
    if re.fullmatch(r"[-+]?\d+([.,]\d+)?", column.name):
        return "has a number for a name"
    if named_like_a_property(column.name):
        return "is named like a property of the image or patient"
    return None


def _counts_rows(column: Column) -> bool:
    first = next(iter(column.cells), "")
    if first not in ("0", "1"):
        return False
    return len(column.counts) == len(column.cells) and all(
        text == str(place) for place, text in enumerate(column.cells, start=int(first))
    )


def _twins(columns: Sequence[Column]) -> dict[str, str]:
    """Names that differ in case, spaces or marks alone, and columns with the same cells."""
    first: dict[str, str] = {}
    found = {}
    for column in columns:
        other = first.setdefault(bare_name(column.name) or column.name, column.name)
        if other != column.name:
            found[column.name] = f"is another spelling of {shown(other)}; join the two"
            continue
        enough = min(column.count(POSITIVE), column.count(NEGATIVE)) >= LEAST_TO_BE_SAME
        other = first.setdefault("\n".join(column.cells), column.name) if enough else column.name
        if other != column.name:
            found[column.name] = f"has the same cells as {shown(other)}"
    return found


def _sums(columns: Sequence[Column]) -> Iterator[tuple[str, str]]:
    """Columns that are 1 where one of several others is: they betray hidden labels."""
    if not columns:
        return
    labels = np.stack([column.values for column in columns], axis=1)
    labels[(labels == UNCERTAIN) | (labels == NO_LABEL)] = np.nan
    left = list(range(len(columns)))
    for place in range(len(columns)):  # one after another: two such columns explain each other
        named = len(columns) > 2 and bare_name(columns[place].name) in SUMMARIES
        if named or _is_sum(labels[:, left], left.index(place)):
            left.remove(place)
            yield columns[place].name, "is 1 where any other is: it would betray hidden labels"


def _is_sum(labels: np.ndarray, place: int) -> bool:
    """Whether a column is the OR of the columns with which it is ever positive together."""
    positive = labels == 1
    own = positive[:, place]
    absent = labels[:, place] == 0 if (labels[:, place] == 0).any() else ~own
    if own.sum() < LEAST_POSITIVES or not absent.any():
        return False
    together, against = positive[own].sum(axis=0), positive[absent].sum(axis=0)
    parts = together > 0
    parts[place] = False
    if parts.sum() < 2 or (against[parts] > (1 - EXPLAINED) * together[parts]).any():
        return False
    rows = labels[own][:, parts]
    explained = (rows == 1).any(axis=1)
    unexplained = int((~explained & ~np.isnan(rows).any(axis=1)).sum())
    enough = unexplained <= (1 - EXPLAINED) * own.sum()
    return bool(enough and explained.sum() >= LEAST_POSITIVES)
