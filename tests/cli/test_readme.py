"""Every command of README.md and docs/results.md works: as it stands where cheap, else dry."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image
from tiny import ROOT, SHARED

from scripts import compare, sweep
from src.aggregation import AGGREGATORS
from src.methods import method_names
from src.supervision import LOSSES
from utils_.missing import MISSING_TYPES
from utils_.noise import NOISE_TYPES
from utils_.splits import SPLITS

TINY = "--train-images 60 --test-images 30 --image-size 16 --rounds 1 --warmup-rounds 0 --quiet"


def commands(name: str) -> list[str]:
    """The lines of all bash blocks of a document, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    lines = (line.partition("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def main_command(line: str) -> list[str]:
    """The script's absolute path and its arguments."""
    words = shlex.split(line)
    return [str(ROOT / words[1]), *words[2:]]


README, RESULTS = commands("README.md"), commands("docs/results.md")
RELIABILITY = [line for line in commands("docs/reliability.md") if "attacks.sh" in line]
MAIN = [line for line in README if "main_fednml.py" in line]
DRY = [line for line in MAIN if not re.search("--resume|--list|--dry-run|--dataset", line)]


def test_every_command_is_covered() -> None:
    kinds = ("main_fednml.py", "quickstart.sh", "test.sh", "sweep.sh", "table.py", "tensorboard")
    kinds += ("benchmark.py", "attacks.sh", "attack_table.py", "check_data.py", "compare.py")
    kinds += ("sweep.py", "reproduce_mured.sh", "report.py")
    unknown = [line for line in README + RESULTS if not any(kind in line for kind in kinds)]
    assert not unknown
    assert len(DRY) >= 3


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_name_is_listed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = {"methods": method_names(), "losses": LOSSES, "aggregators": AGGREGATORS}
    tables |= {"noise": NOISE_TYPES, "missing": MISSING_TYPES, "splits": SPLITS}
    for kind, names in tables.items():
        absent = [name for name in names if f"`{name}`" not in text and name != "none"]
        assert not absent, f"{kind}: {absent}"


@pytest.mark.parametrize("line", DRY)
def test_settings_resolve(line: str, tmp_path: Path) -> None:
    done = forked.run([*main_command(line), "--dry-run"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run folder" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [line for line in MAIN if re.search("--list|--dry-run", line)])
def test_shows_without_writing(line: str, tmp_path: Path) -> None:
    done = forked.run(main_command(line), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [line for line in MAIN if "--dataset isic" in line])
@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_isic_resolves(line: str, tmp_path: Path) -> None:
    data = ["--data-dir", str(SHARED / "data" / "isic"), "--dry-run"]
    done = forked.run([*main_command(line), *data], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_own_data_are_explained_where_absent(tmp_path: Path) -> None:
    lines = [line for line in README if "--data-dir my_data" in line]
    assert ["check_data.py" in line for line in lines] == [True, False]  # the doctor comes first
    for line in lines:
        done = forked.run(main_command(line), cwd=tmp_path)
        assert done.returncode == 2
        assert "my_data" in done.stderr and "data/README.md" in done.stderr


def test_train_resume_and_table(tmp_path: Path) -> None:
    """The first command, shrunk; then the resume and table commands on its folder."""
    command = [
        sys.executable,
        *main_command(MAIN[0]),
        *TINY.split(),
        "--name",
        "NAME",
        "--cache-dir",
        "cache",
    ]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    (resume,) = [line for line in MAIN if "--resume" in line]
    again = forked.run(main_command(resume), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    table = next(line for line in README if line.endswith("table.py"))
    shown = run([sys.executable, *main_command(table), "save/runs/NAME"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "fednml" in shown.stdout
    (report,) = [line for line in README if "report.py" in line]
    words = main_command(report)
    written = run([sys.executable, words[0], "save/runs/NAME", *words[1:]], tmp_path)
    assert written.returncode == 0, written.stderr
    assert written.stdout.splitlines() == ["report.html", "tables.tex"]


@pytest.mark.parametrize("line", [line for line in RESULTS if "table.py save/tables" in line])
def test_the_tables_are_what_their_commands_print(line: str, tmp_path: Path) -> None:
    words = main_command(line)
    shown = forked.run([words[0], ROOT / words[1], *words[2:]], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    rows = [row for row in shown.stdout.splitlines() if row.startswith("|")]
    assert len(rows) > 4
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert not [row for row in rows if row not in text]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    (line,) = [line for line in README if "--figure" in line]
    words = main_command(line)
    shown = forked.run([words[0], ROOT / words[1], *words[2:]], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    drawn = np.asarray(Image.open(tmp_path / "results.png"))
    assert drawn.shape == np.asarray(Image.open(ROOT / "data/figures/results.png")).shape


def test_the_benchmark_runs_small(tmp_path: Path) -> None:
    """Two of its parts; tests/cli/test_benchmark.py has the others."""
    (line,) = [line for line in RESULTS if "benchmark.py" in line and "--small" in line]
    less = ["--parts", "evaluation", "stages", "--repeats", "1", "--save-dir", str(tmp_path)]
    done = forked.run([*main_command(line), *less], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stage of fednml" in done.stdout
    assert len(list((tmp_path / "benchmarks").glob("*.json"))) == 1


@pytest.mark.parametrize("line", [line for line in RESULTS if "attacks.sh" in line] + RELIABILITY)
def test_the_attacks_are_planned(line: str, tmp_path: Path) -> None:
    assigned, _, options = line.partition(" bash scripts/attacks.sh")
    settings = dict(word.split("=", 1) for word in shlex.split(assigned))
    settings |= {"ATTACKS": "nan", "AGGREGATORS": "mean krum"}  # of 50 pairs: each takes seconds
    settings |= {"SEEDS": "1"}
    command = ["bash", str(ROOT / "scripts" / "attacks.sh"), *shlex.split(options)]
    done = run(command, tmp_path, **settings, DRY_RUN="1", PYTHON=forked.python())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main_fednml.py") == 2


def test_the_rivals_are_what_their_rows_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    tune, show = (shlex.split(line)[2:] for line in RESULTS if "rivals.yaml" in line)
    assert compare.main([*tune, "--dry-run"]) == 0
    planned = capsys.readouterr()
    assert "120 of 120 runs are in" in planned.err and not planned.out  # the rows are all there
    assert compare.main(show) == 0
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.partition("### Ranks")[0]
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 20)
    assert all(line in page for line in lines)


def test_the_rows_of_the_protocol_are_what_the_page_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in RESULTS if "compare.py" in line and "rivals" not in line]
    assert compare.main(shlex.split(line)[2:]) == 0
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.partition("### Ranks")[0]
    lines = [line for line in tables.splitlines() if line.startswith("| fed")]
    assert len(lines) >= 2 and all(line in page for line in lines)


def test_the_sweep_of_words_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in README if "sweep.py" in line]
    assert sweep.main(shlex.split(line)[2:]) == 0
    told = capsys.readouterr()
    assert told.out.count("main_fednml.py") == 3 + 2 * 3  # FedAvg mixes nothing
    assert "--measure" in told.err


def test_the_published_table_is_planned(tmp_path: Path) -> None:
    (line,) = [line for line in README if "reproduce_" in line]
    words = [str(ROOT / word) if "/" in word else word for word in shlex.split(line)[1:]]
    settings = {"SMOKE": "1", "DRY_RUN": "1", "PYTHON": forked.python()}
    done = run([*words, "--save-dir", str(tmp_path)], tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    assert line.startswith("SMOKE=1 ") and done.stdout.count("--dataset synthetic") == 6


def test_scripts_parse(tmp_path: Path) -> None:
    for name in ("quickstart.sh", "test.sh", "sweep.sh", "setup.sh"):
        assert run(["bash", "-n", str(ROOT / "scripts" / name)], tmp_path).returncode == 0


@pytest.mark.parametrize("line", [line for line in README + RESULTS if "sweep.sh" in line])
def test_sweeps_are_planned(line: str, tmp_path: Path) -> None:
    assigned, _, options = line.partition(" bash scripts/sweep.sh")
    settings = dict(word.split("=", 1) for word in shlex.split(assigned))
    command = ["bash", str(ROOT / "scripts" / "sweep.sh"), "--save-dir", str(tmp_path / "save")]
    command += shlex.split(options)
    done = run(command, tmp_path, **settings, DRY_RUN="1", PYTHON=forked.python())
    assert done.returncode == 0, done.stderr
    grid = (len(settings[name].split()) for name in ("METHODS", "NOISE", "MISSING", "SEEDS"))
    assert done.stdout.count("main_fednml.py") == math.prod(grid)
