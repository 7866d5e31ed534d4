"""scripts/audit.py: worklists of a run, and answers that come back."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tiny
from tiny import ROOT

from scripts import audit
from scripts.audit_code.page import HEADER
from utils_.datasets.label_files.tables import read_csv

# Names as an attacker would choose them: of a class, and of an image.
SCRIPT, FORMULA = "<script>alert(1)</script>", '=HYPERLINK("http://x")'
IMAGE, SUM = "<img src=x onerror=alert(2)>&amp.png", "=1+1.png"
FEW = ["--folds", "2", "--repeats", "1", "--rounds", "1", "--least", "2", "--quiet"]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of evil names, a run on them in ``runs/done``, and its audit."""
    place = tmp_path_factory.mktemp("audit")
    data = tiny.write_csv_dataset(place / "data")
    for old, new in (("image0.png", IMAGE), ("image1.png", SUM)):
        (data / "images" / old).rename(data / "images" / new)
    for name in ("train_data.csv", "test_data.csv"):
        table = tiny.read_table(data / name)
        renamed = {"image0.png": IMAGE, "image1.png": SUM}
        table[0][1:3] = SCRIPT, FORMULA
        rows = [[renamed.get(row[0], row[0]), *row[1:]] for row in table]
        for row in rows[3:20:4]:
            row[4] = ""
        tiny.write_table(data / name, rows)
    shutil.copyfile(data / "train_data.csv", data / "true_data.csv")
    labels = tiny.read_table(data / "train_data.csv")
    for row in labels[1:9]:  # all of these are wrong, as true_data.csv says
        row[1:4] = [str(1 - int(cell)) for cell in row[1:4]]
    tiny.write_table(data / "train_data.csv", labels)
    command = tiny.command(data, place, method="fedavg", name="done", rounds=1, warmup_rounds=0)
    assert tiny.call_main(command) == 0
    assert audit.main([str(place / "runs/done"), *FEW, "--top", "60", "--blanks"]) == 0
    return place


@pytest.fixture
def run(past: Path) -> Path:
    return past / "runs" / "done"


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- the lists


