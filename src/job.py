"""One run from settings to a finished folder: start, resume, or only show what would be done."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from src.command_line import read_yaml
from src.config import Config, resolve, worker_count
from src.results import final_table
from src.simulation import Interrupted, Simulation
from utils_ import datasets
from utils_.datasets.base import ImageDataset
from utils_.errors import UserError
from utils_.files import write_json, write_text
from utils_.runlog import RunLog, parameter_table
from utils_.scenario import Scenario, assignment_table, build_scenario, client_table

ROOT = Path(__file__).resolve().parents[1]
DONE, FAILED, INTERRUPTED = 0, 3, 130
MAY_CHANGE = {
    "device",
    "workers",
    "checkpoint_every",
    "cache_dir",
}  # on resume: no result depends on it
logger = logging.getLogger("fednml")


def show(settings: dict[str, Any]) -> int:
    """Print the resolved settings, the client table and estimated bytes; train and write nothing."""
    config = resolve(settings)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = _load_dataset(config, quiet=True, cache_dir=scratch)
        scenario = _build_scenario(config, dataset, folder=None)
        simulation = Simulation(config, dataset, scenario)
        print(config.to_yaml())
        print(client_table(scenario, dataset).to_string(index=False))
        print(f"\nrun folder          {_run_folder(config)}")
        print(f"images              {len(dataset.files):,} in {len(dataset.classes)} classes")
        print(f"model parameters    {simulation.model.parameter_count:,}")
        for title, count in _estimated_bytes(config, simulation).items():
            print(f"{title:<20}{count / 1e6:,.1f} MB")
    return DONE


def start(settings: dict[str, Any], *, quiet: bool) -> int:
    """Start a new run."""
    config = resolve(settings)
    folder = _run_folder(config)
    _check_new(folder)
    simulation, scenario = _prepare(config, quiet=quiet)
    _create_folder(folder, config, simulation.dataset, scenario)
    return _run(simulation, folder, quiet=quiet)


def resume(folder: Path, settings: dict[str, Any], *, quiet: bool) -> int:
    """Continue the run in ``folder``."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume {folder}: no run here (config.yaml is absent)")
    fixed = sorted(set(settings) - MAY_CHANGE)
    if fixed:
        name = fixed[0].replace("_", "-")
        raise UserError(f"--{name}: a resumed run keeps its settings; leave it out or start anew")
    config = resolve(read_yaml(folder / "config.yaml") | settings)
    if (folder / "DONE").exists():
        result = json.loads((folder / "result.json").read_text())
        print(f"{final_table(result)}\nalready finished: {folder}")
        return DONE
    simulation, _ = _prepare(config, quiet=quiet)
    simulation.resume(folder)
    return _run(simulation, folder, quiet=quiet)


def _prepare(config: Config, *, quiet: bool) -> tuple[Simulation, Scenario]:
    """Load and check everything that can fail before the run's folder is made."""
    _check_writable(Path(config.save_dir))
    dataset = _load_dataset(config, quiet=quiet, cache_dir=config.cache_dir)
    scenario = _build_scenario(config, dataset, folder=None)
    simulation = Simulation(config, dataset, scenario)
    needed = _estimated_bytes(config, simulation)["disk space"]
    free = shutil.disk_usage(_existing_parent(Path(config.save_dir))).free
    if free < needed:
        raise UserError(
            f"--save-dir {config.save_dir}: {free / 1e6:.1f} MB free, the run needs about "
            f"{needed / 1e6:.1f} MB; free some space or choose another folder"
        )
    return simulation, scenario


def _load_dataset(config: Config, *, quiet: bool, cache_dir: str | None) -> ImageDataset:
    return datasets.load(
        config.dataset,
        data_dir=Path(config.data_dir) if config.data_dir else None,
        image_size=config.image_size,
        cache_dir=Path(cache_dir) if cache_dir else None,
        fit=config.fit,
        skip_bad_images=config.skip_bad_images,
        data_seed=config.data_seed,
        train_images=config.train_images,
        test_images=config.test_images,
        workers=worker_count(replace(config, clients=1024), len(os.sched_getaffinity(0))),
        quiet=quiet,
    )


