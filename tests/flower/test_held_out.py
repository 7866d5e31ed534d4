"""Sites evaluate on images of their own: counts leave them, and add up to what they stand for."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import read_table, write_table

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from cut_sites import hospitals, model_of, pooled_hospitals, run_config, server_folder
from fake_grid import FakeGrid
from flwr.app import Array, Message
from sklearn.metrics import roc_auc_score

from src.flower.held_out import (
    SiteScores,
    checked_scores,
    combine_scores,
    count_scores,
    scores_from_arrays,
)
from src.flower.records import BadRecord, extras
from src.flower.server_app import run_federation
from utils_.metrics import multilabel_metrics
from utils_.rng import derive

SITES = ["south", "north", "east"]


def drawn(images: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, many of them tied, and labels, some of them unknown."""
    draw = derive(seed, "held out")
    truth = (draw.random((images, 3)) < [0.5, 0.2, 0.04]).astype(np.float32)
    probability = (np.round(draw.random((images, 3)) * 20) / 20).astype(np.float32)
    truth[draw.random(truth.shape) < 0.1] = np.nan
    return probability, truth


def told(probability: np.ndarray, truth: np.ndarray, *, fewest: int = 5) -> SiteScores:
    counts = count_scores(probability, truth, fewest=fewest)
    return checked_scores({f"test.{n}": a for n, a in counts.items()}, part="test", classes=3)


def pairs_won(probability: np.ndarray, truth: np.ndarray) -> float:
    high, low = probability[truth == 1, None], probability[None, truth == 0]
    return float((high > low).sum() + 0.5 * (high == low).sum())


def test_what_a_site_tells_is_counted_pair_by_pair() -> None:
    probability, truth = drawn(200)
    found = told(probability, truth)
    assert found.sites.tolist() == [1, 1, 1]
    for c in range(3):
        assert found.won[c] == pairs_won(probability[:, c], truth[:, c])
        known = ~np.isnan(truth[:, c])
        expected = roc_auc_score(truth[known, c], probability[known, c])
        assert found.auroc[c] == pytest.approx(expected, abs=1e-12)
    assert found.bins[0].sum() == (~np.isnan(truth)).sum()
    ece = multilabel_metrics(probability, truth).overall["ece"]
    assert found.overall()["ece"] == pytest.approx(ece, abs=1e-6)


def test_few_cases_are_not_told() -> None:
    probability, truth = drawn(60)
    rare = int((truth[:, 2] == 1).sum())
    assert rare < 5
    found = told(probability, truth)
    assert found.positives[2] == found.negatives[2] == found.won[2] == 0
    assert "macro_auroc" in found.overall()
    assert found.overall()["classes_evaluated"] == 2
    cells = found.bins[0]
    assert ((cells == 0) | (cells >= 5)).all()
    assert told(probability, truth, fewest=rare).positives[2] == rare
    mirrored = told(1 - probability, 1 - truth)  # few negatives point at patients, too
    assert mirrored.negatives[2] == 0


def test_pairs_across_sites_count_nowhere() -> None:
    each = [drawn(150, seed=seed) for seed in range(3)]
    together = combine_scores([told(*one) for one in each])
    won = sum(pairs_won(p[:, 0], t[:, 0]) for p, t in each)
    pairs = sum((t[:, 0] == 1).sum() * (t[:, 0] == 0).sum() for _, t in each)
    assert together.auroc[0] == won / pairs
    assert together.sites.tolist() == [3, 3, sum((t[:, 2] == 1).sum() >= 5 for _, t in each)]
    again = scores_from_arrays(together.to_arrays("a.test"), "a.test")
    assert again is not None
    assert again.as_json("abc") == together.as_json("abc")
    assert json.dumps(again.as_json("abc"))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("positives", np.array([1, 2]), "not one number a class"),
        ("negatives", np.array([1.0, 2, 3]), "not one number a class"),
        ("positives", np.array([-1, 2, 3]), "not one number a class"),
        ("won", np.array([np.nan, 0, 0]), "pairs of test do not fit"),
        ("won", np.array([1e9, 0, 0]), "pairs of test do not fit"),
        ("bins", np.zeros((3, 4)), "calibration of test is none"),
        ("bins", np.full((3, 15), np.nan), "calibration of test is none"),
        ("bins", np.stack([np.ones(15), np.full(15, 2.0), np.ones(15)]), "calibration of test"),
    ],
)
def test_what_no_site_can_tell(name: str, value: np.ndarray, problem: str) -> None:
    counts = count_scores(*drawn(200), fewest=5) | {name: value}
    with pytest.raises(BadRecord, match=problem):
        checked_scores({f"test.{n}": a for n, a in counts.items()}, part="test", classes=3)
    with pytest.raises(BadRecord, match=r"its evaluation lacks 'test\.won'"):
        checked_scores({"test.positives": value, "test.negatives": value}, part="test", classes=3)


# ---- a run


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pooled_hospitals(tmp_path_factory.mktemp("pooled"))


