"""One run from settings to a finished folder: start, resume, or only show what would be done."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from src.command_line import ROOT, read_yaml
from src.config import Config, resolve
from src.held_log import held_log
from src.interruption import Interrupted, StopRequest
from src.methods import method_class
from src.models import FlatModel
from src.prospects import check_prospects
from src.results import final_table
from src.simulation import Simulation, build_model
from utils_ import datasets
from utils_.datasets.base import ImageDataset
from utils_.datasets.listing import DataOptions
from utils_.environment import describe, processor_count
from utils_.errors import UserError
from utils_.files import atomic_path, write_json, write_text
from utils_.runlog import RunLog, parameter_table
from utils_.scenario import (
    Scenario,
    ScenarioSettings,
    assignment_table,
    build_scenario,
    client_table,
)
from utils_.truth import reference

# On resume these may change, because no result depends on them.
MAY_CHANGE = {"device", "workers", "checkpoint_every", "cache_dir"}
logger = logging.getLogger("fednml")


class RunFailed(Exception):
    """The run broke off; what was saved stays resumable."""


def show(settings: dict[str, Any]) -> str:
    """Resolved settings, client table and estimated bytes; trains and writes nothing."""
    config = resolve(settings)
    with held_log():
        dataset = load_dataset(config, quiet=True, labels_only=True)
        model = build_model(config, classes=len(dataset.classes))
        scenario = _build_scenario(config, dataset, folder=None)
        check_prospects(config, dataset, scenario)
    facts = {
        "run folder": str(_run_folder(config)),
        "images": f"{len(dataset.files):,}",
        "model parameters": f"{model.parameter_count:,}",
    }
    if config.noise and config.noise_type == "instance":
        facts["instance noise"] = "shown with numbers in place of the pixels, which are not read"
    sizes = _estimated_bytes(config, dataset, model)
    facts |= {title: f"{count / 1e6:,.1f} MB" for title, count in sizes.items()}
    lines = [f"{title:<20}{text}" for title, text in facts.items()]
    truth = reference(dataset, scenario, noise=bool(config.noise))
    table = client_table(scenario, dataset, truth=truth).to_string(index=False)
    return "\n".join([config.to_yaml(), table, "", *lines])


def start(settings: dict[str, Any], *, quiet: bool) -> str:
    """Start a new run; return the final table.

    Raises:
        UserError: before anything is written.
        RunFailed, Interrupted: later; the run can be resumed.
    """
    config = resolve(settings)
    folder = _run_folder(config)
    _check_new(folder)
    with held_log():
        simulation, scenario = _prepare(config, quiet=quiet)
        _create_folder(folder, simulation, scenario)
    return _run(simulation, folder, quiet=quiet)


def resume(folder: Path, settings: dict[str, Any], *, quiet: bool) -> str:
    """Continue the run in ``folder`` to the same bits; raises as :func:`start`."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {folder}: no run here (config.yaml is absent)")
    fixed = sorted(set(settings) - MAY_CHANGE)
    if fixed:
        name = fixed[0].replace("_", "-")
        raise UserError(f"--{name}: a resumed run keeps its settings; leave it out or start anew")
    config = resolve(read_yaml(folder / "config.yaml") | settings)
    if (folder / "DONE").exists():
        return f"{_read_result(folder)}\n\nalready finished: {folder}"
    with held_log():
        simulation, _ = _prepare(config, quiet=quiet, begun=folder)
        simulation.resume(folder)
    for half_written in folder.rglob(".*.tmp"):  # by a process that was killed
        half_written.unlink()
    return _run(simulation, folder, quiet=quiet)


def _prepare(
    config: Config, *, quiet: bool, begun: Path | None = None
) -> tuple[Simulation, Scenario]:
    """Do everything that bad input can break, before the run's folder is made.

    ``begun`` is the folder of a run to go on with, which must have had the same data.
    """
    model = _rehearse(config)
    dataset = load_dataset(config, quiet=quiet)
    if begun:
        unsaved = _build_scenario(config, dataset, folder=None)
        _check_same(begun, _identity(config, dataset, unsaved))
    scenario = _build_scenario(config, dataset, folder=Path(config.save_dir) / "splits")
    return Simulation(config, dataset, scenario, model), scenario


def _rehearse(config: Config) -> FlatModel:
    """Check settings, label files, weights and disk before an image is decoded; write nothing."""
    save_dir = Path(config.save_dir)
    for folder in (save_dir / "splits", save_dir / "runs"):
        _check_writable(folder)
    dataset = load_dataset(config, quiet=True, labels_only=True)
    model = build_model(config, classes=len(dataset.classes))
    needed = _estimated_bytes(config, dataset, model)["disk space"]
    free = shutil.disk_usage(_existing_parent(save_dir)).free
    if free < needed:
        raise UserError(
            f"--save-dir {save_dir}: {free / 1e6:.1f} MB free, the run needs about "
            f"{needed / 1e6:.1f} MB; free some space or choose another folder"
        )
    scenario = _build_scenario(config, dataset, folder=None)
    check_prospects(config, dataset, scenario)
    return model


