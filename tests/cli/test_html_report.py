"""scripts/report.py: numbers against numpy, what is bold, a page that is whole, safe and silent."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
from finished import CLASSES, draw_predictions, write_finished

from scripts import report
from utils_.metrics import multilabel_metrics
from utils_.predictions import FILE
from utils_.reporting.model_card import CARD
from utils_.stats import t_interval

DOCUMENT = tiny.ROOT / "docs" / "report.md"
NASTY = ("<img src=x onerror=alert(1)>", "a|b_$x$% & 1.23456</script>", '"nowhere" #0072b2')


class Page(HTMLParser):
    """What stands in a page: tags with attributes, tables as text, all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if "strong" in self._open and "table" in self._open:
            self.bold.append(data)


def write_report(runs: Path, *options: object) -> Page:
    out = runs.parent / "report.html"
    assert report.main([str(runs), "--out", str(out), *map(str, options)]) == 0
    return Page(out)


def three_seeds(folder: Path, **quality: float) -> Path:
    for method, own in quality.items():
        for seed in (1, 2, 3):
            bound = method == "clean"
            place = folder / f"{method}-{seed}"
            write_finished(place, method, quality=own, seed=seed, bound=bound)
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time, and many tests are not about them."""
    monkeypatch.setattr("utils_.reporting.page.inline_svg", lambda picture: "")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of which one is surely best, and the bound."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    return three_seeds(folder, fedavg=0.2, fednml=0.6, fedprox=0.2001, clean=2.0)


@pytest.fixture(scope="module")
def page(runs: Path) -> Page:
    return write_report(runs)


def test_the_numbers_are_those_of_the_predictions(page: Page) -> None:
    scores = page.tables[0]
    assert scores[0][:2] == ["method", "mAP"]
    rows = {row[0]: row for row in scores[1:]}
    assert list(rows) == ["fedavg", "fednml", "fedprox", "clean (bound)"]
    for method, quality in (("fedavg", 0.2), ("fednml", 0.6)):
        kept = [draw_predictions(quality, classes=3, seed=seed) for seed in (1, 2, 3)]
        mAP = [  # noqa: N806
            multilabel_metrics(k.test_probability, k.test_truth).overall["mAP"] for k in kept
        ]
        found = t_interval(mAP)
        text = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
        assert rows[method][1] == text
        over_images = rows[method][scores[0].index("mAP over test images")]
        middle, low, high = map(float, re.findall(r"[\d.]+", over_images))
        assert middle == round(np.mean(mAP), 3) and low < middle < high and high - low > 0.01
    assert rows["fednml"][scores[0].index("seeds")] == "3"
    share = float(rows["fednml"][scores[0].index("gap closed")].split()[0])
    assert 0 < share < 100 and rows["clean (bound)"][scores[0].index("gap closed")] == "100 %"


def test_bold_is_what_surely_beats_every_other(page: Page, tmp_path: Path, undrawn: None) -> None:
    best = next(row for row in page.tables[0] if row[0] == "fednml")
    assert best[1].split()[0] in page.bold
    near = write_report(three_seeds(tmp_path / "near", fedavg=0.3, fednml=0.3001))
    assert near.bold == []
    assert "Nothing is bold" in near.text
    two = tmp_path / "two"
    for method, quality in (("fedavg", 0.2), ("fednml", 2.0)):
        for seed in (1, 2):
            write_finished(two / f"{method}{seed}", method, quality=quality, seed=seed)
    few = write_report(two)
    assert few.bold == []
    assert "WARNING: fewer than three seeds: no interval" in few.text
    assert "[" not in few.tables[0][1][1]


def test_a_bound_or_a_leak_is_never_best(tmp_path: Path, undrawn: None) -> None:
    folder = three_seeds(tmp_path / "runs", fedavg=0.2, fedprox=0.2)
    for seed in (1, 2, 3):
        write_finished(folder / f"l{seed}", "fednml", quality=3, seed=seed, leaky=True)
    page = write_report(folder)
    assert page.bold == []
    assert "never compare as equal" in page.text and "fednml (leaky)" in page.text


def test_what_no_site_annotates_is_not_trained(page: Page) -> None:
    classes = next(table for table in page.tables if table[0][0] == "class")
    rows = {row[0]: row[2:] for row in classes[1:]}
    assert list(rows) == list(CLASSES)
    assert set(rows["nowhere"]) == {"not trained"}
    assert "not trained" not in rows["rare"]


def test_every_caption_says_how_the_round_was_chosen(
    runs: Path, page: Page, tmp_path: Path, undrawn: None
) -> None:
    captions = re.findall(
        r"<caption><span>(.*?)</span></caption>", (runs.parent / "report.html").read_text()
    )
    assert len(captions) == len(page.tables)
    assert all("selection rule val_selected" in caption for caption in captions[:-1])
    assert captions[-1] == "What was read."
    shutil.copytree(runs, tmp_path / "runs")
    with_test = write_report(tmp_path / "runs", "--selection", "oracle_selected")
    assert "chosen on the TEST part: scores are optimistic" in with_test.text


def test_the_page_loads_nothing_and_is_read_aloud(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith("#") or value == "data:,"
            assert "url(http" not in str(value)
    names = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert max(names.values()) == 1
    values = [str(v) for _, a in page.tags for v in a.values()]
    used = {found for v in values for found in re.findall(r"url\(#([^)]+)\)|^#(.+)$", v)}
    assert {a or b for a, b in used} <= set(names)
    heads = [a for tag, a in page.tags if tag == "th"]
    assert all(a.get("scope") in ("col", "row") for a in heads)
    assert all(a["aria-sort"] == "none" for a in heads if a["scope"] == "col")
    drawn = [a for tag, a in page.tags if a.get("role") == "img"]
    assert len(drawn) >= 7
    for one in drawn:
        assert one["aria-labelledby"] in names and one["aria-describedby"] in names


def test_figures_follow_the_colours_of_the_page(runs: Path, page: Page) -> None:
    text = (runs.parent / "report.html").read_text()
    figures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(figures) >= 7
    for figure in figures:
        assert "var(--c" in figure or "currentColor" in figure
        colours = set(re.findall(r"#[0-9a-f]{6}", re.sub(r"<text.*?</text>", "", figure)))
        assert colours <= {"#000000", "#ffffff"}, colours
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_figures_are_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    first = property(lambda self: self.parts[0].pictures[:2])  # each takes a while to draw
    monkeypatch.setattr("utils_.reporting.page.RunReport.pictures", first)
    write_finished(tmp_path / "runs" / "a")
    write_report(tmp_path / "runs", "--figures", tmp_path / "figures")
    names = ["setting1-curves", "setting1-noise-detection"]
    files = {path.name: path.read_bytes()[:5] for path in (tmp_path / "figures").iterdir()}
    assert sorted(files) == [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    assert {files[f"{name}.svg"] for name in names} == {b"<?xml"}
    assert {files[f"{name}.pdf"] for name in names} == {b"%PDF-"}


def test_what_is_absent_is_said(page: Page) -> None:
    assert "No site misbehaves" not in page.text  # of one setting there is no overview
    assert page.text.count("no figure.") == 0
    assert page.text.count("What was read.") == 1


def test_unlike_settings_stand_apart(tmp_path: Path, undrawn: None) -> None:
    for noise in (0.2, 0.6):
        for method in ("fedavg", "fednml"):
            quality = 0.3 + (method == "fednml") - noise / 2
            place = tmp_path / "runs" / f"{method}{noise}"
            write_finished(place, method, quality=quality, noise=noise)
    page = write_report(tmp_path / "runs")
    assert page.tables[0][0] == ["method", "noise 0.2 (paper)", "noise 0.6 (paper)"]
    assert [row[0] for row in page.tables[1]] == ["method", "fednml", "fedavg"]
    assert "of fewer than 6 settings p cannot fall below 0.05" in page.text
    assert "all-against-noise-title" in {a.get("id") for _, a in page.tags}
    assert "It takes settings that differ in missing alone" in page.text
    for section in (2, 5):
        assert [row[-2] for row in page.tables[section][1:]] == ["1", "1"]  # seeds


def test_names_of_classes_are_text(tmp_path: Path) -> None:
    for seed, method in enumerate(("fedavg", "fednml"), 1):
        write_finished(tmp_path / "runs" / method, method, seed=1, quality=seed, classes=NASTY[:2])
    page = write_report(tmp_path / "runs", "--markdown", tmp_path / "t.md")
    text = (tmp_path / "report.html").read_text()
    assert NASTY[0] in page.text and NASTY[1] in page.text
    assert NASTY[0] not in text and NASTY[1] not in text
    assert [tag for tag, _ in page.tags].count("script") == 1
    figure = next(f for f in re.findall(r"<svg .*?</svg>", text, re.DOTALL) if "onerror" in f)
    assert "&lt;img" in figure and "1.23456&lt;/script" in figure  # not rounded, as numbers are
    markdown = (tmp_path / "t.md").read_text()
    assert "<img" not in markdown and r"a\|b_$x$% & 1.23456&lt;/script>" in markdown


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is absent")
def test_latex_compiles(tmp_path: Path, undrawn: None) -> None:
    write_finished(tmp_path / "runs" / "a", "fedavg", classes=NASTY)
    write_report(tmp_path / "runs", "--latex", tmp_path / "tables.tex")
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "all.tex").write_text(head + "\n\\input{tables}\n\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_older_runs_are_shown_without_what_they_lack(tmp_path: Path, undrawn: None) -> None:
    folder = write_finished(tmp_path / "runs" / "a", "fedavg")
    for name in (FILE, "site_classes.csv"):
        (folder / name).unlink()
    page = write_report(tmp_path / "runs")
    assert "older than site_classes.csv" in page.text
    assert page.text.count("has kept its predictions") >= 3
    assert "not trained" not in page.text.partition("Classes by")[0]
    assert "average precision" in (folder / CARD).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent: no such folder"),
        (["empty"], "empty: no finished run"),
        (["runs", "--selection", "last-5"], "did you mean 'last5'?"),
        (["runs", "--selection", "val_selected"], "--selection val_selected: no run has it"),
        (["runs", "--out", "runs"], "--out runs: is a folder"),
        (["runs", "--out", "runs/DONE/x.html"], "--out runs/DONE/x.html: "),
        (["runs", "--latex", "t", "--markdown", "t"], "the same file twice"),
        (["runs", "--figures", "runs/DONE"], "--figures runs/DONE: is a file"),
        (["runs", "--colour", "x"], "unrecognized arguments: --colour x"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_finished(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    if arguments[-1] == "val_selected":
        path = tmp_path / "runs" / "result.json"
        path.write_text(path.read_text().replace("val_selected", "unselected"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert report.main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_runs_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
) -> None:
    write_finished(tmp_path / "runs" / "good", "fedavg")
    bad = write_finished(tmp_path / "runs" / "bad", "fednml")
    (bad / "metrics.csv").unlink()
    page = write_report(tmp_path / "runs")
    assert f"left out {bad}: metrics.csv: absent or damaged" in capsys.readouterr().err
    assert "Left out:" in page.text and [row[0] for row in page.tables[0]] == ["method", "fedavg"]
    cut = tmp_path / "runs" / "good" / FILE
    cut.write_bytes(cut.read_bytes()[:-9])
    assert "without predictions that can be read" in write_report(tmp_path / "runs").text


def test_no_patient_and_no_image_is_named(tmp_path: Path) -> None:
    data = tiny.write_csv_dataset(tmp_path / "data")
    tables = [tiny.read_table(data / f"{part}_data.csv")[1:] for part in ("train", "test")]
    names = [row[0] for table in tables for row in table]
    rows = [
        [name, f"PATIENT-{n // 2}", "north" if n % 4 < 2 else "south"]
        for n, name in enumerate(names)
    ]
    tiny.write_table(data / "groups.csv", [["image", "patient_id", "site"], *rows])
    options = tiny.command(data, tmp_path / "save", name="a", method="fedavg", rounds=1)
    options = [o for o in options if not o.startswith(("--clients", "--warmup"))]
    assert tiny.call_main([*options, "--warmup-rounds=0"]) == 0
    folder = tmp_path / "save" / "runs" / "a"
    card = (folder / CARD).read_text()
    write_report(folder.parent, "--markdown", tmp_path / "t.md", "--latex", tmp_path / "t.tex")
    places = (tmp_path / "save" / "report.html", tmp_path / "t.md", tmp_path / "t.tex")
    for text in (card, *(place.read_text() for place in places)):
        assert "PATIENT" not in text and "patient-" not in text.lower() and ".png" not in text
    assert "north" in card and "| class0 |" in card
    assert "no medical device" in card and "scripts/predict.py a IMAGES" in card


@pytest.mark.slow
def test_sixty_runs_are_less_than_two_megabytes(tmp_path: Path) -> None:
    classes = tuple(f"finding number {c}" for c in range(20))
    for noise in (0.2, 0.4, 0.6):
        for method in ("fedavg", "fednml", "fedprox", "scaffold"):
            for seed in range(1, 6):
                place = tmp_path / "runs" / f"{method}{noise}{seed}"
                write_finished(place, method, seed=seed, noise=noise, classes=classes)
    write_report(tmp_path / "runs")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_the_commands_of_the_document_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(
        r"^python scripts/report\.py(.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    monkeypatch.setattr(report, "_run", lambda options: parsed.append(options))
    parsed: list = []
    assert len(lines) == 2
    assert [report.main(shlex.split(line)) for line in lines] == [0, 0]
    assert parsed[0].out == Path("report.html") and parsed[0].selection is None
    assert parsed[1].figures == Path("figures") and parsed[1].out == Path("first.html")
