"""Label files as programs export them: what is read as what, and what is too unclear to read."""

from __future__ import annotations

import logging
from pathlib import Path

import hospital
import pytest

from utils_.errors import UserError

WANTED = [[1, 0], [0, None], [None, 1]]
PLAIN = "image,Glaukom,Star\na,1,0\nb,0,\nc,,1\n"


def spelt(positive: str, negative: str, blank: str = "", separator: str = ",") -> str:
    words = {1: positive, 0: negative, None: blank}
    rows = [[name, *map(words.get, row)] for name, row in zip("abc", WANTED, strict=True)]
    return hospital.table(separator.join(("image", "Glaukom", "Star")), rows, separator)


# The bytes of train_data.csv, and what the log says of them.
READ: dict[str, tuple[bytes, str]] = {
    # the text of the issue
    "plain": (PLAIN.encode(), ""),
    "semicolons": (spelt("1", "0", separator=";").encode(), "split by semicolons"),
    "decimal comma": (spelt("1,0", "0,0", separator=";").encode(), "split by semicolons"),
    "tabs": (spelt("1", "0", separator="\t").encode(), "split by tabs"),
    "TRUE and FALSE": (spelt("TRUE", "FALSE").encode(), "'true' and 'false' read as 1 and 0"),
    "Yes and No": (spelt("Yes", "No").encode(), "'yes' and 'no' read as 1 and 0 in Glaukom, Star"),
    "NA": (spelt("1", "0", "NA").encode(), "2 cells of NA read as blank"),
    "Latin-1": (spelt("1", "0").replace("Star", "Größe").encode("cp1252"), "Latin-1"),
    "UTF-16": (spelt("1", "0", separator="\t").encode("utf-16"), "UTF-16, split by tabs"),
    "quotes of R": (b'"image","Glaukom","Star"\n"a",1,0\n"b",0,NA\n"c",NA,1\n', "2 cells of NA"),
    "quotes and semicolons": (b'"image";"Glaukom";"Star"\na;1;0\nb;0;\nc;;1\n', "semicolons"),
    # further ones
    "bars": (spelt("1", "0", separator="|").encode(), "split by bars"),  # MySQL, SAS exports
    "Excel's hint": (("sep=;\r\n" + spelt("1", "0", separator=";")).encode(), "semicolons"),
    "UTF-16 big end": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "UTF-16"),
    "CR alone": (PLAIN.replace("\n", "\r").encode(), ""),  # Excel for Mac
    "BOM and CRLF": (PLAIN.replace("\n", "\r\n").encode("utf-8-sig"), ""),
    "nan of str()": (spelt("1.0", "0.0", "nan").encode(), "2 cells of nan read as blank"),
    "NULL of SQL": (spelt("1", "0", "NULL").encode(), "2 cells of NULL"),
    "#N/A of Excel": (spelt("1", "0", "#N/A").encode(), "2 cells of #N/A"),
    "point of SAS": (spelt("1", "0", ".").encode(), "2 cells of . read"),
    "Y and N": (spelt("Y", "N").encode(), "'y' and 'n' read as 1 and 0"),  # covid-chestxray
    "T and F of R": (spelt("T", "F", "NA").encode(), "'t' and 'f' read"),
    "Wahr": (spelt("Ja", "Nein").encode(), "'ja' and 'nein' read as 1 and 0"),
    "no-break spaces": (spelt("\u00a01", "0 ").encode(), ""),
    "semicolon inside quotes": (b'image,Glaukom,Star\n"a",1,0\nb,0,""\nc,"",1\n', ""),
    "commas that end lines": (PLAIN.replace("\n", ",\n").encode(), ""),
    "commas at the end of a sheet": ((PLAIN + ",,\n,,\n").encode(), ""),
}


