"""What came of mutants, kept in a file as it comes; and what is said of those that survive."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.mutate_code.mutants import Mutants
from utils_.errors import UserError
from utils_.files import file_digest, write_text

if TYPE_CHECKING:
    from scripts.mutate_code.trial import Verdict

KILLED, ENDLESS, SURVIVED, UNREACHED = "killed", "endless", "survived", "unreached"
NOTICED = (KILLED, ENDLESS)
HEADER = ("module", "source", "number", "line", "place", "kind", "change", "outcome", "test")
Row = dict[str, str]


class Verdicts:
    """The rows of a CSV file, one a mutant."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            UserError: it is not such a file.
        """
        self.path = path
        self.rows: list[Row] = _rows(path, HEADER) if path.is_file() else []

    def keep(self, module: str, path: Path, *, again: bool) -> set[int]:
        """Forget what is of no use any more; the numbers of the mutants that are done.

        Args:
            module: its name in the rows.
            path: of its text, as it is now.
            again: forget those that nothing noticed, too.
        """
        mutants = Mutants(path.read_text(encoding="utf-8"), module)
        number_of = {(mutant.place, mutant.change): mutant.number for mutant in mutants}
        kept, source = [], _source(path)
        for row in self.rows:
            if row["module"] != module:
                kept.append(row)
            elif row["source"] == source and (not again or row["outcome"] in NOTICED):
                number = number_of.get((row["place"], row["change"]))
                if number is not None:  # kinds of mistakes may come and go
                    kept.append(row | {"number": str(number)})
        self.rows = kept
        write_text(self.path, _lines([HEADER, *(row.values() for row in self.rows)]))
        return {int(row["number"]) for row in self.of(module)}

    def add(self, module: str, path: Path, verdict: Verdict) -> None:
        """Write a row at the end of the file."""
        one = verdict.mutant
        where = (module, _source(path), one.number, one.lines[0], one.place, one.kind, one.change)
        cells = [*map(str, where), verdict.outcome, verdict.test]
        self.rows.append(dict(zip(HEADER, cells, strict=True)))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines([cells]))

    def of(self, module: str) -> list[Row]:
        """Those of a module."""
        return [row for row in self.rows if row["module"] == module]


def _source(path: Path) -> str:
    return file_digest(path, "sha256")[:8]


def _lines(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(path: Path, header: tuple[str, ...]) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != header:
            raise UserError(f"{path}: its columns are not {', '.join(header)}; move it away")
        return [row for row in reader if None not in row.values()]  # not one that was cut off


def explanations(path: Path) -> dict[tuple[str, str, str], str]:
    """Why mutants may survive, by module, place and change; none where there is no such file.

    Raises:
        UserError: it is another kind of table.
    """
    rows = _rows(path, ("module", "place", "change", "why")) if path.is_file() else []
    return {(row["module"], row["place"], row["change"]): row["why"] for row in rows}


def modules_and_tests(path: Path) -> dict[str, list[str]]:
    """The modules that are mutated, and the files with the tests that must notice.

    Raises:
        UserError: the file is absent, or is not such a table.
    """
    import yaml

    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a YAML file") from None
    if not isinstance(table, dict) or not all(isinstance(tests, list) for tests in table.values()):
        raise UserError(f"{path}: write a line for each module, such as src/a.py: [tests/a.py]")
    for name in (one for module, tests in table.items() for one in (module, *tests)):
        if not (root_of(path) / str(name)).is_file():
            raise UserError(f"{path}: {name} is absent; mend the path")
    return table


def root_of(plan: Path) -> Path:
    """The folder that paths in it start from: that of the repository, else its own."""
    here = Path(__file__).resolve()
    return here.parents[2] if plan.resolve().parent == here.parent else plan.resolve().parent
