"""One run from settings to a finished folder: start, resume, or only show what would be done."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from src.command_line import ROOT
from src.config import OPTIONS, Config, resolve
from src.display import show_result, show_settings
from src.held_log import held_log
from src.interruption import Interrupted, StopRequest
from src.methods import method_class
from src.model_facts import save_models
from src.models import FlatModel
from src.option import flag
from src.prospects import check_prospects
from src.results import final_table
from src.run_folder import (
    IMAGES,
    SETTINGS,
    alone_in,
    answer,
    check_writable,
    existing_parent,
    file_inputs,
    finished_table,
    made_from,
    refuse_changed,
    run_folder,
    settings_of,
)
from src.server import NoReportLeft
from src.simulation import Simulation, build_model
from utils_ import datasets
from utils_.datasets.base import TEST, VAL, ImageDataset
from utils_.datasets.label_files.groups import GROUPED
from utils_.datasets.listing import DataOptions
from utils_.environment import describe, processor_count
from utils_.errors import Diverged, UserError, as_known, some
from utils_.files import atomic_folder, write_json, write_text
from utils_.predictions import FILE as PREDICTIONS
from utils_.predictions import write_predictions
from utils_.reporting.model_card import CARD, model_card
from utils_.runlog import RunLog
from utils_.scenario import Scenario, ScenarioSettings, build_scenario, client_names, training_sites
from utils_.scenario_tables import assignment_table, class_table, client_table
from utils_.spreadsheet import harmless_csv
from utils_.truth import reference

# On resume these may change, because no result depends on them.
MAY_CHANGE = {"device", "workers", "checkpoint_every", "cache_dir"}
MOST_CLIENTS = OPTIONS["clients"].metadata["high"]
logger = logging.getLogger("fednml")


class RunFailed(Exception):
    """The run broke off; what was saved stays resumable."""


class Engine:
    """What a run is built from; src/flower builds it of sites that are elsewhere."""

    def load(self, config: Config, *, quiet: bool, labels_only: bool = False) -> ImageDataset:
        """The data set."""
        return load_dataset(config, quiet=quiet, labels_only=labels_only)

    def deal(self, config: Config, dataset: ImageDataset, *, folder: Path | None) -> Scenario:
        """Who holds which images, with which labels; kept in ``folder`` if there is one."""
        return build_scenario(dataset, config.part(ScenarioSettings), folder=folder)

    def build(
        self, config: Config, dataset: ImageDataset, scenario: Scenario, model: FlatModel
    ) -> Simulation:
        """What trains."""
        return Simulation(config, dataset, scenario, model)

    def begun(self, folder: Path) -> None:
        """Called when the folder of a new run has been made."""

    def resumed(self, folder: Path) -> None:
        """Called before anything is read for a run that goes on."""


IN_PROCESS = Engine()


def show(settings: dict[str, Any]) -> str:
    """Resolved settings, client table and estimated bytes; trains and writes nothing."""
    with held_log():
        config = settle(settings)
        dataset = load_dataset(config, quiet=True, labels_only=True)
        # A model has as many parameters with weights as without, and those of ImageNet would be
        # downloaded; of a file it must be known whether it fits.
        bare = replace(config, weights=config.weights_file or "none")
        model = _build_model(bare, dataset)
        scenario = IN_PROCESS.deal(config, dataset, folder=None)
        check_prospects(config, dataset, scenario)
    facts = {
        "run folder": str(run_folder(config, file_inputs(config, dataset))),
        "images": f"{len(dataset.files):,}",
        "model parameters": f"{model.parameter_count:,}",
    }
    if config.noise and config.noise_type == "instance":
        facts["instance noise"] = "shown with numbers in place of the pixels, which are not read"
    sizes = _estimated_bytes(config, dataset, model)
    facts |= {title: f"{count / 1e6:,.1f} MB" for title, count in sizes.items()}
    lines = [f"{title:<20}{text}" for title, text in facts.items()]
    names = client_names(scenario, dataset, split=config.split)
    truth = reference(dataset, scenario, noise=bool(config.noise))
    table = client_table(scenario, dataset, names, truth=truth).to_string(index=False)
    return "\n".join([config.to_yaml(), table, "", *lines])


def start(settings: dict[str, Any], *, quiet: bool, engine: Engine = IN_PROCESS) -> str:
    """Start a new run; return the final table.

    Raises:
        UserError: before anything is written.
        RunFailed, Interrupted: later; the run can be resumed.
    """
    with held_log():
        config = settle(settings)
        listed = engine.load(config, quiet=True, labels_only=True)
        inputs = file_inputs(config, listed)
        folder = run_folder(config, inputs)
        if folder.exists():
            return answer(folder, config, present_inputs(config, inputs, quiet=quiet))
        simulation, scenario = _prepare(config, listed, quiet=quiet, engine=engine)
        _create_folder(folder, simulation, scenario, inputs=inputs)
        engine.begun(folder)
    with alone_in(folder):
        return _run(simulation, folder, quiet=quiet)


def present_inputs(config: Config, inputs: Mapping[str, str], *, quiet: bool) -> dict[str, str]:
    """What a run would be made from now; ``synthetic`` has no images but those of its settings."""
    present = {SETTINGS: config.canonical_hash(), **inputs}
    if config.dataset != "synthetic":
        present[IMAGES] = load_dataset(config, quiet=quiet).image_key
    return present


def settle(settings: dict[str, Any]) -> Config:
    """Resolve the settings; where ``groups.csv`` names sites, each is a client unless told else.

    Raises:
        UserError: as :func:`src.config.resolve`; or a number of clients that is not that of the
            sites, with no word on how to split.
    """
    if not _sites_may_decide(settings):
        return resolve(settings)
    config = resolve({"clients": MOST_CLIENTS} | settings)  # those checks that need no data
    dataset = load_dataset(config, quiet=True, labels_only=True)
    sites = training_sites(dataset, config.part(ScenarioSettings))
    if len(sites) < 2:
        return resolve(settings)
    if "clients" in settings and config.clients != len(sites):
        raise UserError(
            f"--clients {config.clients}: groups.csv has {len(sites)} sites ({some(sites)}); use "
            f"--clients {len(sites)} to make each a client, or add --split iid to mix them"
        )
    without = sorted(set(map(str, dataset.sites)) - set(sites)) if dataset.sites is not None else []
    if without:
        logger.warning("sites without a training image are no clients: %s", some(without))
    logger.info("each site is a client (--split site --clients %d): %s", len(sites), some(sites))
    return resolve(settings | {"split": "site", "clients": len(sites)})


def _sites_may_decide(settings: dict[str, Any]) -> bool:
    """Whether the split, or under ``site`` the number of clients, is left to the data."""
    if "split" in settings or "split_file" in settings:
        return settings.get("split") == "site" and "clients" not in settings
    name = as_known(str(settings.get("dataset")), GROUPED)
    if name not in GROUPED:
        return False
    folder = settings.get("data_dir") or datasets.default_folder(name)
    return (Path(str(folder)) / "groups.csv").exists()


def resume(
    folder: Path, settings: dict[str, Any], *, quiet: bool, engine: Engine = IN_PROCESS
) -> str:
    """Continue the run in ``folder`` to the same bits; raises as :func:`start`."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {folder}: no run here (config.yaml is absent)")
    config = _resumed(folder, settings)
    if (folder / "DONE").exists():
        return finished_table(folder)
    with alone_in(folder):
        with held_log():
            engine.resumed(folder)
            listed = engine.load(config, quiet=True, labels_only=True)
            simulation, _ = _prepare(config, listed, quiet=quiet, begun=folder, engine=engine)
            simulation.resume(folder)
        for half_written in folder.rglob(".*.tmp"):  # by a process that was killed
            half_written.unlink()
        return _run(simulation, folder, quiet=quiet)


