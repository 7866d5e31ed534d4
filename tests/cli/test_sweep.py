"""sweep.py: grids, files of them, what is killed and goes on, other images, time, side by side."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from test_scripts import planned
from tiny import ROOT

from scripts import reproduce, sweep
from scripts.sweep_code import plan as planning
from scripts.sweep_code.cost import Pace, estimate, finished_paces, kind, spoken
from scripts.sweep_code.grid import command_words, read_grid
from scripts.sweep_code.plan import of_other_images, plan, set_aside
from src.config import resolve
from utils_.side_by_side import SideBySide, last_line, open_log

LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds its log by /proc")
# A run of four rounds, each a row and a tenth of a second; it knows its folder by its log. What it
# scores follows from its name.
STAND_IN = """
import json, os, time, zlib
from pathlib import Path
log = Path(os.readlink("/proc/self/fd/2"))
folder = log.parents[1] / "runs" / log.stem
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
_, method, noise, *_, seed, code = log.stem.split("-")
(folder / "config.yaml").write_text(f"noise: {noise[5:]}\\nmissing: 0.4\\nseed: {seed[4:]}\\n")
rows = folder / "metrics.csv"
done = len(rows.read_text().splitlines()) - 1 if rows.exists() else 0
with rows.open("a") as file:
    file.write("" if rows.stat().st_size else "round,seconds\\n")
    for number in range(done, 4):
        time.sleep(0.1)
        file.write(f"{number},0.1\\n")
        file.flush()
