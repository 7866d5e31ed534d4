"""The simulated federation: who holds which image, with which wrong and which missing labels.

It is built once from the settings, saved under their hash and reloaded, so that every method sees
the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import PART_NAMES, TRAIN, ImageDataset
from utils_.errors import UserError
from utils_.files import atomic_path
from utils_.missing import visible_cells
from utils_.noise import add_noise
from utils_.splits import assign_clients, cut_parts

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("fednml")

FORMAT = 1  # raise it when the same settings would give another scenario
_UNREADABLE = (  # what reading a damaged archive was seen to raise
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_DTYPES = {"part": np.uint8, "client": np.int32, "noisy": np.float32, "annotated": np.bool_}


@dataclass(frozen=True)
class Scenario:
    """Parts, clients and flawed labels of N images with C classes; the arrays are read-only.

    Attributes:
        part: (N,) uint8, TRAIN, VAL or TEST.
        client: (N,) int32, the client that holds the image, -1 outside train.
        noisy: (N, C) float32, labels after noise and before hiding, NaN where the files give none;
            the files' labels outside train.
        annotated: (N, C) bool, cells that somebody looked at and that are not hidden.
        key: hex digest of all that determines the scenario.
    """

    part: np.ndarray
    client: np.ndarray
    noisy: np.ndarray
    annotated: np.ndarray
    key: str

    def __post_init__(self) -> None:
        for name in _DTYPES:
            getattr(self, name).flags.writeable = False

    @property
    def observed(self) -> np.ndarray:
        """(N, C) float32, what the annotators wrote; NaN where not annotated."""
        return np.where(self.annotated, self.noisy, np.float32(np.nan))

    def rows(self, client: int) -> np.ndarray:
        """Rows of the dataset that ``client`` holds, ascending."""
        return np.flatnonzero(self.client == client)


def build_scenario(
    dataset: ImageDataset,
    *,
    clients: int,
    split: str,
    alpha: float,
    noise: float,
    noise_type: str,
    missing: float | int,
    missing_type: str,
    val_share: float,
    test_share: float,
    data_seed: int,
    folder: Path | None,
) -> Scenario:
    """Return the scenario of these settings: from ``folder`` if it is there, else built and saved.

    Args:
        dataset: images and labels; the pixels are not read.
        clients: K, at least 1.
        split: a name of ``splits.SPLITS``.
        alpha: concentration of the Dirichlet split, above 0.
        noise: rate in [0, 1].
        noise_type: a name of ``noise.NOISE_TYPES``.
        missing: a share in [0, 1) if float, a count if int.
        missing_type: a name of ``missing.MISSING_TYPES``.
        val_share: in [0, 1), cut from train where the files have no val.
        test_share: in [0, 1), cut from unassigned images where the files have no test.
        data_seed: the seed of every draw.
        folder: where ``<key>.npz`` is kept; None reads and writes nothing.

    Raises:
        UserError: a setting is out of range or does not fit the dataset, or the file cannot be
            written.
    """
    settings = {
        "clients": clients,
        "split": split,
        "alpha": alpha,
        "noise": noise,
        "noise_type": noise_type,
        "missing": missing,
        "missing_type": missing_type,
        "val_share": val_share,
        "test_share": test_share,
        "data_seed": data_seed,
    }
    key = _key(dataset, settings)
    path = None if folder is None else Path(folder) / f"{key}.npz"
    scenario = None if path is None else _load(path, key, shape=dataset.labels.shape)
    if scenario is None:
        scenario = _build(dataset, key=key, **settings)
        if path is not None:
            _save(path, scenario)
    _report_unannotated(scenario, dataset.classes)
    return scenario


def client_table(scenario: Scenario, dataset: ImageDataset) -> pd.DataFrame:
    """One row a client: what it holds and how flawed its labels are, as realised.

    Columns: ``client``; ``images``; ``annotated``, the classes with an annotated cell, joined by
    ``;``; ``annotated_classes``, their number; ``noise_samples``, the share of images with an
    annotated cell that differs from the file; ``noise_cells``, the share of annotated cells that
    do (NaN without any); ``missing_cells``, the share of cells that are not annotated.
    """
    import pandas as pd

    wrong = scenario.annotated & (scenario.noisy != dataset.labels)
    table = []
    for client in range(scenario.client.max() + 1):
        rows = scenario.rows(client)
        annotated, differs = scenario.annotated[rows], wrong[rows]
        seen = annotated.any(axis=0)
        table.append(
            {
                "client": client,
                "images": len(rows),
                "annotated": ";".join(np.array(dataset.classes, dtype=object)[seen]),
                "annotated_classes": int(seen.sum()),
                "noise_samples": float(differs.any(axis=1).mean()),
                "noise_cells": float(differs[annotated].mean()) if annotated.any() else np.nan,
                "missing_cells": float((~annotated).mean()),
            }
        )
    return pd.DataFrame(table)


def assignment_table(scenario: Scenario, dataset: ImageDataset) -> pd.DataFrame:
    """One row an image: ``image``, ``split`` (train, val, test), ``client`` (NA outside train)."""
    import pandas as pd

    client = pd.Series(scenario.client, dtype="Int64")
    return pd.DataFrame(
        {
            "image": list(dataset.files),
            "split": np.array(PART_NAMES, dtype=object)[scenario.part],
            "client": client.mask(scenario.client < 0),
        }
    )


def _build(
    dataset: ImageDataset,
    *,
    key: str,
    clients: int,
    split: str,
    alpha: float,
    noise: float,
    noise_type: str,
    missing: float | int,
    missing_type: str,
    val_share: float,
    test_share: float,
    data_seed: int,
) -> Scenario:
    part = cut_parts(
        dataset.part,
        dataset.groups,
        val_share=val_share,
        test_share=test_share,
        data_seed=data_seed,
    )
    client = assign_clients(
        part,
        dataset.groups,
        dataset.labels,
        dataset.sites,
        split=split,
        clients=clients,
        alpha=alpha,
        data_seed=data_seed,
    )
    noisy = add_noise(
        dataset.labels, client, rate=noise, noise_type=noise_type, data_seed=data_seed
    )
    visible = visible_cells(
        client,
        classes=dataset.labels.shape[1],
        clients=clients,
        missing=missing,
        missing_type=missing_type,
        data_seed=data_seed,
    )
    return Scenario(part, client, noisy, visible & ~np.isnan(noisy), key)


def _key(dataset: ImageDataset, settings: dict[str, object]) -> str:
    """Hash everything that determines the scenario."""
    digest = hashlib.sha256()
    texts = (FORMAT, dataset.image_key, list(dataset.files), settings)
    digest.update(json.dumps(texts, sort_keys=True, default=_plain).encode())
    sites = None if dataset.sites is None else np.asarray(dataset.sites, dtype=np.str_)
    for array in (dataset.labels, dataset.part, dataset.groups, sites):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _plain(value: object) -> object:
    """Turn a NumPy number into Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot hash a setting of type {type(value).__name__}")


