"""The protocol of the comparison: same candidates, separate seeds, rows, choice and statistics."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from scipy import stats
from tiny import ROOT, load, make_config

from scripts import compare
from scripts.protocol_code import data, pool, rows
from scripts.protocol_code.plan import Protocol, read_protocol
from scripts.protocol_code.tables import show
from utils_ import side_by_side
from utils_.errors import UserError
from utils_.scenario import ScenarioSettings, build_scenario
from utils_.scenario_tables import client_table
from utils_.stats import average_ranks, holm, paired_difference
from utils_.truth import reference

FILES = ROOT / "scripts" / "protocol"
SMALL = FILES / "small.yaml"
TWO = ["--methods", "fedavg", "fednml"]


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return read_protocol(FILES, FILES / "budget.yaml")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SMALL=1 leaves, with the table in out.md."""
    folder = tmp_path_factory.mktemp("small")
    environment = os.environ | {"SMALL": "1", "SAVE_DIR": str(folder), "PYTHON": forked.python()}
    command = ["bash", str(ROOT / "scripts" / "compare.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    (folder / "out.md").write_text(done.stdout)
    return folder


def step(name: str, folder: Path, *options: object) -> int:
    """One step on the small budget, in this process."""
    table = "tuning.csv" if name in ("tune", "choose") else "test.csv"
    words = ["--budget", SMALL, "--save-dir", folder, "--rows", folder / table, *options]
    words += ["--chosen", folder / "chosen.yaml"]
    return compare.main([name, *map(str, words)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.unlink(missing_ok=True)
    for line in lines:
        rows.append_row(path, {name: str(value) for name, value in line.items()})


def tuning_rows(scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of the small budget: each candidate has one score, give or take the seed's."""
    small_one = read_protocol(FILES, SMALL)
    lines = []
    for method, own in scores.items():
        for number, score in enumerate(own):
            for seed in small_one.tuning_seeds:
                run = small_one.run(method, number, setting="paper-0.4-4", seed=seed)
                line = dict(zip(rows.IDENTITY, run.identity, strict=True))
                line |= dict.fromkeys((*rows.FACTS, *rows.VALIDATION), "1")
                line |= {"options": run.text, "val_best_mAP": score + seed / 1000}
                lines.append(line | {"last.mAP": 1 - score, "val_selected.mAP": 1 - score})
    return lines


def complaint(capsys: pytest.CaptureFixture, *words: object) -> str:
    assert compare.main([*map(str, words)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    return found.err


# ---- the files of the protocol


def test_every_row_has_the_same_number_of_candidates(protocol: Protocol) -> None:
    assert set(protocol.tuning) == set(protocol.methods)
    assert len({len(c) for c in protocol.tuning.values()}) == 1
    for method, candidates in protocol.tuning.items():
        assert len({yaml.safe_dump(c) for c in candidates}) == len(candidates), method
        assert len({c["lr"] for c in candidates[: protocol.candidates]}) == 2, method


def test_tuning_and_test_seeds_are_apart(protocol: Protocol) -> None:
    for one in (protocol, read_protocol(FILES, SMALL)):
        assert not set(one.tuning_seeds) & set(one.test_seeds)
    assert len(protocol.tuning_seeds) == 1
    assert len(protocol.test_seeds) == 5


def test_every_run_is_accepted_by_the_program(protocol: Protocol) -> None:
    for setting in protocol.settings:
        for method in protocol.methods:
            for number in range(protocol.candidates):
                run = protocol.run(method, number, setting=setting, seed=21)
                config = run.config()
                assert (config.seed, config.data_seed) == (21, 21)
                assert not run.truth or (config.noise, config.missing) == (0, 0)


def test_a_wrong_protocol_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(FILES, tmp_path / "protocol")

    def changed(name: str, old: str, new: str) -> str:
        text = (FILES / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        said = complaint(capsys, "tune", "--protocol", folder, "--dry-run")
        (folder / name).write_text(text)
        return said

    assert "seeds 7 both tune and test" in changed("budget.yaml", "[21,", "[7,")
    few = changed("tuning.yaml", "  - {lr: 0.001, param: {mu: 0.01}}\n", "")
    assert "'fedprox' has 3 candidates" in few
    assert "did you mean 'noise'?" in changed("settings.yaml", "noise: 0.2", "nois: 0.2")
    assert "is set by compare.py itself" in changed("methods.yaml", "{method: local", "{seed: 1")


# ---- names


def test_unknown_names_are_one_line(capsys: pytest.CaptureFixture) -> None:
    assert "did you mean 'fedavg'?" in complaint(capsys, "tune", "--methods", "fedavk")
    assert "did you mean 'reader'?" in complaint(capsys, "show", "--settings", "readr")
    assert "did you mean 'tune'?" in complaint(capsys, "tun")
    assert "--seeds 7: no test seed" in complaint(capsys, "run", "--seeds", "7")
    assert "--seeds 21: no tuning seed" in complaint(capsys, "tune", "--seeds", "21")
    assert "all tuning seeds" in complaint(capsys, "choose", "--seeds", "7")
    assert "did you mean 'odir'?" in complaint(capsys, "tune", "--data", "odr=/")
    assert "--selection" in complaint(capsys, "show", "--selection", "oracle")


# ---- choosing


def test_the_best_mean_on_validation_is_chosen(tmp_path: Path) -> None:
    write(tmp_path / "tuning.csv", tuning_rows({"fedavg": [0.2, 0.3], "fednml": [0.4, 0.4]}))
    assert step("choose", tmp_path, *TWO) == 0
    found = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert found["candidates"] == 2
    assert [found["methods"][m]["candidate"] for m in ("fedavg", "fednml")] == [1, 0]
    np.testing.assert_allclose(found["methods"]["fedavg"]["val_mAP"], [0.2075, 0.3075], atol=1e-9)


def test_the_choice_reads_no_test_column(tmp_path: Path) -> None:
    lines = tuning_rows({"fedavg": [0.2, 0.3], "fednml": [0.5, 0.4]})
    blank = [{n: "" if "." in n else v for n, v in line.items()} for line in lines]
    texts = []
    for each in (lines, blank):
        write(tmp_path / "tuning.csv", each)
        (tmp_path / "chosen.yaml").unlink(missing_ok=True)
        assert step("choose", tmp_path, *TWO) == 0
        texts.append((tmp_path / "chosen.yaml").read_text())
    assert texts[0] == texts[1]


def test_a_choice_needs_every_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "tuning.csv", tuning_rows({"fedavg": [0.2, 0.3]})[:-1])
    assert step("choose", tmp_path, "--methods", "fedavg") == 2
    assert "no row of paper-0.4-4-fedavg-c1-s8" in capsys.readouterr().err
    assert not (tmp_path / "chosen.yaml").exists()


# ---- running


@pytest.mark.slow
def test_the_small_form_does_it_all(small: Path) -> None:
    tuned, tested = read(small / "tuning.csv"), read(small / "test.csv")
    assert len({rows.identity(row) for row in tuned}) == len(tuned) == 2 * 2 * 2
    assert len({rows.identity(row) for row in tested}) == len(tested) == 2 * 2
    assert not {row["seed"] for row in tuned} & {row["seed"] for row in tested}
    for row in [*tuned, *tested]:
        assert row["commit"]
        assert row["hardware"]
        assert 0 < float(row["val_last_mAP"]) <= float(row["val_best_mAP"]) < 1
        assert 0 < float(row["val_selected.mAP"]) < 1
    assert list((small / "runs").iterdir()) == []
    assert "| fednml |" in (small / "out.md").read_text()


@pytest.mark.slow
def test_what_is_there_is_skipped_and_what_was_killed_repeated(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(small, tmp_path / "copy")
    before = read(folder / "tuning.csv")
    with monkeypatch.context() as patch:
        patch.setattr(pool.Pool, "_start", None)  # a start would be a TypeError
        assert step("tune", folder, *TWO) == 0
    write(folder / "tuning.csv", before[1:])
    name = "{setting}-{method}-c{candidate}-s{seed}".format(**before[0])
    monkeypatch.setattr(sys, "executable", forked.python())
    killed = folder / "runs" / name
    (killed / "checkpoint").mkdir(parents=True)
    assert step("tune", folder, *TWO, "--keep") == 0
    assert (killed / "DONE").exists()
    again = read(folder / "tuning.csv")[-1]
    assert again | {"seconds": "", "commit": ""} == before[0] | {"seconds": "", "commit": ""}
    before[0]["options"] += " --momentum 0.5"
    write(folder / "tuning.csv", before)
    assert step("tune", folder, *TWO) == 2
    assert "was made with other options" in capsys.readouterr().err


def test_a_failed_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no luck')\n")
    monkeypatch.setattr(pool, "MAIN", tmp_path / "broken.py")
    assert step("tune", tmp_path, "--methods", "fedavg", "--seeds", 7) == 1
    said = capsys.readouterr().err
    assert "FAILED: paper-0.4-4-fedavg-c1-s7 (exit code 1): no luck" in said
    assert not (tmp_path / "tuning.csv").exists()


def test_an_interruption_ends_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(pool, "MAIN", tmp_path / "slow.py")
    started, real, waits = [], subprocess.Popen, []

    def start(words: list[str], **options: Any) -> subprocess.Popen:
        process = real(words, **options)
        started.extend([process] * (str(tmp_path / "slow.py") in words))
        return process

    def press_once(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side.subprocess, "Popen", start)
    monkeypatch.setattr(side_by_side.time, "sleep", press_once)
    assert step("tune", tmp_path, "--methods", "fedavg") == 130
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_dry_run_prints_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert step("tune", tmp_path, *TWO, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 2 * 2
    assert all(" --workers 1 " in line and " --lr " in line for line in lines)
    assert list(tmp_path.iterdir()) == []


# ---- one frozen commit


def test_only_committed_code_is_tested(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *own, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    table = tmp_path / "test.csv"
    with pytest.raises(UserError, match="not committed"):
        rows.refuse_thawed(rows.code_commit(tmp_path), table)
    git("add", ".")
    git("commit", "-m", "one")
    frozen = rows.code_commit(tmp_path)
    write(table, [tuning_rows({"fedavg": [0.1]})[0] | {"commit": frozen}])
    git("add", ".")
    git("commit", "-m", "rows, which are no code")
    assert rows.code_commit(tmp_path) == frozen
    rows.refuse_thawed(frozen, table)
    (tmp_path / "src" / "a.py").write_text("2\n")
    assert rows.code_commit(tmp_path) == f"{frozen}-dirty"
    git("commit", "-am", "two")
    with pytest.raises(UserError, match=f"rows of commit {frozen}"):
        rows.refuse_thawed(rows.code_commit(tmp_path), table)


def test_the_run_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "tuning.csv", tuning_rows({"fedavg": [0.2, 0.3], "fednml": [0.5, 0.4]}))
    assert step("choose", tmp_path, *TWO) == 0
    monkeypatch.setattr(compare, "code_commit", lambda root: "abc-dirty")
    assert step("run", tmp_path, *TWO) == 2
    assert "not committed; commit them or give --allow-dirty" in capsys.readouterr().err


# ---- data


@pytest.fixture
def odir(tmp_path: Path) -> Path:
    """80 images of 40 patients; the observed labels are wrong in a quarter of them."""
    folder = tmp_path / "odir"
    (folder / "images").mkdir(parents=True)
    names = [f"{n}_{side}.jpg" for n in range(40) for side in ("left", "right")]
    for name, wrong in (("train_data", False), ("train_observed", True), ("test_data", False)):
        labels = [int(n % 2 == 0) ^ (wrong and n % 4 == 0) for n in range(80)]
        rows = [
            f"{name.partition('_')[0]}_{image},{y}" for image, y in zip(names, labels, strict=True)
        ]
        (folder / f"{name}.csv").write_text("\n".join(["Image Index,N", *rows]))
    groups = [f"train_{image},{image.partition('_')[0]}" for image in names]
    (folder / "groups.csv").write_text("\n".join(["Image Index,patient_id", *groups]))
    return folder


def test_observed_labels_train_and_true_ones_judge(
    tmp_path: Path, odir: Path, protocol: Protocol
) -> None:
    datasets = {}
    for method in ("fedavg", "clean"):
        run = protocol.run(method, 0, setting="odir-observed", seed=7)
        folder = data.place_options(run, {"odir": odir}, save_dir=tmp_path)[1]
        datasets[method] = load("csv", data_dir=Path(folder), labels_only=True)
    seen, bound = datasets["fedavg"], datasets["clean"]
    train = np.arange(160) < 80
    assert (seen.labels != seen.verified)[train].mean() == 0.25
    np.testing.assert_array_equal(bound.labels, seen.best_known)  # the same images, true labels
    np.testing.assert_array_equal(bound.labels[train], seen.verified[train])
    assert np.isnan(seen.verified[~train]).all()  # the test file is the true one
    scenario = build_scenario(seen, make_config(data_seed=7).part(ScenarioSettings), folder=None)
    judge = reference(seen, scenario, noise=False)
    assert judge.kind == "verified"
    table = client_table(scenario, seen, truth=judge)
    assert np.average(table["noise_cells"], weights=table["images"]) == pytest.approx(0.25, abs=0.1)


def test_the_observed_folder_serves_every_seed_and_needs_both_files(
    tmp_path: Path, odir: Path, protocol: Protocol
) -> None:
    runs = [protocol.run("fedavg", 0, setting="odir-observed", seed=seed) for seed in (7, 8)]
    places = [data.place_options(run, {"odir": odir}, save_dir=tmp_path) for run in runs]
    assert places[0] == places[1]
    (odir / "train_observed.csv").unlink()
    with pytest.raises(UserError, match=r"train_observed.csv: is absent; see data/README.md"):
        data.place_options(runs[0], {"odir": odir}, save_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def write_odir(folder: Path) -> Path:
    """Label files as ODIR's, without images: all are 0 in truth, and seen as 1 in training."""
    (folder / "images").mkdir(parents=True)
    classes = ("N", "D", "G", "C", "A", "H", "M", "O")
    names = [f"{n}_{side}.jpg" for n in range(40) for side in ("left", "right")]
    tests = [f"test_{name}" for name in names]
    for file, label, own in (("train_data", 0, names), ("train_observed", 1, names)):
        _write_labels(folder / f"{file}.csv", classes, own, label=label)
    _write_labels(folder / "test_data.csv", classes, tests, label=0)
    groups = ["Image Index,patient_id", *(f"{n},{n.partition('_')[0]}" for n in names)]
    (folder / "groups.csv").write_text("\n".join(groups))
    return folder


def _write_labels(path: Path, classes: Sequence[str], names: Sequence[str], *, label: int) -> None:
    lines = [f"Image Index,{','.join(classes)}"]
    lines += [f"{name}{f',{label}' * len(classes)}" for name in names]
    path.write_text("\n".join(lines))


def test_changed_labels_are_linked_and_stop_on_old_rows(tmp_path: Path, protocol: Protocol) -> None:
    """Rows of the labels of yesterday were taken for finished; links follow their files."""
    source = write_odir(tmp_path / "odir")
    run = protocol.run("fedavg", 0, setting="odir-observed", seed=7)

    def state() -> tuple[str, str]:
        made = data.place_options(run, {"odir": source}, save_dir=tmp_path)[1]
        return made, data.label_digests([run], {"odir": source})[run.identity]

    before = state()
    assert before == state()
    line = dict(zip(rows.IDENTITY, map(str, run.identity), strict=True)) | {"options": run.text}
    line |= dict.fromkeys((*rows.FACTS, *rows.VALIDATION), "1") | {"options": run.text}
    table = tmp_path / "rows.csv"
    rows.append_row(table, line | {rows.LABELS: before[1]})
    assert rows.missing_runs([run], table, {run.identity: before[1]}) == []
    observed = source / "train_observed.csv"
    observed.write_text(observed.read_text().replace("0_left.jpg,1", "0_left.jpg,0", 1))
    after = state()
    assert after[0] == before[0]
    assert after[1] != before[1]
    with pytest.raises(UserError, match="made with other labels"):
        rows.missing_runs([run], table, {run.identity: after[1]})
    table.unlink()
    rows.append_row(table, line)  # of a version that did not note them
    assert rows.missing_runs([run], table, {run.identity: after[1]}) == []
    assert rows.unverified([run], table, {run.identity: after[1]}) == 1


def test_settings_without_data_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv(data.PLACE, raising=False)
    monkeypatch.setattr(data, "default_folder", lambda name: tmp_path / "absent")
    write(tmp_path / "tuning.csv", tuning_rows({"fedavg": [0.2, 0.3]}))
    assert step("choose", tmp_path, "--methods", "fedavg") == 0
    assert step("run", tmp_path, "--methods", "fedavg", "--dry-run") == 0
    found = capsys.readouterr()
    assert "left out: isic-centres" in found.err
    assert " isic " not in found.out


# ---- numbers


def test_statistics_against_scipy() -> None:
    one, other = np.array([0.30, 0.32, 0.29, 0.35, 0.31]), np.array([0.28, 0.33, 0.25, 0.30, 0.29])
    found, expected = paired_difference(one, other), stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.mean, found.low, found.high, found.p],
        [np.mean(one - other), interval.low, interval.high, expected.pvalue],
        rtol=1e-10,
    )
    assert (found.wins, found.pairs) == (4, 5)
    assert np.isnan(paired_difference(one[:1], other[:1]).p)
    assert paired_difference(one, one).p == 1


def test_holm_and_ranks_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, np.nan]), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    ranks = average_ranks(np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.2]]))
    np.testing.assert_allclose(ranks, [2, 1.75, 2.25])


def test_the_shown_numbers_are_those_of_scipy() -> None:
    scores = {
        "fedavg": [0.30, 0.31, 0.29, 0.32, 0.30],
        "fednml": [0.33, 0.35, 0.31, 0.34, 0.31],
        "fedprox": [0.30, 0.30, 0.30, 0.30, 0.31],
        "clean": [0.50, 0.51, 0.52, 0.53, 0.50],
    }
    lines = [
        {"method": m, "setting": "flip", "seed": str(21 + k), "val_selected.mAP": str(value)}
        | {"last5.mAP": "0.1", "bound": str(m == "clean"), "rounds": "80", "commit": "abc"}
        | {"hardware": "one"}
        for m, own in scores.items()
        for k, value in enumerate(own)
    ]
    text = show(lines, methods=list(scores), settings=["flip"], selection="val_selected")
    table = [[c.strip() for c in x.split("|")[1:-1]] for x in text.splitlines() if x[:1] == "|"]
    by_name = {cells[0]: cells[1:] for cells in table if len(cells) == 7}
    ps = [stats.ttest_rel(scores[m], scores["fedavg"]).pvalue for m in ("fednml", "fedprox")]
    corrected = [min(1, 2 * min(ps)), min(1, max(2 * min(ps), max(ps)))]
    own = by_name["fednml"]
    interval = stats.ttest_rel(scores["fednml"], scores["fedavg"]).confidence_interval(0.95)
    spread = f"{np.mean(scores['fednml']):.3f} ± {np.std(scores['fednml'], ddof=1):.3f}"
    assert own[0] == spread
    assert own[1] == "+0.024"
    assert own[2] == f"{interval.low:+.3f} to {interval.high:+.3f}"
    assert own[3] == "5 of 5"
    assert own[4] == f"{corrected[0]:.3f}"
    assert by_name["fedprox"][4] == f"{corrected[1]:.3f}"
    assert by_name["clean (bound)"][4] == ""
    ranks = {cells[0]: float(cells[1]) for cells in table if len(cells) == 2 and cells[1][0] != "a"
             and "-" not in cells[0]}  # fmt: skip
    fair = np.array([scores[m] for m in ("fedavg", "fednml", "fedprox")]).T
    expected = stats.rankdata(-fair, axis=1).mean(axis=0)
    np.testing.assert_allclose([ranks[m] for m in ("fedavg", "fednml", "fedprox")], expected)
    assert "5 seeds (21, 22, 23, 24, 25)" in text
    assert "clean" not in text.partition("### Ranks")[2].partition("Test set")[0]


def test_seeds_of_the_tuning_are_shown_as_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, budget = tmp_path / "rows.csv", FILES / "rivals.yaml"
    protocol = read_protocol(FILES, budget)
    for number, seed in enumerate(protocol.tuning_seeds):
        for method, score in (("fedavg", 0.3), ("fedprox", 0.32 + number / 100)):
            run = protocol.run(method, 0, setting="paper-0.4-4", seed=seed)
            line = dict(zip(rows.IDENTITY, map(str, run.identity), strict=True))
            line |= dict.fromkeys((*rows.FACTS, *rows.VALIDATION), "1") | {"options": run.text}
            line |= {"bound": "False", "val_selected.mAP": str(score), "last5.mAP": str(score)}
            rows.append_row(table, line)
    seeds = list(map(str, protocol.tuning_seeds))
    show = ["show", "--rows", str(table), "--budget", str(budget)]
    assert compare.main([*show, "--seeds", *seeds]) == 0
    shown = capsys.readouterr().out
    assert "+0.030" in shown  # the mean difference of the three
    assert "a lead and no result" in shown
    assert compare.main(show) == 2  # the seeds of the tables have no row
    assert compare.main([*show, "--seeds", "7", "21"]) == 2
