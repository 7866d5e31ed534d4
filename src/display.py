"""What TensorBoard shows of a run beside the columns of ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config import OPTIONS, Config, resolve
from src.results import final_table
from utils_.runlog import settings_table

if TYPE_CHECKING:
    from src.simulation import Simulation
    from utils_.runlog import RunLog

DOUBTING_SITES = 20  # how many have a histogram

# Columns of the HParams tab, the same in every run, with these types. Numbers of rounds and the
# like are text: TensorBoard writes every number with four decimals.
COLUMNS: dict[str, type[str] | type[float]] = {
    "dataset": str,
    "method": str,
    "noise": float,
    "noise_type": str,
    "missing": float,
    "clients": str,
    "split": str,
    "model": str,
    "lr": float,
    "rounds": str,
    "seed": str,
}
OTHER = "other settings"
SHOWN_FIRST = ("method", "noise", "missing", "seed", OTHER)
FINAL = {
    "last5": ("mAP", "macro_auroc", "macro_f1_tuned", "balanced_accuracy_tuned"),
    "val_selected": ("mAP",),
    "labels": ("noise_auroc",),
}
METRICS = (
    *(f"result/{rule}_{name}" for rule, names in FINAL.items() for name in names),
    "val/mAP",
    "test/mAP",
)


def show_settings(log: RunLog, simulation: Simulation) -> None:
    """The page of settings, and the run's row in the HParams tab."""
    config, params = simulation.config, simulation.method.params
    settings, defaults = asdict(config), usual_settings(config)
    row = {name: kind(settings[name]) for name, kind in COLUMNS.items()}
    log.settings(row | {OTHER: other_settings(config)}, METRICS, first=SHOWN_FIRST)
    settings["param"], defaults["param"] = asdict(params), asdict(type(params)())
    log.text("settings", settings_table(settings, defaults))


def usual_settings(config: Config) -> dict[str, Any]:
    """The defaults on this data set; of what changes no result, the values as they are."""
    own = asdict(config)
    usual = asdict(resolve({name: own[name] for name in ("dataset", "data_dir")}))
    usual["data_dir"] = None
    return {name: usual[name] if o.metadata["result"] else own[name] for name, o in OPTIONS.items()}


def other_settings(config: Config) -> str:
    """What tells the run apart: settings off their defaults that have no column; - for none."""
    values, usual = asdict(config), usual_settings(config)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in COLUMNS and value != usual[name]:
            found |= value if isinstance(value, dict) else {name: value}
    return " ".join(f"{name}={value}" for name, value in found.items()) or "-"


def show_classes(log: RunLog, ap: np.ndarray, names: Sequence[str], *, step: int) -> None:
    """Average precision of each class on the test part, where it has one; (C,) and C names."""
    log.scalars("test_ap", dict(zip(names, ap.tolist(), strict=True)), step=step)


def show_doubt(log: RunLog, simulation: Simulation, *, step: int) -> None:
    """How suspect the method finds the images of each of the first sites."""
    for client in simulation.clients[:DOUBTING_SITES]:
        scores = client.memory.get("noise_score")
        if scores is not None:
            log.doubt(f"sites/{simulation.names.tag(client.index)}/doubt", scores, step=step)


def show_labels(log: RunLog, simulation: Simulation, client: int, *, step: int) -> None:
    """What became of a few labels of one site, and which images are suspects."""
    evaluator, clients = simulation.evaluator, simulation.clients
    tag = f"labels/client {simulation.names.tag(client)}"
    log.figure(tag, partial(evaluator.label_picture, clients[client]), step=step)
    log.figure("labels/suspects", partial(evaluator.suspects_picture, clients), step=step)


def show_result(log: RunLog, result: Mapping[str, Any]) -> None:
    """The final table with what the run cost, and the last columns of the HParams tab."""
    end = result["rounds"]  # behind the last round's, so that a resume from there hides it
    up, down = (result[f"bytes_{way}"] / 1e6 for way in ("up", "down"))
    cost = (
        f"{result['seconds']:,.0f} s in all, {result['seconds_per_round']:.2f} s a round; models "
        f"and the like: {up:,.1f} MB up, {down:,.1f} MB down"
    )
    log.text("result", f"```\n{final_table(dict(result))}\n{cost}\n```", step=end)
    found = {
        f"{rule}_{name}": (result[rule] or {}).get(name)
        for rule, names in FINAL.items()
        for name in names
    }
    known = {name: float(value) for name, value in found.items() if value is not None}
    log.finished(known, step=end)
