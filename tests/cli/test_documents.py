"""The documents: links lead somewhere, named files exist, and what the examples say works."""

from __future__ import annotations

import ast
import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from PIL import Image
from tiny import ROOT, make_images, make_labels, write_table

from src.methods.base import Method

LINKED = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"]
DOCUMENTS = [*LINKED, *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))]
EACH_DOCUMENT = pytest.mark.parametrize("name", DOCUMENTS)
MAP = "docs/architecture.md"
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
PLACE = re.compile(r"(?<![\w./])(?:src|utils_|tests|scripts|docs)/[\w./*<>-]*\w")
PLACEHOLDER = re.compile(r"NAME|<")  # src/methods/NAME.py, src/methods/<name>.py
CODE_LINES = 40  # of an example, less than these


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---- links and names


def links(text: str) -> list[str]:
    """Targets of links and pictures, but for those in code and those to the web."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", prose(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What the headings are called in addresses, as GitHub does it."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", prose(text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one) is not None for one in found)
        found.append(f"{slug}-{repeated}" if slug in found else slug)
    return set(found)


def dead_links(name: str, root: Path = ROOT) -> Iterator[str]:
    here = root / name
    for target in links(here.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        place = here.parent / path if path else here
        if not (place.exists() and (not anchor or anchor in anchors(place.read_text("utf-8")))):
            yield target


def named_places(text: str) -> set[str]:
    """Paths of the repository in backticks, but for patterns with a placeholder."""
    spans = re.findall(r"`([^`\n]+)`", prose(text))
    found = {place for span in spans for place in PLACE.findall(span)}
    return {place for place in found if not PLACEHOLDER.search(place)}


@EACH_DOCUMENT
def test_every_link_leads_somewhere(name: str) -> None:
    assert list(dead_links(name)) == []


@EACH_DOCUMENT
def test_every_named_file_exists(name: str) -> None:
    if name in LINKED[:2] or name.startswith("docs/"):
        absent = [place for place in named_places(read(name)) if not list(ROOT.glob(place))]
        assert absent == []


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    text = "# A `b` (c)\n## A b c\n`[no](link)` [x](other.md#a-b-c-1) [y](#nowhere)\n"
    text += "[z](gone.md) ![p](<gone.png>) [[w](#a-b-c)](#gone) [web](https://a.b/c)\n"
    text += "```\n# no heading [no](link)\n```\n`src/a.py`, `see src/b/` and `src/NAME.py`\n"
    (tmp_path / "one.md").write_text(text)
    (tmp_path / "other.md").write_text(text)
    assert anchors(text) == {"a-b-c", "a-b-c-1"}
    assert list(dead_links("one.md", tmp_path)) == ["#nowhere", "gone.md", "gone.png", "#gone"]
    assert named_places(text) == {"src/a.py", "src/b"}


# ---- the map


def test_the_tree_names_every_file() -> None:
    """Each one of src, utils_ and scripts; of the folders below them their names."""
    tree = read(MAP).partition("```\n")[2].partition("```")[0]
    for top in ("src", "utils_", "scripts"):
        part = re.search(rf"^{top}/.*?(?=^\w|\Z)", tree, re.DOTALL | re.MULTILINE)[0]
        named = set(re.findall(r"[\w-]+(?:\.\w+|/)", part))
        below = [p for p in (ROOT / top).iterdir() if not p.name.startswith(("__", "."))]
        assert {p.name + "/" * p.is_dir() for p in below} <= named
        code = [name for name in named if name.endswith((".py", ".sh"))]
        assert [name for name in code if not list((ROOT / top).rglob(name))] == []


def test_the_table_of_hooks_is_complete() -> None:
    table = read(MAP).partition("## Hooks")[2].partition("## ")[0]
    hooks = [n for n, value in vars(Method).items() if n[0] != "_" and not isinstance(value, type)]
    described = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    callables = [n for n in hooks if inspect.isfunction(vars(Method)[n])]
    properties = [n for n in hooks if isinstance(vars(Method)[n], property)]
    assert sorted(described) == sorted(callables + properties)
    assert [n for n in hooks if f"`{n}`" not in table] == []


# ---- the examples


def examples() -> dict[str, list[str]]:
    """The blocks of Python of each section that adds something, by its heading."""
    sections = re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", read(MAP), re.DOTALL | re.MULTILINE)
    return {
        title: re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for title, text in sections
    }


EXAMPLES = examples()


def apply(block: str, root: Path) -> Path:
    """Do with a block what its first line says; return the file."""
    head, _, body = block.partition("\n")
    path, _, act = head.removeprefix("# ").partition(": add ")
    place = root / path
    if not act:
        assert not place.exists(), f"{path} exists already"
        place.write_text(body, encoding="utf-8")
        return place
    text, (kind, registry) = place.read_text(encoding="utf-8"), act.split()
    opening = re.search(rf"^{registry}\b.*{{\n", text, re.MULTILINE)
    assert opening, f"{path} opens no {registry}"
    if kind == "above":
        text = f"{text[: opening.start()]}{body}\n\n{text[opening.start() :]}"
    else:
        entry = "".join(re.findall(r"^    .*\n", body, re.MULTILINE))
        text = text[: opening.end()] + entry + text[opening.end() :]
        for line in re.findall(r"^from .*\n", body, re.MULTILINE):
            text = with_import(text, line)
    place.write_text(text, encoding="utf-8")
    return place


def with_import(text: str, line: str) -> str:
    """The text with an import at its place in the alphabet among those of its package."""
    package = line.split()[1].split(".")[0]
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.ImportFrom)]
    own = [n for n in nodes if n.module.split(".")[0] == package]
    after = max(n.end_lineno for n in own if n.module < line.split()[1])
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:after], line, *lines[after:]])


def checkout(folder: Path, title: str | None = None) -> Path:
    """A copy of the code in ``folder``, with one example applied."""
    for name in ("src", "utils_", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    changed = [apply(block, folder) for block in EXAMPLES[title]] if title else []
    if changed:
        for command in ("check", "format --check"):
            ruff = [sys.executable, "-m", "ruff", *command.split(), *map(str, changed)]
            done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
    return folder


SETTINGS = """
method: fedavg
noise: 0
missing: 0
clients: 3
split: quantity
alpha: 2
image_size: 16
train_images: 60
test_images: 30
rounds: 1
local_epochs: 1
warmup_rounds: 0
workers: "1"
name: run
"""


def main(code: Path, *options: Any) -> subprocess.CompletedProcess:
    """The main job of a copy, with tiny settings, or those of the run."""
    (code / "tiny.yaml").write_text(SETTINGS)
    command = ["src/main_fednml.py", "--config", "tiny.yaml", "--quiet", *options]
    return forked.run(command, cwd=code)


def train(code: Path, *options: Any) -> Path:
    """The folder of a finished run of a copy."""
    done = main(code, *options)
    assert done.returncode == 0, done.stderr
    folder = code / "save" / "runs" / "run"
    assert (folder / "DONE").exists()
    return folder


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def clients(folder: Path) -> list[dict[str, str]]:
    with (folder / "clients.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the code as it is: FedAvg, no noise, the mean."""
    return train(checkout(tmp_path_factory.mktemp("plain")))


