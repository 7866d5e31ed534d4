"""The shell scripts, the presets and the list of dependencies."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from tiny import ROOT

from scripts.sweep_code.grid import Grid, add_words, command_words
from scripts.sweep_code.plan import Planned, plan
from src.command_line import PRESETS, read_preset
from src.config import resolve
from utils_.datasets import DATASETS
from utils_.errors import UserError

SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"]
TINY = "--train-images 60 --test-images 30 --image-size 16 --rounds 2 --local-epochs 1 --workers 1"
GRID = {"METHODS": "fedavg fednml", "NOISE": "0.5", "MISSING": "2", "SEEDS": "3"}


def bash(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script with only the given variables added to the environment."""
    unset = {"METHODS", "NOISE", "MISSING", "SEEDS", "JOBS", "DRY_RUN"}
    environment = {k: v for k, v in os.environ.items() if k not in unset} | variables
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True
    )


def sweep(save_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run sweep.sh on a tiny data set."""
    variables = {"PYTHON": forked.python()} | GRID | variables
    place = ["--save-dir", str(save_dir)]
    return bash(ROOT / "scripts/sweep.sh", *TINY.split(), *place, *arguments, **variables)


def planned(grid: str, options: str) -> list[Planned]:
    """The runs of a grid given in words."""
    found = Grid()
    add_words(found, grid.split())
    return plan(command_words(found, shlex.split(options)))


def runs(save_dir: Path) -> list[Path]:
    return sorted((save_dir / "runs").iterdir())


# --- shell


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_bash_and_executable(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(script, os.X_OK)


def test_continuous_integration_runs_the_tests():
    assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


# --- sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished sweep of two methods, two at a time, in a path with a space."""
    save_dir = tmp_path_factory.mktemp("sweep") / "my runs"
    return save_dir, sweep(save_dir, JOBS="2")


def test_sweep_trains_the_grid_and_shows_its_table(swept):
    save_dir, done = swept
    assert done.returncode == 0, done.stderr
    names = [folder.name.rpartition("-")[0] for folder in runs(save_dir)]
    assert names == [f"synthetic-{m}-noise0.5-missing2-seed3" for m in ("fedavg", "fednml")]
    assert all((folder / "DONE").exists() for folder in runs(save_dir))
    assert "noise 0.5" in done.stdout and "| fedavg" in done.stdout and "| fednml" in done.stdout
    assert all(str(folder) in done.stdout for folder in runs(save_dir))
    assert "tensorboard" in done.stdout


def test_second_sweep_only_shows_the_table(swept):
    save_dir, done = swept
    before = {path: path.stat().st_mtime_ns for path in save_dir.rglob("*")}
    again = sweep(save_dir)
    assert again.returncode == 0 and again.stdout == done.stdout
    assert again.stderr.count("finished already") == 2
    assert before == {path: path.stat().st_mtime_ns for path in save_dir.rglob("*")}


def test_unfinished_is_resumed_and_failed_does_not_end_the_sweep(swept, tmp_path):
    save_dir = tmp_path / "save"
    shutil.copytree(swept[0], save_dir)
    unfinished, finished = runs(save_dir)
    for name in ("DONE", "result.json"):
        (unfinished / name).unlink()
    model = (unfinished / "model.safetensors").read_bytes()
    grid = "method=clean noise=0.5 missing=2 seed=3"
    (clean,) = planned(grid, f"{TINY} --save-dir {shlex.quote(str(save_dir))}")
    broken = clean.folder
    broken.mkdir()
    (broken / "config.yaml").write_text("rounds: none\n")

    done = sweep(save_dir, METHODS="clean fedavg fednml")
    assert done.returncode == 1, done.stderr
    assert f"FAILED: {broken} (exit code 2)" in done.stderr
    assert f"resuming: {unfinished}" in done.stderr
    assert (unfinished / "DONE").exists(), done.stderr
    assert not (broken / "DONE").exists()
    assert (unfinished / "model.safetensors").read_bytes() == model
    assert all(str(folder) in done.stdout for folder in (unfinished, finished))
    assert str(broken) not in done.stdout


def test_dry_run_prints_commands_that_can_be_pasted(swept, tmp_path):
    save_dir, _ = swept
    done = sweep(save_dir, METHODS="fedavg", NOISE="0 .5 0.5", DRY_RUN="1")
    (line,) = done.stdout.splitlines()
    assert done.returncode == 0 and "--method fedavg --noise 0 --missing 2 --seed 3" in line
    assert done.stderr.count("finished already") == 1  # .5 and 0.5 are one run
    assert "1 runs take about" in done.stderr and "by the seconds of finished runs" in done.stderr
    assert len(runs(save_dir)) == 2
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True)
    assert words.stdout.splitlines()[:2] == [forked.python(), str(ROOT / "src/main_fednml.py")]
    assert str(save_dir) in words.stdout.splitlines()


