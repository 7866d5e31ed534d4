"""Finished run folders read back: one line a run, with all that its files say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from utils_.errors import UserError
from utils_.spreadsheet import as_was

if TYPE_CHECKING:
    import pandas as pd

# How the round that is reported was chosen: {key of result.json: what the caption says}.
SELECTIONS = {
    "last": "the last round",
    "last5": "the mean of the last five tested rounds",
    "val_selected": "the round with the best validation mAP",
    "oracle_selected": "the round with the best TEST mAP (optimistic, not a fair estimate)",
}
REQUIRED = ("method", "dataset", "seed", "leaky", "bound")


def collect(runs: Path | Iterable[Path]) -> pd.DataFrame:
    """Read every finished run below the given folders.

    Args:
        runs: run folders, or folders that hold some at any depth.

    Returns:
        One line for each run, with the columns

        - ``run``, its folder, and ``finished``, the time of its ``result.json``;
        - the plain entries of ``result.json``, and its nested ones as ``last5.mAP`` or
          ``labels.noise_recall``;
        - ``per_class``: {class: {metric: number, "trained": whether any site annotates it}};
        - the settings as ``config.<name>``, and ``hardware``.

        ``attrs["skipped"]`` lists the folders left out, each as text with the reason.

    Raises:
        UserError: a given folder does not exist.
    """
    import pandas as pd

    lines, skipped = [], []
    for folder in _run_folders([runs] if isinstance(runs, (str, Path)) else runs):
        try:
            lines.append(_read_run(folder))
        except (OSError, ValueError) as error:
            skipped.append(f"{folder}: {' '.join(str(error).split())}")
    frame = pd.DataFrame(lines)
    frame.attrs["skipped"] = skipped
    return frame


def _run_folders(roots: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; give run folders or a folder that holds them, or train "
                "one with python src/main_fednml.py"
            )
        for name in ("config.yaml", "result.json"):
            for path in sorted(root.rglob(name)):
                found.setdefault(path.parent.resolve(), path.parent)
    return sorted(found.values())


def _read_run(folder: Path) -> dict[str, Any]:
    """Return one line of the frame.

    Raises:
        ValueError, OSError: the run is unfinished, or a file is damaged or cannot be read.
    """
    if not (folder / "DONE").exists():
        raise ValueError("not finished")
    result = _table(folder / "result.json", json.loads)
    config = _table(folder / "config.yaml", yaml.safe_load)
    absent = [name for name in (*REQUIRED, "last") if name not in result]
    if absent:
        raise ValueError(f"result.json lacks {', '.join(absent)}")
    if not all(isinstance(config.get(name), (int, float)) for name in ("noise", "missing")):
        raise ValueError("config.yaml lacks the number 'noise' or 'missing'")
    line = {"run": str(folder), "finished": (folder / "result.json").stat().st_mtime}
    line |= {name: value for name, value in result.items() if not isinstance(value, dict)}
    for part in (*SELECTIONS, "labels", "reports"):
        line |= {f"{part}.{name}": value for name, value in _numbers(part, result).items()}
    line |= {f"config.{name}": value for name, value in config.items()}
    line["per_class"] = _classes(result, folder / "clients.csv")
    return line | {"hardware": _hardware(folder / "env.json")}


def _classes(result: Mapping[str, Any], clients: Path) -> dict[str, dict[str, Any]]:
    """Scores of the classes, without their intervals, and which of them a site annotates."""
    table = result.get("per_class")
    if not isinstance(table, dict):
        return {}
    sites = _annotated(clients)
    # The sites of a bound train on true labels of all classes.
    every = sites is None or result["bound"]
    found = {}
    for name, own in table.items():
        numbers = {n: own[n] for n in own if n not in ("intervals", "few", "evaluated")}
        rounded = {n: round(v, 6) if isinstance(v, float) else v for n, v in numbers.items()}
        trained = every or any(f";{name};" in classes for classes in sites or ())
        found[name] = rounded | {"trained": trained}
    return found


def _annotated(clients: Path) -> list[str] | None:
    """The classes that each site annotates, as ``;a;b;``; None if the file does not say."""
    if not clients.exists():
        return None
    with clients.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "annotated" not in rows[0]:
        return None
    return [f";{as_was(row['annotated'] or '')};" for row in rows]


def _table(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} is damaged ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a table of names and values")
    return content


def _numbers(part: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Return one nested entry of a result; null (no such selection) is empty."""
    entry = result.get(part)
    entry = {} if entry is None else entry
    if not isinstance(entry, dict):
        raise ValueError(f"result.json: '{part}' is not a table of numbers")
    entry = {name: np.nan if value is None else value for name, value in entry.items()}
    for name, value in entry.items():
        if not isinstance(value, (int, float)):
            raise ValueError(f"result.json: '{part}.{name}' is not a number")
    return entry


def _hardware(path: Path) -> str:
    hardware = _table(path, json.loads).get("hardware", "") if path.exists() else ""
    if isinstance(hardware, dict):
        return ", ".join(f"{name} {value}" for name, value in hardware.items())
    return str(hardware)