def _save(path: Path, scenario: Scenario) -> None:
    arrays = {name: getattr(scenario, name) for name in _DTYPES}
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(scenario.key), **arrays)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {path}: {reason}; free some space or choose another --save-dir"
        ) from error


def _load(path: Path, key: str, *, shape: tuple[int, ...]) -> Scenario | None:
    """Return the saved scenario, or None where there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        return _read(path, key, shape=shape)
    except _UNREADABLE as error:
        logger.warning("%s is damaged and will be rebuilt (%s)", path, error)
        return None


def _read(path: Path, key: str, *, shape: tuple[int, ...]) -> Scenario:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # before parsing: a wrong header may ask for any memory
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} does not match")
    with np.load(path, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in _DTYPES}
        if str(saved["key"]) != key:
            raise ValueError("it belongs to other settings")
    expected = {"part": shape[:1], "client": shape[:1], "noisy": shape, "annotated": shape}
    for name, array in arrays.items():
        if array.shape != expected[name] or array.dtype != _DTYPES[name]:
            raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")
    return Scenario(**arrays, key=key)


def _report_unannotated(scenario: Scenario, classes: tuple[str, ...]) -> None:
    """Say which classes no client annotates; hiding never causes it, blanks in the files may."""
    nowhere = ~scenario.annotated[scenario.part == TRAIN].any(axis=0)
    if nowhere.any():
        names = ", ".join(name for name, absent in zip(classes, nowhere, strict=True) if absent)
        logger.warning("no client annotates %s: blank in the files where it is not hidden", names)