def _build_scenario(config: Config, dataset: ImageDataset, *, folder: Path | None) -> Scenario:
    return build_scenario(
        dataset,
        clients=config.clients,
        split=config.split,
        alpha=config.alpha,
        noise=config.noise,
        noise_type=config.noise_type,
        missing=config.missing,
        missing_type=config.missing_type,
        val_share=config.val_share,
        test_share=config.test_share,
        data_seed=config.data_seed,
        folder=folder,
    )


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
        if not parent.is_dir():
            raise NotADirectoryError(20, "not a folder")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"--save-dir {folder}: cannot write there ({error.strerror}); choose another folder"
        ) from error


def _estimated_bytes(config: Config, simulation: Simulation) -> dict[str, int]:
    """Bytes over the wire for models (extras come on top), and on disk."""
    model = simulation.server.model.numel() * 4
    selected = max(1, int(config.fraction * config.clients))
    labels = sum(client.labels.target.size * 9 for client in simulation.clients)
    wire = model * selected * config.rounds
    # Two checkpoints may stand side by side, each with two vectors; then the model file and logs.
    disk = 2 * (2 * model + labels) + model + config.rounds * 20_000 + 2_000_000
    return {"sent to clients": wire, "sent to the server": wire, "disk space": disk}


def _create_folder(folder: Path, config: Config, dataset: ImageDataset, scenario: Scenario) -> None:
    """Save the split for other runs and fill the run's folder beside its place, then rename it."""
    _build_scenario(config, dataset, folder=Path(config.save_dir) / "splits")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        write_text(draft / "config.yaml", config.to_yaml())
        write_json(draft / "env.json", environment(config))
        write_text(draft / "clients.csv", client_table(scenario, dataset).to_csv(index=False))
        table = assignment_table(scenario, dataset)
        write_text(draft / "assignments.csv", table.to_csv(index=False))
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); see --save-dir"
        ) from error


def environment(config: Config) -> dict[str, Any]:
    """Versions, commit and hardware, for ``env.json``."""
    import numpy
    import sklearn
    import torchvision

    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "commit": git.stdout.strip() or "unknown",
        "hardware": _hardware(),
        "processors": len(os.sched_getaffinity(0)),
        "threads_per_process": torch.get_num_threads(),
        "workers": worker_count(config, len(os.sched_getaffinity(0))),
        "command": sys.argv,
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


class StopRequest:
    """SIGINT or SIGTERM: the first one ends the run after this round, the second one at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write("finishing this round; once more to stop at once", file=sys.stderr)


def _run(simulation: Simulation, folder: Path, *, quiet: bool) -> int:
    """Train; on failure or interruption say how to go on."""
    config, stop = simulation.config, StopRequest()
    if simulation.method.hidden_labels:
        logger.warning("LEAKY: this run hands hidden labels to the sites, to measure the effect")
    bar = tqdm(total=config.rounds, initial=simulation.server.round, unit="round", disable=quiet)
    try:
        with bar, RunLog(folder, history=simulation.history) as log:
            log.text("parameters", parameter_table(_parameters(simulation)))
            result = simulation.run(folder, log, stop=stop, progress=bar)
            _finish(simulation, folder, result)
    except (Interrupted, KeyboardInterrupt):
        print(f"main_fednml: interrupted; go on with --resume {folder}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        _keep_traceback(folder)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"main_fednml: {reason}; go on with --resume {folder}", file=sys.stderr)
        return FAILED
    print(f"{final_table(result)}\n\nrun folder: {folder}")
    return DONE


def _parameters(simulation: Simulation) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(simulation.config) | {"method parameters": asdict(simulation.method.params)}


def _finish(simulation: Simulation, folder: Path, result: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    from utils_.files import atomic_path

    for name, vector in (("model", simulation.server.model), ("best", simulation.best)):
        with atomic_path(folder / f"{name}.safetensors") as path:
            save_file(simulation.model.unpack(vector), path)
    write_json(folder / "result.json", result)
    write_text(folder / "DONE", "")


def _keep_traceback(folder: Path) -> None:
    try:
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError as error:  # a full disk is often what failed in the first place
        logger.warning("cannot write error.txt: %s", error.strerror)