def nodes_of(pooled: Path, folder: Path, *, held_out: bool) -> dict[int, dict[str, Any]]:
    """North and east have test images of their own, the north also some to validate on."""
    nodes = hospitals(pooled, folder, SITES)
    files = {"north": ["val_data", "test_data"], "east": ["test_data"]} if held_out else {}
    for name, stems in files.items():
        there = read_table(folder / name / "train_data.csv")[0]
        for stem in stems:
            header, *rows = read_table(pooled / f"{stem}.csv")
            kept = [header.index(column) for column in there]
            for row in rows:
                shutil.copy(pooled / "images" / row[0], folder / name / "images")
            write_table(
                folder / name / f"{stem}.csv", [[row[c] for c in kept] for row in [header, *rows]]
            )
    return {node: told | {"fewest-cases": 2} for node, told in nodes.items()}


def one_run(pooled: Path, folder: Path, grid: FakeGrid, **settings: Any) -> dict[str, Any]:
    server = server_folder(pooled, folder / "server")
    settings = {"method": "fednml", "eval_every": 1} | settings
    run_federation(grid, run_config(server, folder / "save", **settings))
    (path,) = (folder / "save").glob("runs/*/result.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def rows(save: Path) -> list[dict[str, str]]:
    (path,) = save.glob("runs/*/metrics.csv")
    return [*csv.DictReader(path.open())]


def test_a_run_tells_how_well_it_does_at_the_sites(pooled: Path, tmp_path: Path) -> None:
    plain = FakeGrid(nodes_of(pooled, tmp_path / "plain", held_out=False))
    bare = one_run(pooled, tmp_path / "plain", plain)
    assert "at_sites" not in bare
    assert not [c for row in rows(tmp_path / "plain" / "save") for c in row if "sites_" in c]

    sent: list[dict[str, np.ndarray]] = []
    over: list[tuple[int, str]] = []
    grid = FakeGrid(nodes_of(pooled, tmp_path, held_out=True))

    def listen(node: int, reply: Message) -> Message:
        if grid.asked[-1][1] == "evaluate":
            sent.append(extras(reply.content))
        return reply

    grid.tamper, grid.farewells = listen, over
    result = one_run(pooled, tmp_path, grid)
    assert model_of(tmp_path / "save") == model_of(tmp_path / "plain" / "save")
    assert [kind for _, kind in grid.asked].count("evaluate") == 2 * 3
    found = result["at_sites"]["test"]
    # Both sites have the server's own test images, of which the north lacks the labels of class1.
    everywhere = result["per_class"]
    for name, own in found["per_class"].items():
        assert own["auroc"] == pytest.approx(everywhere[name]["auroc"], abs=1e-9), name
        assert own["sites"] == (1 if name == "class1" else 2)
    last = rows(tmp_path / "save")[-1]
    assert float(last["sites_test_macro_auroc"]) == pytest.approx(found["macro_auroc"])
    assert (float(last["sites_test_heard"]), float(last["sites_val_heard"])) == (2, 1)
    assert float(last["bytes_evaluation"]) > 0
    # What has left the sites is as long as there are classes and bins, however many images.
    sizes = {name.partition(".")[2]: array.shape for told in sent for name, array in told.items()}
    assert sizes == {"positives": (4,), "negatives": (4,), "won": (4,), "bins": (3, 15)}
    # The last message to each site says so, so that its worker may end.
    ended = [pair for pair in over if pair[0] in grid.nodes]
    assert sorted(ended) == [(48, "evaluate"), (49, "evaluate"), (50, "train")]


def test_an_evaluation_that_cannot_be_used_is_left_out(
    pooled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = FakeGrid(nodes_of(pooled, tmp_path, held_out=True))

    def spoil(node: int, reply: Message) -> Message | None:
        if grid.asked[-1][1] != "evaluate":
            return reply
        if node == 48:
            return None
        reply.content["extras"]["test.won"] = Array(np.full(4, 1e9))
        return reply

    grid.tamper = spoil
    result = one_run(pooled, tmp_path, grid, rounds=1, warmup_rounds=0, round_timeout=2)
    assert "at_sites" not in result
    assert re.search(
        r"client 1 \(north\) is not evaluated: its pairs of test do not fit", caplog.text
    )
    assert re.search(
        r"client 0 \(east\) is not evaluated: it has not answered within 2 s", caplog.text
    )
    assert float(rows(tmp_path / "save")[0]["rejected"]) == 0


def test_the_figures_outlast_an_interruption(pooled: Path, tmp_path: Path) -> None:
    whole = FakeGrid(nodes_of(pooled, tmp_path / "whole", held_out=True))
    expected = one_run(pooled, tmp_path / "whole", whole, rounds=2)["at_sites"]
    grid = FakeGrid(nodes_of(pooled, tmp_path, held_out=True))
    one_run(pooled, tmp_path, grid, rounds=2)
    (folder,) = (tmp_path / "save" / "runs").iterdir()
    for name in ("DONE", "result.json"):
        (folder / name).unlink()
    run_federation(grid, {"resume": str(folder)})
    assert json.loads((folder / "result.json").read_text())["at_sites"] == expected