def _resumed(folder: Path, settings: dict[str, Any]) -> Config:
    """The settings of the run in ``folder``, with those changed on which no result depends."""
    there = settings_of(folder)
    before, config = resolve(there), resolve(there | settings)
    for name in sorted(set(settings) - MAY_CHANGE):
        begun_with = getattr(before, name)
        if getattr(config, name) != begun_with:
            raise UserError(
                f"{flag(name)}: the run began with {begun_with} and keeps it; leave the option "
                "out, or leave out --resume to start a new run"
            )
    return config


def _prepare(
    config: Config,
    listed: ImageDataset,
    *,
    quiet: bool,
    engine: Engine,
    begun: Path | None = None,
) -> tuple[Simulation, Scenario]:
    """Do everything that bad input can break, before the run's folder is made.

    ``listed`` is the data set without its pixels; ``begun`` the folder of a run to go on with,
    which must have been made from the same files.
    """
    model = _rehearse(config, listed, engine)
    dataset = engine.load(config, quiet=quiet)
    if begun:
        key = engine.deal(config, dataset, folder=None).key
        inputs = file_inputs(config, listed)
        refuse_changed(begun, made_from(config, inputs, images=dataset.image_key, scenario=key))
    scenario = engine.deal(config, dataset, folder=Path(config.save_dir) / "splits")
    return engine.build(config, dataset, scenario, model), scenario