def test_there_are_four_examples_and_each_is_short() -> None:
    added = ("a method", "a data set", "a noise type", "an aggregator")
    assert list(EXAMPLES) == [f"Add {what}" for what in added]
    for title, blocks in EXAMPLES.items():
        lines = [line for block in blocks for line in block.splitlines() if line.strip()]
        assert 5 < len(lines) < CODE_LINES, f"{title}: {len(lines)} lines"
        assert all(block.startswith("# ") for block in blocks), title


@pytest.mark.slow
def test_the_method_of_the_example_trains(tmp_path: Path, plain: Path) -> None:
    code = checkout(tmp_path, "Add a method")
    shown = forked.run(["src/main_fednml.py", "--list", "methods"], cwd=code).stdout
    assert re.search(r"^labelsmoothing .*\n    smoothing=0\.1  ", shown, re.MULTILINE)
    folder = train(code, "--method", "labelsmoothing", "--param", "smoothing=0.3")
    assert json.loads((folder / "result.json").read_text())["method"] == "labelsmoothing"
    assert yaml.safe_load((folder / "config.yaml").read_text())["param"] == {"smoothing": 0.3}
    assert model(folder) != model(plain)


def write_named(folder: Path) -> Path:
    """60 images, whose findings are named in one column."""
    names, labels = ["cataract", "glaucoma", "myopia"], make_labels(60, 3)
    (folder / "images").mkdir(parents=True)
    for i, pixels in enumerate(make_images(labels)):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    found = [";".join(n for n, shown in zip(names, row, strict=True) if shown) for row in labels]
    rows = [[f"{i}.png", text] for i, text in enumerate(found)]
    write_table(folder / "findings.csv", [["image", "findings"], *rows])
    return folder


@pytest.mark.slow
def test_the_data_set_of_the_example_is_read(tmp_path: Path) -> None:
    code, data = checkout(tmp_path / "code", "Add a data set"), write_named(tmp_path / "data")
    options = ["--dataset", "named", "--data-dir", data]
    folder = train(code, *options)
    result = json.loads((folder / "result.json").read_text())
    assert result["classes"] == ["cataract", "glaucoma", "myopia"]
    assert sum(int(row["images"]) for row in clients(folder)) > 30
    positives = [entry["positives"] for entry in result["per_class"].values()]
    assert min(positives) > 0
    table = data / "findings.csv"
    table.write_text(table.read_text() + "60.png,catarract\n")
    refused = main(code, *options, "--dry-run")
    assert refused.returncode == 2
    assert f"{table}, line 62: unknown finding 'catarract'; did you mean" in refused.stderr


@pytest.mark.slow
def test_the_noise_of_the_example_changes_labels(tmp_path: Path, plain: Path) -> None:
    folder = train(checkout(tmp_path, "Add a noise type"), "--noise-type=typo", "--noise=0.3")
    assert all(float(row["noise_cells"]) == 0 for row in clients(plain))
    assert all(0.2 < float(row["noise_cells"]) < 0.4 for row in clients(folder))
    assert all(float(row["commission"]) > 0.2 for row in clients(folder))
    assert model(folder) != model(plain)


@pytest.mark.slow
def test_the_aggregator_of_the_example_weighs_otherwise(tmp_path: Path, plain: Path) -> None:
    code = checkout(tmp_path, "Add an aggregator")
    assert len({row["images"] for row in clients(plain)}) > 1, "of equal sites all is the mean"
    folder = train(code, "--aggregator", "powered", "--aggregator-param", "power=0.25")
    assert model(folder) != model(plain)
