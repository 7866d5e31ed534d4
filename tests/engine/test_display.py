"""What TensorBoard shows of a whole run: no number twice, the same columns for every method."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny import NoLog, make_config, make_dataset, make_scenario, make_simulation
from tqdm import tqdm

from src import display
from src import simulation as engine
from src.config import resolve
from src.display import COLUMNS, METRICS, OTHER, other_settings, show_result, show_settings
from src.interruption import Interrupted
from src.simulation import Simulation
from utils_.datasets import DATASETS
from utils_.runlog import RunLog
from utils_.scenario import Scenario

CLIENTS = 3
pytestmark = pytest.mark.pictures


def simulation_of(method: str, **settings: Any) -> Simulation:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes", noise=0.3)
    return make_simulation(make_config(method, rounds=4, **settings), dataset, scenario)


def run_on(simulation: Simulation, folder: Path, *, stop: Any = lambda: False) -> None:
    """As the job does it, but for the number of pictures, which are slow."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tqdm(disable=True) as bar,
        RunLog(folder, history=simulation.history) as log,
    ):
        patch.setattr(engine, "PICTURES", 1)
        show_settings(log, simulation)
        show_result(log, simulation.run(folder, log, stop=stop, progress=bar))


def points(folder: Path) -> Counter:
    """How often each (tag, step) is in the event files, none of them dropped."""
    found: Counter = Counter()
    for path in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


def tags(folder: Path) -> set[str]:
    return {tag for tag, _ in points(folder)}


def columns(folder: Path) -> dict[str, str]:
    """The run's row of the HParams tab: the kind of each value."""
    (path,) = folder.glob("events*")
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                row = data.session_start_info.hparams
                return {name: row[name].WhichOneof("kind") for name in row}
    raise AssertionError("no row")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for method, more in {"fednml": {}, "fedavg": {"lr": 0.1, "param": {}}}.items():
        found[method] = tmp_path_factory.mktemp(method)
        run_on(simulation_of(method, **more), found[method])
    return found


@pytest.mark.parametrize("method", ["fednml", "fedavg"])
def test_nothing_is_written_twice(folders: dict[str, Path], method: str) -> None:
    assert [point for point, times in points(folders[method]).items() if times > 1] == []


def test_every_method_has_the_same_columns_of_the_same_kinds(folders: dict[str, Path]) -> None:
    kinds = {str: "string_value", float: "number_value"}
    expected = {name: kinds[kind] for name, kind in COLUMNS.items()} | {OTHER: "string_value"}
    assert columns(folders["fednml"]) == columns(folders["fedavg"]) == expected
    assert len(COLUMNS) + 1 + len(METRICS) <= 20
    assert set(METRICS) <= tags(folders["fednml"])
    assert set(METRICS) - tags(folders["fedavg"]) == {"result/labels_noise_auroc"}


def test_what_the_reader_finds(folders: dict[str, Path]) -> None:
    shown = tags(folders["fednml"])
    assert {f"test_ap/class{c}" for c in range(4)} <= shown
    assert {f"sites/{k}/doubt" for k in range(CLIENTS)} <= shown
    assert {"labels/suspects", "labels/client 0", "settings/text_summary"} <= shown
    assert not [tag for tag in shown if "bytes" in tag or "classes_" in tag]
    assert not {"labels/suspects", "sites/0/doubt"} & tags(folders["fedavg"])


def test_a_resumed_run_shows_each_point_once(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Two steps of what is written when a log is opened, and of nothing else."""
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        run_on(simulation_of("fednml"), tmp_path, stop=lambda: next(asked))
    again = simulation_of("fednml")
    again.resume(tmp_path)
    run_on(again, tmp_path)
    found, whole = points(tmp_path), points(folders["fednml"])
    assert max(found.values()) == 1
    opened = {"_hparams_/experiment", "_hparams_/session_start_info", "settings/text_summary"}
    assert set(found) - set(whole) == {(tag, 2) for tag in opened}
    assert set(whole) <= set(found)


def train(simulation: Simulation, log: Any) -> Simulation:
    simulation.save = lambda folder: None  # type: ignore[method-assign]
    with tqdm(disable=True) as bar:
        simulation.run(Path(), log, stop=lambda: False, progress=bar)
    return simulation


def test_the_suspects_are_those_that_the_labels_columns_count() -> None:
    simulation = train(simulation_of("fednml"), NoLog())
    figure = simulation.evaluator.suspects_picture(simulation.clients)
    texts = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    caught, missed, blamed, spared = map(int, texts)
    row = simulation.history[-1]
    assert row["labels_flagged_images"] == caught + blamed
    if caught + blamed:
        assert row["labels_noise_precision"] == caught / (caught + blamed)
    assert row["labels_noise_recall"] == caught / (caught + missed)
    assert caught + missed + blamed + spared == sum(len(c) for c in simulation.clients)


def test_without_truth_nobody_is_called_wrong() -> None:
    dataset = replace(make_dataset(), verified=None, name="csv")
    simulation = make_simulation(make_config("fednml"), dataset, make_scenario(dataset))
    for client in simulation.clients:
        client.memory["noise_score"] = np.full(len(client), 0.9)
    assert simulation.evaluator.suspects_picture(simulation.clients) is None


def test_classes_that_no_site_annotates_are_marked() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset)
    seen = scenario.annotated & (np.arange(4) != 2)
    scenario = Scenario(scenario.part, scenario.client, scenario.noisy, seen, "tiny")
    simulation = make_simulation(make_config("fedavg"), dataset, scenario)
    names = ["class0", "class1", "class2 (not trained)", "class3"]
    assert simulation.class_names == names


def test_many_sites_have_no_more_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    class Log(NoLog):
        def doubt(self, tag: str, scores: Any, *, step: int) -> None:
            written.add(tag)

    written: set[str] = set()
    monkeypatch.setattr(display, "DOUBTING_SITES", 2)
    train(simulation_of("fednml"), Log())
    assert written == {"sites/0/doubt", "sites/1/doubt"}


def test_other_settings_tell_runs_apart() -> None:
    assert other_settings(resolve({})) == "-"
    assert other_settings(resolve({"noise": 0.2, "lr": 0.1, "save_dir": "x"})) == "-"
    given = {"param": {"mixup": 0.5}, "local_epochs": 1, "aggregator": "median", "name": "x"}
    assert other_settings(resolve(given)) == "mixup=0.5 local_epochs=1 aggregator=median"
    found = other_settings(resolve({"dataset": "csv", "data_dir": "my_data"}))
    assert found == "data_dir=my_data"
    for name in DATASETS:
        assert other_settings(resolve({"dataset": name, "data_dir": "d"})) == "data_dir=d"
