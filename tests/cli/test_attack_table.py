"""The table of attacks and aggregators, and the script that makes its runs."""

from __future__ import annotations

import io
import json
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from tiny import ROOT

from scripts import attack_table

GRID = ROOT / "scripts" / "attacks.sh"


def write_run(folder: Path, attack: str, aggregator: str, mAP: float, **settings: Any) -> None:  # noqa: N803
    """A finished run as the program leaves it."""
    config = {"dataset": "synthetic", "method": "fedavg", "seed": 1, "noise": 0.4, "missing": 0.4}
    config |= {"attack": attack, "aggregator": aggregator, "suppress_outliers": False}
    config |= {"attack_scale": 1.5 if attack == "collude" else 4.0}
    config |= {"aggregator_param": {"share": 0.25}, "rounds": 40, "name": None} | settings
    result = {"method": "fedavg", "dataset": "synthetic", "seed": config["seed"], "leaky": False}
    result |= {"bound": False, "last": {"mAP": mAP / 2}, "last5": {"mAP": mAP}}
    result["reports"] = {"rejected": 0.0, "flagged": 2.5, "flagged_honest": 0.5}
    if attack == "backdoor":
        result["last5"]["backdoor"] = 0.75
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "DONE").touch()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of the mean and one of each other cell; median under sign_flip is not done."""
    folder = tmp_path / "runs"
    write_run(folder / "a", "none", "mean", 0.30)
    write_run(folder / "b", "none", "mean", 0.40, seed=2)
    write_run(folder / "c", "sign_flip", "mean", 0.1)
    write_run(folder / "d", "none", "median", 0.25, aggregator_param={})
    write_run(folder / "e", "sign_flip", "mean", 0.2, suppress_outliers=True)
    return folder


def table(*arguments: object) -> subprocess.CompletedProcess:
    """What the script prints and returns, without the seconds that a process of its own takes."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = attack_table.main(list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


EXPECTED = """\
| aggregator | none | sign_flip |
| --- | ---: | ---: |
| mean | 0.350 ± 0.071 | 0.100 |
| mean+suppress | – | 0.200 |
| median | 0.250 | – |
"""


def test_rows_are_aggregators_and_columns_attacks(runs: Path, tmp_path: Path) -> None:
    done = table(runs, "--csv", tmp_path / "rows.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(EXPECTED)
    assert "mean of the last five tested rounds" in done.stdout
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert rows[0] == "aggregator,attack,seed,mAP,backdoor,held_down,found,selection,run"
    assert rows[5] == "mean+suppress,sign_flip,1,0.2,,0.5,2.0,last5,e"


def test_the_table_of_the_written_rows_is_the_same(runs: Path, tmp_path: Path) -> None:
    """So the rows that are committed make the table of the README."""
    first = table(runs, "--selection", "last", "--csv", tmp_path / "rows.csv")
    assert "the last round" in first.stdout
    assert table(tmp_path / "rows.csv").stdout == first.stdout


def test_the_attack_called_nan_is_a_name_and_no_number(runs: Path, tmp_path: Path) -> None:
    write_run(runs / "n", "nan", "mean", 0.25)
    first = table(runs, "--csv", tmp_path / "rows.csv")
    assert "| aggregator | none | nan |" in first.stdout
    assert table(tmp_path / "rows.csv").stdout == first.stdout


def test_other_numbers(runs: Path, tmp_path: Path) -> None:
    assert "| mean | 0.500 ± 0.000 | 0.500 |" in table(runs, "--value", "held_down").stdout
    assert "| mean+suppress | – | 2.000 |" in table(runs, "--value", "found").stdout
    assert "--value backdoor: none of these runs has it" in complaint(runs, "--value", "backdoor")
    write_run(runs / "f", "backdoor", "mean", 0.3)
    done = table(runs, "--value", "backdoor", "--csv", tmp_path / "rows.csv")
    assert "| mean | – | – | 0.750 |" in done.stdout
    assert "share of patched test images with the target class, the mean of the last" in done.stdout
    assert table(tmp_path / "rows.csv", "--value", "backdoor").stdout == done.stdout
    assert "did you mean 'backdoor'?" in complaint(runs, "--value", "back_door")


def test_another_rule_of_selection(runs: Path) -> None:
    assert "| mean | 0.175 ± 0.035 | 0.050 |" in table(runs, "--selection", "last").stdout


def complaint(*arguments: object) -> str:
    done = table(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_runs_of_other_settings_are_not_mixed(runs: Path) -> None:
    write_run(runs / "z", "nan", "mean", 0.3, rounds=20)
    assert "rounds differs between the runs (20, 40)" in complaint(runs)


def test_no_cell_is_of_two_runs_of_one_seed(runs: Path) -> None:
    write_run(runs / "z", "sign_flip", "mean", 0.3, aggregator_param={"share": 0.1})
    assert "a second run of the same cell" in complaint(runs)


def test_bad_input_is_one_line(runs: Path, tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no finished run; make some with scripts/attacks.sh" in complaint(tmp_path / "empty")
    assert "did you mean 'last5'?" in complaint(runs, "--selection", "lst5")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "lacks aggregator" in complaint(tmp_path / "other.csv")


def test_the_grid_is_every_attack_on_every_aggregator(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": forked.python(), "DRY_RUN": "1", "SEEDS": "3"}
    environment |= {"ATTACKS": "none collude", "AGGREGATORS": "krum mean+suppress"}
    environment |= {"SAVE": str(tmp_path / "elsewhere")}
    command = ["bash", str(GRID), "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    attacks = ("none --attack-scale 4", "collude --attack-scale 1.5")
    grid = [(a, g) for a in attacks for g in ("krum", "mean --suppress-outliers")]
    assert len(lines) == len(grid)
    for line, (attack, aggregator) in zip(lines, grid, strict=True):
        assert " --clients 8 --attackers 2 " in line and " --rounds 2 " in line
        assert f" --save-dir {tmp_path}/elsewhere " in line
        own = f" --attack {attack} --aggregator {aggregator} --method fedavg --seed 3"
        assert line.endswith(own)


def test_bad_input_ends_the_grid() -> None:
    environment = os.environ | {"PYTHON": forked.python(), "ATTACKS": "sign_flop"}
    done = subprocess.run(
        ["bash", str(GRID)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 2
    assert "did you mean 'sign_flip'?" in done.stderr
