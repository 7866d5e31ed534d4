"""The simulated federation: who holds which image, with which wrong and which missing labels.

It is built once from the settings, saved under their hash and reloaded, so that every method sees
the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import TRAIN, ImageDataset
from utils_.errors import UserError
from utils_.files import UNREADABLE_ZIP, atomic_path
from utils_.missing import visible_cells
from utils_.noise import add_noise, client_rates
from utils_.one_sided import report_one_sided
from utils_.site_names import SiteNames
from utils_.splits import Deal, assign_clients, cut_parts
from utils_.splits.base import training_groups
from utils_.splits.file import read_split
from utils_.splits.plain import sites_of_groups

if TYPE_CHECKING:
    pass

logger = logging.getLogger("fednml")

NO_NAMES = SiteNames()
FORMAT = 2  # raise it when the same settings would give another scenario
Dealt = tuple[np.ndarray, np.ndarray]  # (N,) part and (N,) client, -1 outside train
_DTYPES = {
    "part": np.uint8,
    "client": np.int32,
    "noisy": np.float32,
    "annotated": np.bool_,
    "assumed": np.bool_,
    "soft": np.bool_,
}
_OPTIONAL = ("assumed", "soft")  # there may be none of these cells


@dataclass(frozen=True)
class Scenario:
    """Parts, clients and flawed labels of N images with C classes; the arrays are read-only.

    Attributes:
        part: (N,) uint8, TRAIN, VAL or TEST.
        client: (N,) int32, the client that holds the image, -1 outside train.
        noisy: (N, C) float32, labels after noise and before hiding, NaN where the files give none;
            the files' labels outside train; 0 where assumed.
        annotated: (N, C) bool, cells that somebody looked at and that are not hidden, and those
            assumed.
        key: hex digest of all that determines the scenario.
        assumed: (N, C) bool, missing training cells that count as negative; by default none.
        soft: (N, C) bool, training cells without annotation that start from a target of 0.5; by
            default none.
    """

    part: np.ndarray
    client: np.ndarray
    noisy: np.ndarray
    annotated: np.ndarray
    key: str
    assumed: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=np.bool_))
    soft: np.ndarray = field(default_factory=lambda: np.zeros((), dtype=np.bool_))

    def __post_init__(self) -> None:
        for name in _OPTIONAL:
            if not getattr(self, name).ndim:
                object.__setattr__(self, name, np.zeros_like(self.annotated))
        for name in _DTYPES:
            getattr(self, name).flags.writeable = False

    @property
    def observed(self) -> np.ndarray:
        """(N, C) float32, what the annotators wrote or is assumed; NaN where not annotated."""
        return np.where(self.annotated, self.noisy, np.float32(np.nan))

    def rows(self, client: int) -> np.ndarray:
        """Rows of the dataset that ``client`` holds, ascending."""
        return np.flatnonzero(self.client == client)


@dataclass(frozen=True, kw_only=True)
class ScenarioSettings:
    """What a scenario is asked to be. A run's settings of the same names hold the defaults.

    Attributes:
        clients: K, at least 1.
        split: a name of ``splits.SPLITS``, or ``file``.
        split_file: the CSV file of ``file``, see ``splits.file``.
        alpha: concentration of the Dirichlet draws, above 0.
        shards: shards a client of the split ``shards``.
        phi: chance that a client has a class, for the split ``phi``.
        noise: rate in [0, 1].
        noise_type: a name of ``noise.NOISE_TYPES``.
        noise_clients: a name of ``noise.CLIENT_RATES``.
        noise_low: the lowest rate of a noisy client, in [0, noise].
        noisy_share: chance that a client is noisy, for ``bernoulli``.
        missing: a share if float, a count if int.
        missing_type: a name of ``missing.MISSING_TYPES``.
        assume_negative: whether missing cells of training images count as negative.
        val_share: in [0, 1), cut from train where the files have no val.
        test_share: in [0, 1), cut from unassigned images where the files have no test.
        data_seed: the seed of every draw.
    """

    clients: int
    split: str
    noise: float
    noise_type: str
    missing: float | int
    missing_type: str
    assume_negative: bool
    val_share: float
    test_share: float
    data_seed: int
    split_file: Path | str | None
    alpha: float
    shards: int
    phi: float
    noise_clients: str
    noise_low: float
    noisy_share: float


def build_scenario(
    dataset: ImageDataset, settings: ScenarioSettings, *, folder: Path | None
) -> Scenario:
    """Return the scenario of these settings: from ``folder`` if it is there, else built and saved.

    Args:
        dataset: images and labels; only ``instance`` noise reads the pixels, where they are known.
        settings: what it is asked to be.
        folder: where ``<key>.npz`` is kept; None reads and writes nothing.

    Raises:
        UserError: a setting is out of range or does not fit the dataset, or a file cannot be read
            or written.
    """
    given = _given_split(dataset, settings)
    key = _key(dataset, settings, given)
    path = None if folder is None else Path(folder) / f"{key}.npz"
    scenario = None if path is None else _load(path, key, shape=dataset.labels.shape)
    if scenario is None:
        scenario = _build(dataset, settings, given, key=key)
        if path is not None:
            _save(path, scenario)
    train = scenario.part == TRAIN
    report_one_sided(scenario.observed[train], dataset.classes)
    return scenario


def training_sites(dataset: ImageDataset, wanted: ScenarioSettings) -> tuple[str, ...]:
    """Names of the sites that would have training images; none where the sites are not known."""
    if dataset.sites is None:
        return ()
    return _sites_in(dataset, _parts(dataset, wanted))


def client_names(scenario: Scenario, dataset: ImageDataset, *, split: str) -> SiteNames:
    """What the clients are called: after their sites under ``site``, else by number alone."""
    if split != "site":
        return SiteNames()
    return SiteNames(_sites_in(dataset, scenario.part))


def _sites_in(dataset: ImageDataset, part: np.ndarray) -> tuple[str, ...]:
    rows = np.flatnonzero(part == TRAIN)
    return sites_of_groups(training_groups(rows, dataset.groups, dataset.labels, dataset.sites))[0]


def _given_split(dataset: ImageDataset, wanted: ScenarioSettings) -> Dealt | None:
    """What the split file says, if there is one."""
    if wanted.split != "file":
        return None
    if wanted.split_file is None:
        raise UserError("--split file: give the file as --split-file FILE")
    return read_split(
        Path(wanted.split_file), dataset.files, dataset.groups, dataset.part, clients=wanted.clients
    )


def _deal(dataset: ImageDataset, wanted: ScenarioSettings) -> Dealt:
    part = _parts(dataset, wanted)
    deal = Deal(**{f.name: getattr(wanted, f.name) for f in fields(Deal)})
    client = assign_clients(
        part, dataset.groups, dataset.labels, dataset.sites, split=wanted.split, deal=deal
    )
    return part, client


def _parts(dataset: ImageDataset, wanted: ScenarioSettings) -> np.ndarray:
    return cut_parts(
        dataset.part,
        dataset.groups,
        val_share=wanted.val_share,
        test_share=wanted.test_share,
        data_seed=wanted.data_seed,
    )


def _build(
    dataset: ImageDataset, wanted: ScenarioSettings, given: Dealt | None, *, key: str
) -> Scenario:
    """Deal the images, add the noise, hide what is missing, assume what is wanted."""
    part, client = given or _deal(dataset, wanted)
    rates = client_rates(
        wanted.noise_clients,
        clients=wanted.clients,
        rate=wanted.noise,
        lowest=wanted.noise_low,
        noisy_share=wanted.noisy_share,
        data_seed=wanted.data_seed,
    )
    noisy = add_noise(
        dataset.labels,
        client,
        rate=rates,
        noise_type=wanted.noise_type,
        data_seed=wanted.data_seed,
        classes=dataset.classes,
        pixels=dataset.images if dataset.image_key else None,  # a dry run has no pixels
    )
    visible = visible_cells(
        client,
        classes=dataset.labels.shape[1],
        clients=wanted.clients,
        missing=wanted.missing,
        missing_type=wanted.missing_type,
        data_seed=wanted.data_seed,
        labels=noisy,
    )
    annotated = visible & ~np.isnan(noisy)
    soft = visible & (client >= 0)[:, None] & _uncertain(dataset)
    assumed = ~annotated & ~soft & (wanted.assume_negative & (client >= 0))[:, None]
    noisy = np.where(assumed, np.float32(0), noisy)
    return Scenario(part, client, noisy, annotated | assumed, key, assumed, soft)


def _uncertain(dataset: ImageDataset) -> np.ndarray:
    if dataset.uncertain is None:
        return np.zeros(dataset.labels.shape, dtype=bool)
    uncertain: np.ndarray = dataset.uncertain & np.isnan(dataset.labels)
    return uncertain


def _key(dataset: ImageDataset, wanted: ScenarioSettings, given: Dealt | None) -> str:
    """Hash everything that determines the scenario; of a split file what it says, not its name."""
    digest = hashlib.sha256()
    settings = asdict(wanted) | {"split_file": None}
    texts = (FORMAT, dataset.image_key, list(dataset.files), list(dataset.classes), settings)
    digest.update(json.dumps(texts, sort_keys=True, default=_plain).encode())
    sites = None if dataset.sites is None else np.asarray(dataset.sites, dtype=np.str_)
    for array in (dataset.labels, dataset.part, dataset.groups, sites, *(given or ())):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    if dataset.uncertain is not None:  # else the keys are those of before there was such a thing
        digest.update(np.packbits(dataset.uncertain).tobytes())
    return digest.hexdigest()[:32]


def _plain(value: object) -> object:
    """Turn a NumPy number into Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot hash a setting of type {type(value).__name__}")


def _kept(scenario: Scenario, name: str) -> bool:
    """Soft cells are rare; files without them are as they always were."""
    return name != "soft" or bool(scenario.soft.any())


def _save(path: Path, scenario: Scenario) -> None:
    arrays = {name: getattr(scenario, name) for name in _DTYPES if _kept(scenario, name)}
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
    except UNREADABLE_ZIP as error:
        logger.warning("%s is damaged and will be rebuilt (%s)", path, error)
        return None


def _read(path: Path, key: str, *, shape: tuple[int, ...]) -> Scenario:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # before parsing: a wrong header may ask for any memory
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} does not match")
    with np.load(path, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in _DTYPES if name != "soft" or name in saved}
        if str(saved["key"]) != key:
            raise ValueError("it belongs to other settings")
    for name, array in arrays.items():
        expected = shape[:1] if name in ("part", "client") else shape
        if array.shape != expected or array.dtype != _DTYPES[name]:
            raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")
    return Scenario(**arrays, key=key)
