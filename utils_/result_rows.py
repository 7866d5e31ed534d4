"""The rows behind a table as a small CSV file that can be committed, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils_.errors import UserError
from utils_.files import atomic_path
from utils_.finished_runs import REQUIRED, collect

if TYPE_CHECKING:
    import pandas as pd

# Where something lay on one machine belongs into no table.
PLACES = ("data_dir", "cache_dir", "save_dir", "name", "split_file")
DIGITS = 6
COMPARED = ("method", "candidate", "setting", "seed", "options")  # of scripts/compare.py


def read_rows(places: Sequence[Path]) -> pd.DataFrame:
    """One line a run, as :func:`utils_.finished_runs.collect`, from run folders and CSV files.

    Raises:
        UserError: a place does not exist, or a file is none that :func:`write_rows` or
            scripts/compare.py has written.
    """
    import pandas as pd

    files = [place for place in places if place.suffix == ".csv" and place.is_file()]
    folders = [place for place in places if place not in files]
    frames = [_read_file(path) for path in files]
    skipped = []
    if folders:
        collected = collect(folders)
        skipped = collected.attrs.pop("skipped")
        frames.append(collected)
    frame = pd.concat([f for f in frames if not f.empty] or frames, ignore_index=True).copy()
    frame.attrs["skipped"] = skipped
    return frame


def write_rows(frame: pd.DataFrame, path: Path) -> None:
    """Write the lines, without the places of one machine; dictionaries become JSON.

    Raises:
        UserError: the file cannot be written.
    """
    kept = frame.drop(columns=[f"config.{name}" for name in PLACES], errors="ignore")
    kept = kept.assign(run=[Path(run).name for run in frame["run"]]).round(DIGITS)
    for name in kept:
        kept[name] = [json.dumps(v) if isinstance(v, dict | list) else v for v in kept[name]]
    try:
        with atomic_path(path) as temporary:
            kept.to_csv(temporary, index=False)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror or error}; choose another file") from error


def _read_file(path: Path) -> pd.DataFrame:
    frame = read_cells(path)
    if set(COMPARED) <= set(frame):
        return _compared(frame)
    if {"aggregator", "attack", "selection"} <= set(frame):
        raise UserError(
            f"{path}: rows of attacks; python scripts/attack_table.py {path} shows them"
        )
    absent = [name for name in (*REQUIRED, "run", "last.mAP") if name not in frame]
    if absent:
        raise UserError(f"{path}: lacks {', '.join(absent)}; give a file of --csv")
    try:
        for name in {"config.param", "per_class"} & set(frame):
            frame[name] = [json.loads(text) for text in frame[name]]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {name} is no JSON; give what --csv has written") from error
    return frame


def read_cells(path: Path, *, as_text: bool = False) -> pd.DataFrame:
    """The cells of a CSV file, as numbers where they are, or as they are written.

    Raises:
        UserError: it cannot be read.
    """
    import pandas as pd

    try:
        # Only a blank is missing: there is an attack called "nan".
        kind = str if as_text else None
        return pd.read_csv(path, dtype=kind, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read ({reason}); give what --csv has written"
        ) from error


def is_notes(path: Path) -> bool:
    """Whether this is a CSV file of methods that holds no rows of runs, such as notes on tuning."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    names = set(read_cells(path))
    return "method" in names and not {"run", *REQUIRED} <= names and not set(COMPARED) <= names


def _compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of compare.py as those of runs: its settings have names, its methods candidates."""
    import pandas as pd

    names = rows["setting"] + "-" + rows["method"] + "-s" + rows["seed"].astype(str)
    frame = rows.drop(columns=["setting", "candidate", "options"]).assign(
        run=names,
        dataset=rows["setting"],
        finished=range(len(rows)),
    )
    frame["config.param"] = pd.Series([{"candidate": number} for number in rows["candidate"]])
    frame["config.data_seed"] = rows["seed"]
    return frame
