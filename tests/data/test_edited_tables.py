"""Cells of label files changed in place: encoding, separator and all other rows stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_exports import READ

from utils_.datasets.label_files.cells import Column
from utils_.datasets.label_files.tables import read_csv
from utils_.datasets.label_files.text_files import edited
from utils_.errors import UserError
from utils_.spreadsheet import harmless, sheet


@pytest.mark.parametrize("name", READ)
def test_nothing_changes_but_what_is_asked_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train_data.csv"
    path.write_bytes(READ[name][0])
    assert edited(path, {}) == READ[name][0]
    table = read_csv(path)
    column = Column(table.header[-1], table.column(table.header[-1]))
    other = next(text for text in column.cells if column.meaning[text] == 1)
    before = table.rows[0][-1]
    data = edited(path, {table.lines[0]: {len(table.header) - 1: other}})
    path.write_bytes(data)
    again = read_csv(path)
    assert again.header == table.header and again.rows[1:] == table.rows[1:]
    assert again.rows[0] == [*table.rows[0][:-1], other] and other != before
    ends = b"\r\n" if b"\r\n" in READ[name][0] else b"\n"
    assert data.count(ends) == READ[name][0].count(ends)


def test_rows_with_line_breaks_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = 'image,note,A\r\n"x, y","two\r\nlines",1\r\n\r\n b , "" ,0\r\nc,"""q""",1\r\n'
    path.write_bytes(text.encode())
    table = read_csv(path)
    assert table.lines == [3, 5, 6]
    done = edited(path, {3: {2: ""}, 6: {2: "0"}}).decode()
    assert done == text.replace('lines",1', 'lines",').replace('"q""",1', '"q""",0')


def test_a_text_that_the_encoding_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("Größe,A\nb,1\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"a\.csv: '是' cannot be written as Latin-1"):
        edited(path, {2: {1: "是"}})


def test_formulas_are_harmless_and_no_two_names_become_one() -> None:
    names = ["=1+1", "'=1+1", "+a", "-b", "@c", "a", "1", "\tx"]
    spelt = [harmless(name) for name in names]
    assert len(set(spelt)) == len(names)
    assert not any(text[0] in "=+-@\t\r" for text in spelt)
    assert sheet(("x", "y"), [("=1", -0.5)]) == "\ufeffx,y\n'=1,-0.5\n"


def test_a_sheet_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(sheet(("image", "n"), [('a "b", c', 1), ("ü", np.float64(0.5))]), "utf-8")
    table = read_csv(path)
    assert table.header == ("image", "n") and table.rows == [['a "b", c', "1"], ["ü", "0.5"]]