@pytest.mark.parametrize("case", READ)
def test_exports_are_read_and_reported(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, told = READ[case]
    with caplog.at_level(logging.INFO):
        data = hospital.read(hospital.make_folder(tmp_path, train_data=content))
    assert hospital.same(data.labels, WANTED)
    assert data.files == tuple("abc") and len(data.classes) == 2
    assert told in caplog.text
    if not told:
        assert "read as" not in caplog.text


def test_names_of_another_encoding_are_right(tmp_path: Path) -> None:
    content = spelt("1", "0").replace("Star", "Größe \x80 50 %").encode("latin-1")
    folder = hospital.make_folder(tmp_path, train_data=content)
    assert hospital.read(folder).classes == ("Glaukom", "Größe € 50 %")


def test_every_file_may_have_its_own_separator(tmp_path: Path) -> None:
    test = b"image;Star;Glaukom\nd;1,0;0,0\n"  # and its own order of the columns
    folder = hospital.make_folder(tmp_path, train_data=PLAIN, test_data=test)
    groups = "image;patient_id;site\na;1;Würzburg\nb;1;Würzburg\nc;2;Genf\nd;3;Genf\n"
    (folder / "groups.csv").write_bytes(groups.encode("cp1252"))
    data = hospital.read(folder)
    assert hospital.same(data.labels, [*WANTED, [0, 1]])
    assert data.sites.tolist() == ["Würzburg", "Würzburg", "Genf", "Genf"]


# The bytes of train_data.csv, what the message says, and what a user then writes instead.
WORKBOOK = b"PK\x03\x04\x14\0\x06\0xl/workbook.xml"
REFUSED: dict[str, tuple[bytes, str, bytes]] = {
    "xlsx": (WORKBOOK, "Excel or LibreOffice workbook.*'CSV UTF-8'", PLAIN.encode()),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1", "workbook", PLAIN.encode()),
    "a web page": (b"<html><table><tr><td>a", "web page", PLAIN.encode()),  # hospital systems' .xls
    "Parquet": (b"PAR1\x15\x04", "Parquet", PLAIN.encode()),
    "gzip": (b"\x1f\x8b\x08\0", "gzip", PLAIN.encode()),
    "UTF-16 without mark": (PLAIN.encode("utf-16-le"), "UTF-16 without", PLAIN.encode("utf-16")),
    "DOS": (PLAIN.replace("Star", "Größe").encode("cp850"), "byte 0x", PLAIN.encode()),
    "Cyrillic": (PLAIN.replace("Star", "Катаракта").encode("cp1251"), "byte 0x", PLAIN.encode()),
    "Chinese": (PLAIN.replace("Star", "白内障").encode("gbk"), "byte 0x", PLAIN.encode()),
    "Mac": (PLAIN.replace("Star", "Größe").encode("mac_roman"), "byte 0x", PLAIN.encode()),
    "two separators": (b"i;a,b;c\na;1,0;1\n", "semicolons.*in quotes", b'i;"a,b";c\na;1;1\n'),
    "row names of R": (b"image,A\n1,a,1\n2,b,0\n", "row.names = FALSE", b"image,A\na,1\nb,0\n"),
    "decimal comma among commas": (b"i,A\na,1,0\n", "2 cells|3 cells", b"i;A\na;1,0\n"),
    # cells
    "x marks": (b"i,A,B\na,x,\nb,,x\nc,1,0\nd,0,1\n", "write 1 for a mark", b"i,A,B\na,1,0\n"),
    "only x marks": (b"i,A,B\na,x,\nb,,x\n", "holds text such as 'x'", b"i,A,B\na,1,0\n"),
    "1 and 2": (b"i,A\na,1\nb,2\nc,2\n", "coded 1 and 2", b"i,A\na,1\nb,0\n"),
    "percent": (b"i,A\na,100%\nb,0\nc,1\n", "from which share", b"i,A\na,1\nb,0\nc,1\n"),
    "chance": (b"i,A\na,0.7\nb,0\nc,1\n", "from which share", b"i,A\na,1\nb,0\nc,1\n"),
    "mixed words": (b"i,A\na,yes\nb,0\nc,1\nd,1\n", "mixes words", b"i,A\na,1\nb,0\nc,1\n"),
    "two pairs": (b"i,A\na,yes\nb,no\nc,true\n", "holds text", b"i,A\na,yes\nb,no\nc,yes\n"),
    "none": (b"i,A\na,none\nb,0\nc,1\n", "'none' is not a label", b"i,A\na,\nb,0\nc,1\n"),
    "unclear": (b"i,A\na,?\nb,0\nc,1\n", "'\\?' is not a label", b"i,A\na,\nb,0\nc,1\n"),
    "-9 for missing": (b"i,A\na,-9\nb,0\nc,1\n", "'-9' is not a label", b"i,A\na,\nb,0\nc,1\n"),
    "leading zeros": (b"i,A\na,01\nb,0\nc,1\n", "'01' is not a label", b"i,A\na,1\nb,0\nc,1\n"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused_and_the_advice_works(tmp_path: Path, case: str) -> None:
    content, told, mended = REFUSED[case]
    folder = hospital.make_folder(tmp_path, train_data=content)
    with pytest.raises(UserError, match=told) as caught:
        hospital.read(folder)
    assert "train_data.csv" in str(caught.value) and "\n" not in str(caught.value)
    hospital.make_folder(folder, train_data=mended)
    assert hospital.read(folder).labels.size


@pytest.mark.parametrize(
    "name", ["train_data.xlsx", "groups.xlsx", "test_data.ods", "val_data.tsv"]
)
def test_a_workbook_beside_the_csv_files_is_named(tmp_path: Path, name: str) -> None:
    folder = hospital.make_folder(tmp_path, train_data=PLAIN)
    (folder / name).write_bytes(WORKBOOK)
    if name == "train_data.xlsx":
        (folder / "train_data.csv").rename(folder / "old")
    with pytest.raises(UserError, match=rf"{name}: is not read; .* as {name.split('.')[0]}.csv"):
        hospital.read(folder)
    text = {"groups": "image,patient_id\na,1\n", "train_data": PLAIN}.get(name.split(".")[0])
    (folder / name).with_suffix(".csv").write_text(text or "image,Glaukom,Star\nd,1,1\n")
    assert hospital.read(folder).labels.size
