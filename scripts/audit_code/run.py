"""A run opened again: its settings, its data as they were, and what is predicted of its images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Config, resolve
from src.cross_fitting import cross_fit, plain_settings
from src.held_log import held_log
from src.job import data_options, load_dataset
from src.models import Predictor
from src.run_folder import IMAGES, changes, file_inputs, settings_of
from src.simulation import build_model
from utils_ import datasets
from utils_.augment import Augmenter, channel_statistics
from utils_.datasets.base import TRAIN, ImageDataset
from utils_.datasets.cache.decode import decode_alike
from utils_.errors import UserError
from utils_.scenario import Scenario, ScenarioSettings, build_scenario, client_names
from utils_.site_names import SiteNames

MODEL_FILE = "model.safetensors"
THUMBNAIL = 160  # pixels
AT_ONCE = 20  # whole files are held while they are decoded


@dataclass(frozen=True)
class PastRun:
    """A run and what it was made from.

    Attributes:
        folder: of the run.
        config: its settings.
        dataset: N images with C classes.
        scenario: who holds what.
        names: what the sites are called.
        paths: the file of each image; empty where images are drawn or lie in archives.
    """

    folder: Path
    config: Config
    dataset: ImageDataset
    scenario: Scenario
    names: SiteNames
    paths: Mapping[str, Path]

    @property
    def given(self) -> np.ndarray:
        """(N, C) labels that annotators wrote, NaN elsewhere; assumed negatives nobody wrote."""
        written = self.scenario.annotated & ~self.scenario.assumed
        owned = (self.scenario.client >= 0)[:, None]
        return np.where(written & owned, self.scenario.noisy, np.float32(np.nan))

    def site_folder(self, site: int) -> str:
        """A folder's name for a site; names of sites may hold anything."""
        name = self.names.names[site] if self.names.names else ""
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
        return f"site-{site}-{plain}" if plain else f"site-{site}"


def settings_of_run(folder: Path, **others: Any) -> Config:
    """The settings of the run in ``folder``, with those of ``others`` that are not None.

    Raises:
        UserError: there is no run, or another setting cannot be.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: no run here (config.yaml is absent); name a folder of save/runs"
        )
    given = {name: value for name, value in others.items() if value is not None}
    return resolve(settings_of(folder) | given)


def labels_of_run(folder: Path, config: Config) -> ImageDataset:
    """The data set without pixels, from the label files that the run was made from.

    Raises:
        UserError: they have changed since.
    """
    listed = load_dataset(config, quiet=True, labels_only=True)
    _refuse_others(folder, file_inputs(config, listed))
    return listed


def open_run(folder: Path, config: Config, *, quiet: bool) -> PastRun:
    """Load all that the run was made from.

    Raises:
        UserError: the files or images have changed since, or cannot be read.
    """
    with held_log():
        labels_of_run(folder, config)
        dataset = load_dataset(config, quiet=quiet)
        _refuse_others(folder, {IMAGES: dataset.image_key})
        scenario = build_scenario(dataset, config.part(ScenarioSettings), folder=None)
        paths = _image_files(config)
    names = client_names(scenario, dataset, split=config.split)
    return PastRun(folder, config, dataset, scenario, names, paths)


def _image_files(config: Config) -> dict[str, Path]:
    if config.dataset not in datasets.READERS:
        return {}
    folder = Path(config.data_dir or datasets.default_folder(config.dataset))
    listing = datasets.listed(config.dataset, folder, data_options(config, quiet=True))
    files = zip(listing.names, listing.files, strict=True)
    return {name: listing.folder / file for name, file in files}


def _refuse_others(folder: Path, present: dict[str, str]) -> None:
    changed = changes(folder, present)
    if changed:
        raise UserError(
            f"{folder}: the {' and '.join(changed)} are not those that the run was made from; "
            "restore them, or train again and audit that run"
        )


def predict_cross_fitted(
    run: PastRun, *, folds: int, repeats: int, rounds: int, progress: Callable[[], object]
) -> np.ndarray:
    """(N, C) probabilities by models that never saw the image; see :func:`cross_fit`."""
    config = plain_settings(run.config, rounds=rounds)
    classes = run.dataset.classes
    model = build_model(config, classes=len(classes), class_names=classes)
    return cross_fit(
        config,
        run.dataset,
        run.scenario,
        model=model,
        folds=folds,
        repeats=repeats,
        progress=progress,
    )


def predict_in_sample(run: PastRun) -> np.ndarray:
    """(N, C) probabilities by the run's last model, which was trained on the images.

    Raises:
        UserError: the run has no such model.
    """
    path = run.folder / MODEL_FILE
    if not path.is_file():
        raise UserError(f"{path}: is absent; let the run finish, or use --folds 2 or more")
    if run.config.method == "local":
        raise UserError("--folds 0: the sites of local have a model each; use --folds 2 or more")
    config, classes = replace(run.config, weights=str(path)), run.dataset.classes
    model = build_model(config, classes=len(classes), class_names=classes)
    training = np.flatnonzero(run.scenario.part == TRAIN)
    augmenter = Augmenter(*channel_statistics(run.dataset.images, training))
    rows = np.flatnonzero(run.scenario.client >= 0)
    probability = np.full(run.dataset.labels.shape, np.nan, np.float32)
    predict = Predictor(model, run.dataset.images, augmenter)
    probability[rows] = predict(model.snapshot(), rows)
    return probability


def thumbnails(run: PastRun, rows: Sequence[int]) -> list[np.ndarray]:
    """(H, W, 3) uint8 for each row, from the files again where the run had smaller ones."""
    config, paths = run.config, run.paths
    if not paths or config.image_size >= THUMBNAIL:
        return [run.dataset.images[row] for row in rows]
    shown: list[np.ndarray] = []
    for start in range(0, len(rows), AT_ONCE):
        files = [paths[run.dataset.files[row]] for row in rows[start : start + AT_ONCE]]
        shown += decode_alike(
            files, image_size=THUMBNAIL, fit=config.fit, pixel_range=config.pixel_range
        )
    return shown