def _rehearse(config: Config, listed: ImageDataset, engine: Engine) -> FlatModel:
    """Check settings, labels, weights and disk before an image is decoded; write nothing."""
    save_dir = Path(config.save_dir)
    for folder in (save_dir / "splits", save_dir / "runs"):
        check_writable(folder)
    model = _build_model(config, listed)
    needed = _estimated_bytes(config, listed, model)["disk space"]
    free = shutil.disk_usage(existing_parent(save_dir)).free
    if free < needed:
        raise UserError(
            f"--save-dir {save_dir}: {free / 1e6:.1f} MB free, the run needs about "
            f"{needed / 1e6:.1f} MB; free some space or choose another folder"
        )
    check_prospects(config, listed, engine.deal(config, listed, folder=None))
    return model


def load_dataset(config: Config, *, quiet: bool, labels_only: bool = False) -> ImageDataset:
    """The data set of a run; see :func:`utils_.datasets.load` for what is raised."""
    options = data_options(config, quiet=quiet, labels_only=labels_only)
    return datasets.load(config.dataset, options)


def data_options(config: Config, *, quiet: bool, labels_only: bool = False) -> DataOptions:
    """How the data set of a run is to be loaded."""
    places = {name: getattr(config, name) for name in ("data_dir", "cache_dir")}
    return config.part(
        DataOptions,
        **{name: Path(place) if place else None for name, place in places.items()},
        workers=_reading_processes(config),
        quiet=quiet,
        labels_only=labels_only,
    )


def _reading_processes(config: Config) -> int:
    """As many as there are processors, or fewer if ``--workers`` says so: each needs memory."""
    there = processor_count()
    return there if config.workers == "auto" else min(int(config.workers), there)


def _build_model(config: Config, dataset: ImageDataset) -> FlatModel:
    return build_model(config, classes=len(dataset.classes), class_names=dataset.classes)


def _estimated_bytes(config: Config, dataset: ImageDataset, model: FlatModel) -> dict[str, int]:
    """Bytes over the wire for models (extras come on top), and on disk."""
    vector = model.vector.numel() * model.vector.element_size()
    selected = config.plan(len(dataset.classes)).clients_per_round
    labels = dataset.labels.size * 9  # target, weight and status of every cell
    wire = vector * selected * config.rounds * method_class(config.method).exchange
    # Two checkpoints stand side by side for a moment, each with two vectors; then the two model
    # files, the split, predictions, and about 20 kB of logs a round.
    disk = 2 * (2 * vector + labels) + 2 * vector + labels + config.rounds * 20_000 + 2_000_000
    disk += _prediction_bytes(config, dataset)
    return {"sent to clients": wire, "sent to the server": wire, "disk space": disk}


