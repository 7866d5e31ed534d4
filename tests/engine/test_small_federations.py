"""Small and odd federations: a warning, or an answer that helps, and never a raw error."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    call_main,
    command,
    make_config,
    make_dataset,
    make_scenario,
    read_table,
    simulate,
    write_table,
)

from src.methods import method_class, method_names
from src.models import MODELS, FlatModel, build_module
from src.prospects import check_prospects
from utils_.datasets.base import TEST, TRAIN, ImageDataset
from utils_.scenario import Scenario


def lonely_scenario(dataset: ImageDataset) -> Scenario:
    """Client 0 holds one image, client 1 the others but one, which is client 2's and is blank."""
    scenario = make_scenario(dataset)
    client = np.where(dataset.part == TRAIN, 1, -1).astype(np.int32)
    client[0], client[1] = 0, 2
    annotated = scenario.annotated.copy()
    annotated[1] = False
    return replace(scenario, client=client, annotated=annotated)


def warned(caplog: pytest.LogCaptureFixture, *arguments: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fednml"):
        check_prospects(*arguments)
    return [record.getMessage() for record in caplog.records]


# ---- a site with one image


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_trains_on_a_batch_of_one(name: str) -> None:
    size = 32  # where the last maps of all but the small model have one pixel
    model = FlatModel(build_module(name, classes=2, weights="none", seed=1))
    model.train()
    model.forward(torch.randn(1, 3, size, size)).sum().backward()
    assert model.gradient.isfinite().all() and model.gradient.abs().sum() > 0
    assert all(layer.training for layer in model.module.modules())
    assert not any(
        layer._forward_pre_hooks for layer in model.module.modules() if layer is not model.head
    )


def test_layers_that_see_more_than_one_value_are_left_as_they_are() -> None:
    """The small model trained on one image before, and keeps its bits."""
    model = FlatModel(build_module("small", classes=2, weights="none", seed=1))
    image = torch.randn(1, 3, 32, 32)
    model.train()
    plain = model.module(image)
    statistics = model.buffers.clone()
    model = FlatModel(build_module("small", classes=2, weights="none", seed=1))
    model.train()
    assert torch.equal(model.forward(image), plain)
    assert torch.equal(model.buffers, statistics)


def test_a_lone_value_is_normalised_by_what_was_seen_before() -> None:
    model = FlatModel(build_module("resnet18", classes=2, weights="none", seed=1))
    last = model.module.layer4[1].bn2  # sees one pixel at 32 x 32
    last.running_mean.fill_(0.5)
    before = last.running_var.clone()
    model.train()
    model.forward(torch.randn(1, 3, 32, 32))
    assert (last.running_mean == 0.5).all() and torch.equal(last.running_var, before)
    model.forward(torch.randn(2, 3, 32, 32))
    assert not (last.running_mean == 0.5).any()  # a larger batch moves it again


@pytest.mark.parametrize("method", method_names())
def test_every_method_trains_with_lonely_and_silent_sites(method: str) -> None:
    dataset = make_dataset()
    scenario = lonely_scenario(dataset)
    trace = simulate(make_config(method, rounds=4), dataset, scenario)
    assert trace.vector.isfinite().all()
    assert all(np.isfinite(row["train_loss"]) for row in trace.simulation.history)
    assert not any(trace.simulation.server.rejected)


def test_lonely_and_silent_sites_are_named(caplog) -> None:
    dataset = make_dataset()
    texts = warned(caplog, make_config("fedavg"), dataset, lonely_scenario(dataset))
    assert "a single training image at client 0, 2: " in texts[0]
    assert "no annotated cell at client 2: " in texts[1]
    assert "client" not in "".join(
        warned(caplog, make_config("fedavg"), dataset, make_scenario(dataset))
    )


# ---- the first phase


FIRST = ("cbafed", "fedcorr", "fedelc", "fedmlp", "fednml", "fednoro", "rofl", "rscfed")


def test_which_methods_have_a_first_phase() -> None:
    assert tuple(name for name in method_names() if method_class(name).first_phase) == FIRST


@pytest.mark.parametrize("method", FIRST)
@pytest.mark.parametrize("warmup", [2, 50])
def test_a_warm_up_that_never_ends_is_named(method: str, warmup: int, caplog) -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    config = make_config(method, rounds=2, warmup_rounds=warmup)
    text = f"--warmup-rounds {warmup}: what {method} does after its first phase never starts in 2"
    told = [line for line in warned(caplog, config, dataset, scenario) if line.startswith(text)]
    assert len(told) == 1
    assert told[0].endswith(f"give --rounds {warmup + 1} or more, or --warmup-rounds 1 or fewer")
    for cure in (
        {"rounds": warmup + 1, "warmup_rounds": warmup},
        {"rounds": 2, "warmup_rounds": 1},
    ):
        cured = make_config(method, **cure)
        assert not cured.never_starts
        assert "never starts" not in "".join(warned(caplog, cured, dataset, scenario))


def test_methods_without_a_first_phase_have_nothing_to_warn_of() -> None:
    assert not make_config("fedavg", rounds=2, warmup_rounds=10).never_starts


@pytest.mark.parametrize("warmup", [1, 2])
def test_the_result_is_marked(csv_data: Path, tmp_path: Path, capsys, warmup: int) -> None:
    settings = {"method": "fednml", "rounds": 2, "warmup_rounds": warmup, "name": "run"}
    assert call_main(command(csv_data, tmp_path, **settings)) == 0
    result = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())
    assert result["warmup_only"] == (warmup == 2)
    assert ("WARM-UP ONLY" in capsys.readouterr().out) == (warmup == 2)