score = zlib.crc32(log.stem.encode()) / 2**32
names = ("mAP", "macro_f1", "macro_recall", "balanced_accuracy", "macro_auroc")
result = {"method": method, "dataset": "synthetic", "seed": int(seed[4:]), "leaky": False}
result |= {"bound": False, "last": dict.fromkeys(names, score)}
result["last5"] = result["last"]
(folder / "result.json").write_text(json.dumps(result))
(folder / "env.json").write_text("{}")
(folder / "DONE").touch()
"""
WORDS = ["--grid", "method=fedavg,fednml", "noise=0.4", "seed=1,2,3", "--jobs", "2", "--"]
WORDS += ["--rounds", "4", "--warmup-rounds", "1", "--save-dir"]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in place of the main job, and the signal handlers put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(planning, "MAIN", program)
    yield program
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(what: object, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what()


# ---- killed and restarted


@LINUX
def test_a_killed_sweep_ends_with_the_same_table(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of six runs; kill -9 of the sweep and of one of its runs."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert sweep.main([*WORDS, str(whole)]) == 0
    expected = capsys.readouterr()
    assert "run 6 of 6" in expected.err and "FAILED" not in expected.err

    driver = "import sys; from pathlib import Path; from scripts import sweep\n"
    driver += "from scripts.sweep_code import plan; plan.MAIN = Path(sys.argv.pop(1))\n"
    driver += "sys.exit(sweep.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", driver, str(stand_in), *WORDS, str(broken)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len(list(broken.glob("runs/*/DONE"))) >= 2)
    process.kill()
    process.wait()
    unfinished = [p.parent for p in broken.glob("runs/*/pid") if not (p.parent / "DONE").exists()]
    for folder in unfinished[:1]:
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)

    assert sweep.main([*WORDS, str(broken)]) == 0  # waits for the run that outlived the sweep
    again = capsys.readouterr()
    assert again.out.replace(str(broken), str(whole)) == expected.out
    assert all(len((f / "metrics.csv").read_text().splitlines()) == 5 for f in unfinished)
    assert list((broken / "logs").iterdir()) == []


@LINUX
def test_two_sweeps_at_once_share_the_runs(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = planned("method=fedavg seed=1", f"--rounds 4 --warmup-rounds 1 --save-dir {tmp_path}")
    processes: SideBySide[str] = SideBySide(1)
    command = [sys.executable, str(stand_in)]
    processes.start("other", command, log=open_log(runs[0].log))
    words = ["--grid", "method=fedavg", "seed=1", "--", "--rounds", "4", "--warmup-rounds", "1"]
    assert sweep.main([*words, "--save-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert said.count("in work by another process") == 1 and "starting" not in said
    assert processes.collect(below=1) == [("other", 0)]


# ---- grids in files


def test_a_file_holds_settings_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "preset: quick\nrounds: 20\nsuppress-outliers: true\ndata_dir:\n"
        "method: [fedavg, fednml]\nnoise, missing: [[0.2, 2], [0.4, 4]]\n"
        "param.mixup: [0, 1]\nparam.trust: 0.9\ndata_seed: [1, 2]\nseed: [1]\n"
    )
    words = command_words(read_grid(path), ["--clients", "3"])
    runs = plan(words)
    told = [(c.data_seed, c.noise, c.missing, c.method, c.param) for c in (r.config for r in runs)]
    params = [("fedavg", {}), *(("fednml", {"mixup": m, "trust": 0.9}) for m in (0, 1))]
    expected = [
        (seed, noise, missing, *method)
        for seed in (1, 2)
        for noise, missing in ((0.2, 2), (0.4, 4))
        for method in params  # FedAvg once: it mixes nothing
    ]
    assert sorted(map(str, told)) == sorted(map(str, expected))
    assert [one[0] for one in told] == [1] * 6 + [2] * 6
    assert len(runs) == 12 and len({run.folder for run in runs}) == 12
    assert {(r.config.rounds, r.config.clients, r.config.image_size) for r in runs} == {(20, 3, 32)}
    assert all(run.config.suppress_outliers for run in runs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: [1]", "unknown setting; did you mean 'seed'?"),
        ("noise, missing: 0.2", "give a list of lists"),
        ("noise, missing: [[0.2]]", "2 names and 1 values"),
        ("seed: []", "the grid is empty"),
        ("resume: x", "no place in a sweep"),
        ("[1, 2", "cannot be read"),
        ("- seed", "holds no settings"),
        ("param.nothing: 3", "no method of this sweep has such a parameter"),
        ("seed: [one]", "--seed one: give a whole number"),
        ("uncertain: [maybe]", "unknown uncertain"),
    ],
)
def test_a_wrong_file_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert sweep.main([str(path), "--dry-run"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and said in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no grid; give --grid"),
        (["absent.yaml"], "absent.yaml: cannot be read (No such file"),
        (["--grid", "seed=1", "--rounds", "3"], "--rounds: unknown option; those of main_fednml"),
        (["--grid", "seed=1", "--measure"], "--measure: only tells how long"),
        (["--grid", "seed=1", "--jobs", "0"], "--jobs 0: give a number of runs"),
        (["--grid", "dataset=mured,isic"], "data/mured is absent"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert sweep.main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and said in told.err


# ---- other images


def test_runs_of_other_images_are_put_away(tmp_path: Path) -> None:
    data = tiny.write_csv_dataset(tmp_path / "data")
    options = f"--dataset csv --data-dir {data} --image-size 16 --save-dir {tmp_path / 'save'}"
    runs = planned("seed=1,2,3", options)
    images = planning._images(runs[0].config)["images"]
    for run, key in zip(runs[:2], (images, "others"), strict=True):
        run.folder.mkdir(parents=True)
        (run.folder / "env.json").write_text(json.dumps({"made_from": {"images": key}}))
        (run.folder / "DONE").touch()
    assert of_other_images(runs) == [runs[1]]
    assert set_aside(runs[1]) == tmp_path / "save" / "stale" / runs[1].folder.name
    assert not runs[1].folder.exists() and of_other_images(runs) == []
    runs[1].folder.mkdir()
    assert set_aside(runs[1]).name == f"{runs[1].folder.name}-2"


# ---- time


def test_the_time_is_that_of_a_finished_run_of_the_kind(tmp_path: Path) -> None:
    options = f"--rounds 20 --save-dir {tmp_path}"
    done, other = planned("method=fedavg,scaffold seed=1", options)
    assert kind(done.config) == kind(replace(done.config, seed=9, noise=0.1, lr=0.1, rounds=7))
    assert kind(done.config) != kind(other.config)
    assert kind(done.config) != kind(replace(done.config, image_size=128))
    done.folder.mkdir(parents=True)
    (done.folder / "config.yaml").write_text(resolve({"method": "fedavg"}).to_yaml())
    (done.folder / "result.json").write_text(json.dumps({"seconds": 300.0, "rounds": 100}))
    (done.folder / "DONE").touch()
    paces = finished_paces([done, other])
    assert list(paces) == [kind(done.config)]
    assert estimate([done] * 10, paces, jobs=1) == "10 runs take about 10 min"
    told = estimate([done] * 240 + [other], paces, jobs=2)
    assert told == "240 of 241 runs take about 2.0 h, 2 side by side"
    assert estimate([done], paces, jobs=8) == "1 runs take about 60 s, 8 side by side"
    assert estimate([other], paces, jobs=1) == ""
    (done.folder / "result.json").write_text("{")
    assert finished_paces([done]) == {}


def test_rounds_of_both_phases_count() -> None:
    config = resolve({"method": "fednml", "rounds": 10, "warmup_rounds": 4})
    assert Pace(5, 1, 3).seconds(config) == 5 + 4 * 1 + 6 * 3
    assert Pace(5, 1, 3).seconds(replace(config, method="fedavg")) == 5 + 10 * 3
    assert [spoken(s) for s in (59, 600, 7199, 7200)] == ["59 s", "10 min", "120 min", "2.0 h"]


# ---- side by side


def test_a_log_belongs_to_the_process_that_writes_it(tmp_path: Path) -> None:
    log, processes = tmp_path / "a" / "log", SideBySide(2)
    processes.start(
        1,
        ["sh", "-c", "echo one >&2; printf 'two\\rthree\\n\\n' >&2; exec sleep 60"],
        log=open_log(log),
    )
    wait_for(lambda: "three" in log.read_text())
    with pytest.raises(BlockingIOError):
        open_log(log)
    assert last_line(log) == "three"
    assert processes.stop(at_once=True) == [1] and processes.tasks == []
    open_log(log).close()
    assert last_line(log) == last_line(tmp_path / "none") == "it said nothing"


def test_the_first_signal_is_a_request_and_the_second_an_order(tmp_path: Path) -> None:
    program = (
        "trap 'n=x$n; echo $n >&2' TERM; echo go >&2; while [ ${#n} -lt 2 ]; do sleep 0.05; done"
    )
    for at_once, marks in ((True, 2), (False, 1)):
        log, processes = tmp_path / f"log{at_once}", SideBySide(1)
        end = program.replace("-lt 2", f"-lt {marks}")
        processes.start(1, ["sh", "-c", end], log=open_log(log))
        wait_for(lambda log=log: "go" in log.read_text())
        processes.stop(at_once=at_once)
        assert last_line(log) == "x" * marks


# ---- published numbers


def test_published_numbers_stand_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["mured", "--smoke", "--methods", "fedavg", "fednml-leaky", "--", "--save-dir"]
    dry = ["mured", "--smoke", "--dry-run", *words[2:], str(tmp_path)]
    assert reproduce.main(dry) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 3 and list(tmp_path.iterdir()) == []
    assert all("--noise 0.6 --missing 8 " in lines[place] for place in (2, 5))
    assert "hidden_label_leak=true" in lines[3] and "--param" not in lines[0]

    def finish(self: object) -> None:
        for number, run in enumerate(self.runs):
            run.folder.mkdir(parents=True)
            scores = dict.fromkeys(reproduce.COLUMNS.values(), 0.1 * number)
            result = {"method": run.config.method, "dataset": "synthetic", "seed": 1}
            result |= {"leaky": False, "bound": False, "last": scores}
            result |= {"last5": {"mAP": 0.9}, "oracle_selected": scores}
            (run.folder / "result.json").write_text(json.dumps(result))
            (run.folder / "config.yaml").write_text(run.config.to_yaml())
            (run.folder / "DONE").touch()

    monkeypatch.setattr("scripts.sweep_code.work.Sweep.work", finish)
    assert reproduce.main([*words, str(tmp_path)]) == 0
    text = capsys.readouterr().out
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line[:2] == "| "]
    own = [row for row in rows if row[0] == "fedavg"]
    assert own[0][1:] == [
        *("0.539", "0.000", "0.478", "0.000", "0.413", "0.000", "0.698", "0.000"),
        "0.900",
    ]
    assert own[2][1:3] == ["0.227", "0.200"]
    leaky = [row for row in rows if row[0] == "fednml-leaky"]
    assert leaky[2][1:3] == ["0.476", "0.500"]
    assert "published: one seed" in text and "SMOKE" in text and "never its equal" in text


def test_what_is_not_published_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert reproduce.main(["murde"]) == 2
    assert "did you mean 'mured'?" in capsys.readouterr().err
    assert reproduce.main(["rfmid", "--methods", "fednlm"]) == 2
    assert "did you mean 'fednml'?" in capsys.readouterr().err
    assert reproduce.main(["rfmid"]) == 2
    assert "data/rfmid is absent" in capsys.readouterr().err