def _prediction_bytes(config: Config, dataset: ImageDataset) -> int:
    """Two probabilities and a label of every cell outside training, for each model that is kept."""
    fixed = int(((dataset.part == VAL) | (dataset.part == TEST)).sum())
    share = min(config.val_share + config.test_share, 1)
    images = fixed + round(share * (len(dataset.part) - fixed))
    models = 1 if method_class(config.method).exchange else config.clients
    return images * len(dataset.classes) * 4 * (1 + 2 * models)


def _create_folder(
    folder: Path, simulation: Simulation, scenario: Scenario, *, inputs: Mapping[str, str]
) -> None:
    """Fill the run's folder beside its place, then rename it."""
    config, dataset = simulation.config, simulation.dataset
    settings = {
        "threads_per_process": torch.get_num_threads(),
        "workers": simulation.workers,
        "device": str(simulation.model.device),
        "command": sys.argv,
        "made_from": made_from(config, inputs, images=dataset.image_key, scenario=scenario.key),
    }
    truth = reference(dataset, scenario, noise=bool(config.noise))
    tables = {
        "clients": client_table(scenario, dataset, simulation.names, truth=truth),
        "site_classes": class_table(scenario, dataset, simulation.names),
        "assignments": assignment_table(scenario, dataset),
    }
    try:
        with atomic_folder(folder) as draft:
            write_text(draft / "config.yaml", config.to_yaml())
            write_json(draft / "env.json", describe(ROOT) | settings)
            for name, table in tables.items():
                write_text(draft / f"{name}.csv", harmless_csv(table))
    except OSError as error:
        if folder.exists():
            raise UserError(
                f"{folder}: another process has begun this run just now; wait until it has ended, "
                "or choose another --name"
            ) from error
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another --save-dir or --name"
        ) from error


def _run(simulation: Simulation, folder: Path, *, quiet: bool) -> str:
    """Train and finish the folder; say how to go on where that fails."""
    rounds, stop = simulation.config.rounds, StopRequest()
    if simulation.method.leak:
        logger.warning(
            "LEAKY: this run hands hidden %s to its sites, to measure the effect",
            simulation.method.leak,
        )
    bar = tqdm(total=rounds, initial=simulation.server.round, unit="round", disable=quiet)
    try:
        with bar, RunLog(folder, history=simulation.history) as log:
            show_settings(log, simulation)
            result = simulation.run(folder, log, stop=stop, progress=bar)
            show_result(log, result)
            _finish(simulation, folder, result)
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(f"interrupted; go on with --resume {folder}") from error
    except Exception as error:
        _keep_traceback(folder)
        told = f"{type(error).__name__}: {error}"
        raise RunFailed(f"{told}; {_remedy(error, folder, simulation.config)}") from error
    return f"{final_table(result)}\n\nrun folder: {folder}"


def _remedy(error: Exception, folder: Path, config: Config) -> str:
    """What to do about a failure; the same settings would fail again where no report was usable."""
    if not isinstance(error, (Diverged, NoReportLeft)):
        return f"see {folder / 'error.txt'}; once the cause is mended, --resume {folder} goes on"
    deed = f"a smaller --lr than {config.lr:g}"
    if config.attack != "none":
        deed = "fewer --attackers, or a --fraction of 1, so that honest clients are always heard"
        deed = "another --aggregator" if isinstance(error, Diverged) else deed
    return f"a resume would end alike: start a new run with {deed}"


def _finish(simulation: Simulation, folder: Path, result: dict[str, Any]) -> None:
    save_models(simulation, folder)
    if simulation.predictions:
        classes = simulation.dataset.classes
        write_predictions(folder / PREDICTIONS, simulation.predictions, classes=classes)
    write_json(folder / "result.json", result)
    write_text(folder / CARD, model_card(folder))
    write_text(folder / "DONE", "")


def _keep_traceback(folder: Path) -> None:
    try:
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError as error:  # a full disk is often what failed in the first place
        logger.warning("cannot write error.txt: %s", error.strerror)
