"""What the server runs: ``flwr run . --run-config "method='fednml' noise=0.4"``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from src import job
from src.config import Config, resolve
from src.flower.federation import HospitalEngine, SimulatedEngine, read_notes
from src.flower.own_data import refuse_simulated
from src.flower.own_log import show_log
from src.flower.run_config import read_run_config
from src.flower.sites import Sites
from src.methods import method_class
from src.run_folder import settings_of
from utils_.datasets.base import TEST, TRAIN
from utils_.datasets.csv_layout import load_held_out
from utils_.errors import UserError

app = ServerApp()
logger = logging.getLogger("fednml")


@app.main()
def serve_grid(grid: Grid, context: Context) -> None:
    """Run the federation and log its final table.

    Raises:
        UserError: what the command line would say.
        RunFailed, Interrupted: the run can be resumed.
    """
    show_log()
    logger.info("%s", run_federation(grid, context.run_config))


def run_federation(grid: Grid, run_config: Any) -> str:
    """Gather the sites, start or resume the run, and return its final table."""
    settings, commands, patience = read_run_config(run_config)
    folder = Path(commands["resume"]) if "resume" in commands else None
    there = settings_of(folder) if folder else {}
    known = read_notes(folder)[1] if folder else []
    config = resolve(there | settings)
    _refuse(config)
    sites = Sites(grid, config, patience)
    sites.tell(config, _classes(config))
    sites.gather(known)
    engine = SimulatedEngine(sites)
    if sites.tables:
        settings = refuse_simulated(settings, resolve(there | settings), clients=sites.count)
        engine = HospitalEngine(sites)
    elif job.settle(there | settings).clients != config.clients:
        raise UserError("--clients: groups.csv has other sites; give their number and --split site")
    if folder:
        return job.resume(folder, settings, quiet=True, engine=engine)
    return job.start(settings, quiet=True, engine=engine)


def _classes(config: Config) -> tuple[str, ...]:
    """Those of the server's own label files, if it has any."""
    if config.dataset != "csv" or config.data_dir is None:
        return ()
    folder = Path(config.data_dir)
    needed = TEST if (folder / "test_data.csv").exists() else TRAIN
    options = job.data_options(config, quiet=True, labels_only=True)
    return load_held_out(folder, options, needed=needed).classes


def _refuse(config: Config) -> None:
    """What has no meaning here."""
    if config.checkpoint_every != 1:
        raise UserError("--checkpoint-every: every round is kept on Flower; leave it out")
    kind = method_class(config.method)
    if kind.true_labels or not kind.exchange:
        raise UserError(
            f"--method {config.method}: a bound has no federation; run it with "
            "python src/main_fednml.py"
        )