def test_every_value_of_the_grid_gives_a_run():
    grid = "method=fedavg,clean noise=0.2,0.4 missing=0,0.5 seed=1,2"
    found = planned(grid, TINY)
    told = [(c.method, c.noise, c.missing, c.seed) for c in (run.config for run in found)]
    assert told == [
        (method, noise, missing, seed)
        for seed in (1, 2)
        for noise in (0.2, 0.4)
        for missing in (0, 0.5)
        for method in ("fedavg", "clean")
    ]
    assert len({run.folder for run in found}) == 16
    others = planned(grid, f"{TINY} --lr 0.01")
    assert not {run.folder for run in found} & {run.folder for run in others}


@pytest.mark.parametrize(
    ("grid", "options", "complaint"),
    [
        ("method=fedavg,fednlm", "", "did you mean 'fednml'?"),
        ("method=fedavg noise=0,1.5", "", "--noise 1.5: out of range"),
        ("method=fedavg", "--round 3", "did you mean '--rounds'?"),
        ("seed=1,2", "--seed=3", 'give all its values there (SEEDS="..." of sweep.sh)'),
        ("method=fednml", "--method clean", 'METHODS="..." of sweep.sh'),
        ("lr=0.1,0.2", "--lr 1", "--lr: is in the grid; give all its values there"),
        ("seed=1", "--name x", "no place in a sweep"),
        ("name=x", "", "no place in a sweep"),
        ("sed=1,2", "", "--grid sed=1,2: unknown setting; did you mean 'seed'?"),
        ("seed", "", "--grid seed: give NAME=VALUE,VALUE"),
        ("seed=", "", "the grid is empty"),
        ("noise,missing=0.2:2,0.4", "", "2 names and 1 values"),
        ("seed=1 seed,noise=1:0.2", "", "seed is in the grid already"),
        ("param.margn=0,1", "", "no method of this sweep has such a parameter; did you mean"),
        ("method=fedavg param.margin=0", "", "they have none"),
    ],
)
def test_grid_is_refused(grid, options, complaint):
    with pytest.raises(UserError) as caught:
        planned(grid, options)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"METHODS": "fedavg fednlm"}, "did you mean 'fednml'?"),
        ({"JOBS": "two"}, "--jobs two"),
        ({"JOBS": "0"}, "--jobs 0"),
        ({"METHODS": " "}, "the grid is empty"),
    ],
)
def test_sweep_checks_the_whole_grid_first(tmp_path, variables, complaint):
    done = sweep(tmp_path / "save", **variables)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and complaint in done.stderr
    assert not (tmp_path / "save").exists()