def test_each_site_lists_its_own_labels_in_order(run: Path) -> None:
    folders = sorted(path for path in (run / "audit").iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["site-0", "site-1", "site-2"]
    rows = rows_of(run / "assignments.csv")
    split = {row["image"].removeprefix("'"): row["client"] for row in rows}
    given = {row[0]: row[1:] for row in tiny.read_table(run.parents[1] / "data/train_data.csv")}
    classes = given["ID"]
    for number, folder in enumerate(folders):
        rows = rows_of(folder / "suspects.csv")
        assert list(rows[0]) == list(HEADER)
        for row in rows:
            image, name = (row[key].removeprefix("'") for key in ("image", "class"))
            assert split[image] == str(number)
            assert row["given"] == given[image][classes.index(name)] != ""
            assert row["answer"] == "" and row["evidence"] == "cross-fitted"
            assert 0 <= float(row["wrong"]) <= 1 and 0 <= float(row["probability"]) <= 1
        high = [float(row["value"]) for row in rows if float(row["value"]) > 0]
        assert high == sorted(high, reverse=True)
        assert all(row["given"] == "" for row in rows_of(folder / "blanks.csv"))


def test_names_are_neither_html_nor_formulas(run: Path) -> None:
    for folder in sorted((run / "audit").glob("site-*")):
        text = (folder / "suspects.html").read_text("utf-8")
        page = Page(text)
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
        assert SCRIPT in page.text and FORMULA in page.text
        for kind in ("src", "href"):
            places = [a[kind] or "" for _, a in page.tags if kind in a]
            assert all(place.startswith("data:image/jpeg;base64,") for place in places)
        rows = [a for tag, a in page.tags if tag == "tr" and "data-image" in a]
        for attributes in rows:
            for name in ("data-image", "data-class"):
                assert not (attributes[name] or "").startswith(("=", "+", "-", "@"))
        for row in csv.reader(io.StringIO((folder / "suspects.csv").read_text("utf-8-sig"))):
            assert not [cell for cell in row if cell[:1] in tuple("=+@")]


def test_only_our_script_may_run_and_nothing_is_fetched(run: Path) -> None:
    text = (run / "audit/site-0/suspects.html").read_text("utf-8")
    policy = next(a["content"] for t, a in Page(text).tags if t == "meta" and "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "http://" not in text.replace("http://x", "") and "https://" not in text


def test_what_is_found_is_judged_by_verified_labels(run: Path) -> None:
    review = json.loads((run / "audit/review.json").read_text())
    assert review["truth"] == "verified" and review["evidence"] == "cross-fitted"
    labels = review["labels"]["suspects"]
    assert labels["wrong"] > 5 and 0 < labels["random"] < 1
    curve = rows_of(run / "audit/curve.csv")
    assert float(curve[-1]["reviewed"]) == labels["looked_at"]
    assert float(curve[-1]["suspects"]) == labels["wrong"] == float(curve[-1]["random"])


def test_the_run_s_own_model_is_called_in_sample_and_classes_are_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert audit.main([str(run), "--folds", "0", "--least", "999", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "not judged, below 999 positives" in told and "no class is judged" in told
    assert rows_of(out / "site-0/suspects.csv") == []
    assert "not judged" in (out / "site-0/suspects.html").read_text()
    assert audit.main([str(run), "--folds", "0", "--least", "1", "--out", str(tmp_path / "b")]) == 0
    assert {row["evidence"] for row in rows_of(tmp_path / "b/site-1/suspects.csv")} == {"in-sample"}
    assert "may repeat" in (tmp_path / "b/site-1/suspects.html").read_text()


# ---- the way back


def answer(run: Path, path: Path, answers: list[str]) -> list[dict[str, str]]:
    """The list of site 0 with some answers, as a spreadsheet writes it."""
    rows = rows_of(run / "audit/site-0/suspects.csv")
    for row, text in zip(rows, answers, strict=False):
        row["answer"] = text
    with path.open("w", newline="", encoding="cp1252") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return rows[: len(answers)]


def test_answers_make_corrected_copies(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.parents[1] / "data"
    before = {path.name: path.read_bytes() for path in data.glob("*.csv")}
    rows = rows_of(run / "audit/site-0/suspects.csv")
    wanted = [str(1 - int(row["given"])) for row in rows[:3]] + ["?", "", rows[5]["given"]]
    answered = answer(run, tmp_path / "a.csv", wanted)
    out = tmp_path / "new" / "data"
    assert audit.main([str(run), "--apply", str(tmp_path / "a.csv"), "--out", str(out)]) == 0
    assert "5 answers, 4 labels changed" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in data.glob("*.csv")} == before
    old, new = read_csv(data / "train_data.csv"), read_csv(out / "train_data.csv")
    changed = {
        (old.rows[i][0], old.header[j]): cell
        for i, row in enumerate(new.rows)
        for j, cell in enumerate(row)
        if cell != old.rows[i][j]
    }
    names = [tuple(r[k].removeprefix("'") for k in ("image", "class")) for r in answered]
    assert changed == dict(zip(names[:4], [*wanted[:3], ""], strict=True))
    assert len(rows_of(out / "changes.csv")) == 4
    for name in ("test_data.csv", "true_data.csv"):
        assert (out / name).read_bytes() == before[name]
    again = tiny.load("csv", data_dir=out, image_size=16, workers=1, quiet=True)
    assert len(again.files) == 60


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../../etc/passwd,class2,,1", "image '../../etc/passwd' is not of this run"),
        ("image9.png,class2,,7", "column 'answer': '7' is no answer"),
        ("image9.png,klass2,,1", "did you mean 'class2'"),
        ("image50.png,class2,,1", "is no image of train_data.csv"),
        ("image9.png,class2,2,1", "the given label is"),
        ("image9.png,class2,,", "holds no answer"),
        ("image9.png,class2,GIVEN,1\nimage9.png,class2,GIVEN,0", "answered otherwise"),
    ],
)
def test_wrong_answers_are_refused_with_their_place(
    run: Path, tmp_path: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tiny.read_table(run.parents[1] / "data/train_data.csv")
    given = {row[0]: row[table[0].index("class2")] for row in table}
    path, out = tmp_path / "a.csv", tmp_path / "out"
    text = line.replace("GIVEN", given["image9.png"])
    head = "image,class,given,answer\n"
    if ",," in text:  # without the column it is not checked
        head, text = "image,class,answer\n", text.replace(",,", ",", 1)
    path.write_text(head + text + "\n")
    assert audit.main([str(run), "--apply", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error and "a.csv" in error and error.count("\n") == 1
    assert not out.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folds", "1"], "--folds 1"),
        (["--top", "0"], "--top 0: give a number from 1"),
        (["--rounds", "x"], "--rounds"),
        ([], "exists and may hold answers"),
        (["--apply", "absent.csv"], "absent.csv: cannot be read"),
        (["--device", "quantum", "--out", "o"], "--device"),
    ],
)
def test_misuse_is_one_line(
    run: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([str(run), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("audit: ")


def test_runs_that_cannot_be_audited(
    past: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
    moved = tmp_path / "all"
    shutil.copytree(past, moved)
    config = moved / "runs/done/config.yaml"
    text = config.read_text().replace(str(past / "data"), str(moved / "data"))
    config.write_text(text)
    labels = tiny.read_table(moved / "data/train_data.csv")
    labels[9][1] = str(1 - int(labels[9][1]))
    tiny.write_table(moved / "data/train_data.csv", labels)
    for options in (["--out", "o"], ["--apply", str(moved / "data/true_data.csv")]):
        assert audit.main([str(moved / "runs/done"), *options]) == 2
        assert "the labels are not those that the run was made from" in capsys.readouterr().err
    config.write_text(re.sub("^noise: 0.*$", "noise: 0.4", text, flags=re.MULTILINE))
    assert audit.main([str(moved / "runs/done"), "--apply", "x.csv"]) == 2
    assert "made wrong on purpose" in capsys.readouterr().err


def test_the_script_is_the_page_s_own(run: Path) -> None:
    script = (ROOT / "scripts/audit_code/worklist.js").read_text("utf-8").strip()
    assert script in (run / "audit/site-2/suspects.html").read_text("utf-8")
    assert "</" not in script and "<!--" not in script
