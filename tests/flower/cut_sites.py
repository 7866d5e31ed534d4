"""A folder cut into those of hospitals and of their server, and what is asked of a run of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from tiny import PARAMS, SETTINGS, read_table, write_csv_dataset, write_table


def run_config(data: Path, save: Path, **settings: Any) -> dict[str, Any]:
    """What ``flwr run --run-config`` would say."""
    param = PARAMS.get(settings.get("method", "fednml"), {}) | settings.pop("param", {})
    table = SETTINGS | {"dataset": "csv", "data_dir": str(data), "save_dir": str(save)}
    table |= {"round_timeout": 20} | settings
    told = {key.replace("_", "-"): value for key, value in table.items()}
    told["param"] = " ".join(f"{key}={value}" for key, value in param.items())
    return told


def model_of(save: Path) -> dict[str, bytes]:
    (path,) = save.glob("runs/*/model.safetensors")
    return {name: array.tobytes() for name, array in load_file(path).items()}


def hospitals(pooled: Path, folder: Path, names: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Cut a folder in the csv layout, with groups.csv, into one folder a site."""
    header, *rows = read_table(pooled / "train_data.csv")
    site_of = dict(read_table(pooled / "groups.csv")[1:])
    nodes = {}
    for number, name in enumerate(names):
        own = [row for row in rows if site_of[row[0]] == name]
        columns = [0, *(c for c in range(1, len(header)) if any(row[c] != "" for row in own))]
        (folder / name / "images").mkdir(parents=True)
        for row in own:
            shutil.copy(pooled / "images" / row[0], folder / name / "images")
        table = [[row[c] for c in columns] for row in [header, *own]]
        write_table(folder / name / "train_data.csv", table)
        nodes[50 - number] = {"site": name, "data-dir": str(folder / name)}
    return nodes


def pooled_hospitals(folder: Path) -> Path:
    """Three hospitals in one folder: the north lacks class1, some cells are blank."""
    write_csv_dataset(folder)
    header, *rows = read_table(folder / "train_data.csv")
    train, val = rows[:40], rows[40:]
    sites = ["north", "east", "south"]
    for number, row in enumerate(train):
        row[2] = "" if number % 3 == 0 else row[2]
        row[3] = "" if number % 5 == 0 else row[3]
    write_table(folder / "train_data.csv", [header, *train])
    write_table(folder / "val_data.csv", [header, *val])
    groups = [[row[0], sites[number % 3]] for number, row in enumerate(train)]
    groups += [[row[0], ""] for row in [*val, *read_table(folder / "test_data.csv")[1:]]]
    write_table(folder / "groups.csv", [["image", "site"], *groups])
    return folder


def server_folder(pooled: Path, folder: Path) -> Path:
    """What the server owns: images to validate and to test on."""
    (folder / "images").mkdir(parents=True)
    for name in ("val_data.csv", "test_data.csv"):
        shutil.copy(pooled / name, folder)
        for row in read_table(pooled / name)[1:]:
            shutil.copy(pooled / "images" / row[0], folder / "images")
    return folder