def test_interrupted_sweep_can_go_on(tmp_path):
    """The signal reaches the run, which ends after its round and leaves a checkpoint."""
    arguments = [*TINY.split(), "--rounds", "2000", "--save-dir", str(tmp_path)]
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts/sweep.sh"), *arguments],
        env=os.environ | GRID | {"PYTHON": forked.python()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/synthetic*/checkpoint/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on from here" in errors
    (folder,) = runs(tmp_path)  # no further run was started
    assert list((folder / "checkpoint").iterdir()) and not (folder / "DONE").exists()
    assert f"--resume {folder}" in errors


# --- presets


def test_presets_are_those_promised():
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    assert names == {"quick", "compare", "mured", "rfmid", "brset", "isic", "published"}


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_preset_is_accepted(name):
    settings = read_preset(name)
    if settings.get("dataset", "synthetic") in DATASETS:
        config = resolve(settings)
        assert all(getattr(config, key) == value for key, value in settings.items())
    else:
        with pytest.raises(UserError, match=f"--dataset {name}: unknown dataset"):
            resolve(settings)
        assert resolve(settings | {"dataset": "isic"}).rounds > 0


def test_published_preset_has_the_published_constants():
    """docs/methods.md 1.4 to 1.6."""
    config = resolve(read_preset("published"))
    assert (config.lr, config.weight_decay) == (1e-4, 1e-4)
    assert (config.local_epochs, config.batch_size) == (3, 32)
    assert (config.rounds, config.warmup_rounds, config.param["refresh_every"]) == (100, 10, 5)
    assert (config.param["kd_weight"], config.param["kappa"]) == (0.8, 2)
    assert config.param["published"] and not config.param.get("hidden_label_leak")


# --- dependencies and set-up


def test_requirements_are_the_only_list():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'dependencies = { file = ["requirements.txt"] }' in text
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    names = [re.fullmatch(r"([A-Za-z0-9-]+)>=[\d.]+", line).group(1).lower() for line in lines]
    assert len(set(names)) == len(names)
    for name in names:
        assert not re.search(rf'"{name}[<>=]', text), f"{name} is listed in pyproject.toml too"


def imported_packages() -> set[str]:
    """What src and utils_ import of others than themselves and the standard library."""
    found: set[str] = set()
    for path in [p for folder in ("src", "utils_") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add("tensorboard" if "tensorboard" in node.module else node.module)
    found = {name.partition(".")[0] for name in found}
    return found - {"src", "utils_", "_typeshed"} - set(sys.stdlib_module_names)


def test_requirements_are_what_is_imported():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {line.partition(">=")[0] for line in lines if not line.startswith("#")}
    named = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    optional = {"cleanlab", "flwr", "medmnist", "pydicom"}
    assert imported_packages() - optional == {named.get(name, name) for name in listed}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with what setup.sh looks at, and ``bin`` with the few programs it may find."""
    root = tmp_path / "a clone"
    (root / "scripts").mkdir(parents=True)
    (root / "bin").mkdir()
    shutil.copy(ROOT / "scripts/setup.sh", root / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for tool in ("bash", "dirname", "cat", "rm", "mkdir", "cp"):
        (root / "bin" / tool).symlink_to(shutil.which(tool))
    return root


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def set_up(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    variables = {"PATH": str(root / "bin"), "PYTHON": ""} | variables
    return bash(root / "scripts/setup.sh", *arguments, **variables)


def test_setup_says_what_is_absent(checkout):
    assert "no Python 3.10 or later found" in set_up(checkout).stderr
    program(checkout / "bin/python3", "exit 1")  # what an old Python answers
    assert "no Python 3.10 or later found" in set_up(checkout).stderr
    new = 'case "$*" in *ensurepip*) exit 1 ;; *) exit 0 ;; esac'
    program(checkout / "bin/python3.11", new)
    assert "apt install python3.11-venv" in set_up(checkout).stderr
    assert "PYTHON=python9 is no working" in set_up(checkout, PYTHON="python9").stderr
    assert "unknown argument 'tests'" in set_up(checkout, "tests").stderr
    assert set_up(checkout).returncode == 1
    assert not (checkout / ".venv").exists()


def test_setup_installs_once_and_again_after_a_change(checkout):
    """A stand-in for uv makes .venv around the running interpreter and notes what it is asked."""
    log, python = checkout / "asked.txt", checkout / "bin/python3"
    program(python, f'case "$*" in *"import torch"*) exit ;; esac\nexec "{sys.executable}" "$@"')
    program(
        checkout / "bin/uv",
        f'echo "$*" >> "{log}"\n[ "$1" = pip ] && exit "${{BROKEN:-0}}"\n'
        f'mkdir -p "{checkout}/.venv/bin"\ncp "{python}" "{checkout}/.venv/bin/python"',
    )

    failed = set_up(checkout, BROKEN="1")
    assert failed.returncode == 1 and "did not finish" in failed.stderr
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["venv", "pip"]
    for arguments, asked in (([], 3), ([], 3), (["test"], 4), (["test"], 4), ([], 4)):
        done = set_up(checkout, *arguments)
        assert done.returncode == 0, done.stderr
        lines = log.read_text().splitlines()
        assert len(lines) == asked
    assert lines[2].endswith("-r requirements.txt") and lines[3].endswith("--editable .[test]")

    with (checkout / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert set_up(checkout).returncode == 0
    assert len(log.read_text().splitlines()) == 5
