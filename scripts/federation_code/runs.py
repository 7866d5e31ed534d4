"""A run of the federation: its settings checked, the code signed, its log shown, its end told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.federation_code.certificates import CODE_KEY
from scripts.federation_code.processes import QUIET, running
from scripts.federation_code.server import (
    CONNECTION,
    ROOT,
    SUPERLINK,
    environment_of,
    find_program,
    flwr,
)
from scripts.federation_code.signing import sign_code
from utils_.errors import UserError

DONE, FAILED = 0, 1
COMPLETED = "finished:completed"
PATHS = ("data-dir", "save-dir", "cache-dir", "split-file", "config", "resume")


def run_to_its_end(folder: Path, settings: str) -> int:
    """Start a run and show its log; return the exit code.

    Args:
        settings: as ``flwr run --run-config`` takes them.

    Raises:
        UserError: a setting is wrong, or SuperLink does not run.
    """
    if "save-dir" not in refuse_wrong(settings):
        settings = f"{settings} save-dir='{folder.resolve() / 'save'}'".strip()
    if not running(folder, SUPERLINK):
        raise UserError(f"{folder}: SuperLink does not run; start it with start-server")
    if (folder / CODE_KEY).exists():
        sign_code(folder, ROOT)
    words = ("run", str(ROOT), CONNECTION, "--run-config", settings, "--format", "json")
    number = flwr(folder, *words)["run-id"]
    print(
        f"run {number}; if this is interrupted it goes on: flwr stop {number} ends it", flush=True
    )
    log = [find_program("flwr"), "log", str(number), CONNECTION, "--stream"]
    subprocess.run(log, env=os.environ | QUIET | environment_of(folder), check=False)
    (run,) = flwr(folder, "list", CONNECTION, "--run-id", str(number), "--format", "json")["runs"]
    if run["status"] == COMPLETED:
        return DONE
    print(f"federation: the run is {run['status']}: {run['status-details']}", file=sys.stderr)
    return FAILED


def refuse_wrong(settings: str) -> set[str]:
    """Say what is wrong with settings before a run is started; return which are given.

    Raises:
        UserError: what the command line would say, or a path that is not in full.
    """
    from flwr.common.config import parse_config_args

    from src.config import resolve  # torch comes with it
    from src.flower.run_config import read_run_config

    try:
        told = parse_config_args([settings] if settings else [])
    except Exception as error:  # of many kinds: Flower reads the text as TOML
        raise UserError(
            f"settings {settings}: cannot be read; texts stand in quotes, such as "
            "\"method='fednml' rounds=5\""
        ) from error
    for key in PATHS:
        if key in told and not Path(str(told[key])).is_absolute():
            raise UserError(f"{key}='{told[key]}': give the path in full; Flower starts elsewhere")
    given, commands, _ = read_run_config(told)
    if "resume" not in commands:
        resolve(given)
    return set(told)