def _identity(config: Config, dataset: ImageDataset, scenario: Scenario) -> str:
    """Stands for all that a run's result depends on: settings, images, labels and their flaws."""
    parts = [config.canonical_hash(), scenario.key]
    if dataset.verified is not None and dataset.name != "synthetic":  # no scenario reads those
        parts.append(hashlib.sha256(dataset.verified.tobytes()).hexdigest()[:10])
    return "-".join(parts)


def _check_same(folder: Path, identity: str) -> None:
    path = folder / "env.json"
    try:
        began_with = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: absent or damaged, cannot resume; start anew") from error
    if began_with != identity:
        raise UserError(
            f"--resume {folder}: the data or config.yaml are not those the run began with; "
            "restore them or start anew"
        )


def _read_result(folder: Path) -> str:
    path = folder / "result.json"
    try:
        return final_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: absent or damaged; choose another --name to run anew") from error


def load_dataset(config: Config, *, quiet: bool, labels_only: bool = False) -> ImageDataset:
    """The data set of a run; see :func:`utils_.datasets.load` for what is raised."""
    places = {name: getattr(config, name) for name in ("data_dir", "cache_dir")}
    options = config.part(
        DataOptions,
        **{name: Path(place) if place else None for name, place in places.items()},
        workers=processor_count(),
        quiet=quiet,
        labels_only=labels_only,
    )
    return datasets.load(config.dataset, options)


def _build_scenario(config: Config, dataset: ImageDataset, *, folder: Path | None) -> Scenario:
    return build_scenario(dataset, config.part(ScenarioSettings), folder=folder)


def _run_folder(config: Config) -> Path:
    return Path(config.save_dir) / "runs" / config.run_name()


def _check_new(folder: Path) -> None:
    if (folder / "DONE").exists():
        raise UserError(f"{folder}: this run is finished; choose another --name to run it again")
    if folder.exists():
        raise UserError(f"{folder}: exists; go on with --resume {folder} or choose another --name")


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _check_writable(folder: Path) -> None:
    parent = _existing_parent(folder)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"--save-dir: cannot write {folder} ({error.strerror}); choose another folder"
        ) from error


def _estimated_bytes(config: Config, dataset: ImageDataset, model: FlatModel) -> dict[str, int]:
    """Bytes over the wire for models (extras come on top), and on disk."""
    vector = model.vector.numel() * model.vector.element_size()
    selected = config.plan(len(dataset.classes)).clients_per_round
    labels = dataset.labels.size * 9  # target, weight and status of every cell
    wire = vector * selected * config.rounds * method_class(config.method).exchange
    # Two checkpoints stand side by side for a moment, each with two vectors; then the two model
    # files, the split, and about 20 kB of logs a round.
    disk = 2 * (2 * vector + labels) + 2 * vector + labels + config.rounds * 20_000 + 2_000_000
    return {"sent to clients": wire, "sent to the server": wire, "disk space": disk}


def _create_folder(folder: Path, simulation: Simulation, scenario: Scenario) -> None:
    """Fill the run's folder beside its place, then rename it."""
    config, dataset = simulation.config, simulation.dataset
    settings = {
        "threads_per_process": torch.get_num_threads(),
        "workers": simulation.workers,
        "device": str(simulation.model.device),
        "command": sys.argv,
        "identity": _identity(config, dataset, scenario),
    }
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        write_text(draft / "config.yaml", config.to_yaml())
        write_json(draft / "env.json", describe(ROOT) | settings)
        truth = reference(dataset, scenario, noise=bool(config.noise))
        clients = client_table(scenario, dataset, truth=truth)
        write_text(draft / "clients.csv", clients.to_csv(index=False))
        table = assignment_table(scenario, dataset)
        write_text(draft / "assignments.csv", table.to_csv(index=False))
        draft.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); see --save-dir and --name"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run(simulation: Simulation, folder: Path, *, quiet: bool) -> str:
    """Train and finish the folder; say how to go on where that fails."""
    rounds, stop = simulation.config.rounds, StopRequest()
    if simulation.method.hidden_labels:
        logger.warning("LEAKY: this run hands hidden labels to its sites, to measure the effect")
    bar = tqdm(total=rounds, initial=simulation.server.round, unit="round", disable=quiet)
    settings = asdict(simulation.config) | {"param": asdict(simulation.method.params)}
    try:
        with bar, RunLog(folder, history=simulation.history) as log:
            log.text("parameters", parameter_table(settings))
            result = simulation.run(folder, log, stop=stop, progress=bar)
            _finish(simulation, folder, result)
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(f"interrupted; go on with --resume {folder}") from error
    except Exception as error:
        _keep_traceback(folder)
        raise RunFailed(f"{type(error).__name__}: {error}; --resume {folder} goes on") from error
    return f"{final_table(result)}\n\nrun folder: {folder}"


def _finish(simulation: Simulation, folder: Path, result: dict[str, Any]) -> None:
    for name, vector in (("model", simulation.scored), ("best", simulation.best)):
        one = vector.view(-1, vector.shape[-1]).mean(dim=0)  # of the sites' own models: their mean
        with atomic_path(folder / f"{name}.safetensors") as path:
            save_file(simulation.model.unpack(one), path)
    write_json(folder / "result.json", result)
    write_text(folder / "DONE", "")


def _keep_traceback(folder: Path) -> None:
    try:
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError as error:  # a full disk is often what failed in the first place
        logger.warning("cannot write error.txt: %s", error.strerror)