# ---- small parts, and more sites than images


def test_small_parts_are_named_with_advice_that_fits(caplog) -> None:
    dataset = make_dataset()
    texts = warned(caplog, make_config("fedavg"), dataset, make_scenario(dataset))
    assert "val: 8 images tell little, however high a score; add images to the val part" in texts
    assert "test: 12 images tell little, however high a score; add images to the test part" in texts
    loose = replace(dataset, part=np.where(dataset.part == TEST, 3, dataset.part).astype(np.uint8))
    texts = warned(caplog, make_config("fedavg"), loose, make_scenario(dataset))
    assert any(text.endswith("however high a score; raise --test-share") for text in texts)


@pytest.fixture
def files(csv_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(csv_data, tmp_path / "data"))


def split_without_test(files: Path) -> dict[str, Any]:
    names = [
        row[0] for part in ("train", "test") for row in read_table(files / f"{part}_data.csv")[1:]
    ]
    rows = [[name, "train" if n else "val", n % 3 if n else ""] for n, name in enumerate(names)]
    write_table(files / "split.csv", [["image", "split", "client"], *rows])
    return {"split_file": files / "split.csv"}


def give_the_split_a_test_image(files: Path) -> dict[str, Any]:
    rows = read_table(files / "split.csv")
    rows[-1][1:] = ["test", ""]
    write_table(files / "split.csv", rows)
    return {}


def nothing(files: Path) -> dict[str, Any]:
    return {}


Change = Callable[[Path], dict[str, Any]]
ANSWERS: dict[str, tuple[Change, str, Change]] = {
    "more sites than images": (
        lambda files: {"clients": 60},
        "--clients 60 is more than the 41 images left for training; use --clients 41 or fewer",
        lambda files: {"clients": 41},
    ),
    "no test image": (
        split_without_test,
        "no image is in the test part; write test for some images in the column 'split' of",
        give_the_split_a_test_image,
    ),
    "all attack": (
        lambda files: {"attack": "sign_flip", "attackers": 3},
        "--attackers 3: then all 3 clients attack and nothing honest is left; give at most 2",
        lambda files: {"attackers": 2},
    ),
    "images too small for the backbone": (
        lambda files: {"model": "densenet121", "image_size": 16},
        "--image-size 16: densenet121 shrinks such images to nothing; use --image-size 29 or more",
        lambda files: {"image_size": 29},
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_whose_advice_works(files: Path, tmp_path: Path, capsys, case: str) -> None:
    spoil, message, cure = ANSWERS[case]
    settings = {"method": "fedavg", "rounds": 1, "name": "run"} | spoil(files)
    assert call_main(command(files, tmp_path / "save", **settings)) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and message in err[0]
    assert not (tmp_path / "save").exists()
    settings |= cure(files)
    assert call_main([*command(files, tmp_path / "save", **settings), "--dry-run"]) == 0


def test_the_smallest_image_for_densenet_is_the_smallest() -> None:
    model = FlatModel(build_module("densenet121", classes=2, weights="none", seed=1))
    model.forward(torch.zeros(2, 3, 29, 29))
    with pytest.raises(RuntimeError, match="too small"):
        model.forward(torch.zeros(2, 3, 28, 28))
