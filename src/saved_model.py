"""A model of a finished run, opened to predict images that nobody has labelled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from src.config import resolve
from src.evaluator import Evaluator
from src.job import load_dataset
from src.methods import method_class
from src.model_facts import ModelFacts, absent_facts, describe_model, trained_classes
from src.models import MODELS, FlatModel, Predictor, build_module
from src.run_folder import IMAGES, SCENARIO, changes, settings_of
from src.simulation import resolve_device
from src.weight_files import SavedWeights, read_weights
from utils_.augment import Augmenter, channel_statistics
from utils_.datasets.base import TRAIN, VAL
from utils_.errors import Diverged, UserError
from utils_.scenario import ScenarioSettings, build_scenario
from utils_.truth import reference

logger = logging.getLogger("fednml")
FILES = {"best": "best.safetensors", "last": "model.safetensors"}


@dataclass(frozen=True)
class SavedModel:
    """Weights, and all that is needed to use them as the run did.

    Attributes:
        path: the file.
        facts: what it says of itself.
        model: the network, on its device.
        augmenter: normalises batches.
    """

    path: Path
    facts: ModelFacts
    model: FlatModel
    augmenter: Augmenter

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities of (n, H, W, 3) uint8 images: (n, C) float32, NaN of untrained classes."""
        try:
            found = self.model.predict(images, np.arange(len(images)), augmenter=self.augmenter)
        except Diverged as error:
            raise UserError(f"{self.path}: {error}; the training had failed, train anew") from error
        found[:, ~np.array(self.facts.trained)] = np.nan
        return found

    def plain_module(self) -> nn.Module:
        """A copy of the network on the CPU, in evaluation mode, that shares nothing with it."""
        module = _module(self.facts)
        state = self.model.unpack(self.model.snapshot())
        module.load_state_dict(state, strict=False)  # integer buffers are in no file
        return module.eval()


def open_model(run: Path, *, which: str, device: str, quiet: bool = True) -> SavedModel:
    """Open a run's model.

    Args:
        run: the run's folder, or one of its ``.safetensors`` files, which is enough alone.
        which: a key of :data:`FILES`, for a folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        quiet: no progress bar, should images have to be decoded.

    Raises:
        UserError: there is no such model, it cannot be read, or it cannot predict.
    """
    path = _file(run, which)
    saved, place = read_weights(path, option=""), resolve_device(device)
    absent = absent_facts(saved.facts)
    if absent and (path.parent / "config.yaml").is_file():
        facts, model = _recovered(path, saved, device=place, quiet=quiet)
    elif absent:
        raise UserError(
            f"{path}: lacks {', '.join(absent)}, as files of earlier versions and of other "
            "programs do; give the folder of the run, whose data tell them, or train anew"
        )
    else:
        facts = _facts(path, saved.facts)
        model = _loaded(path, saved, FlatModel(_module(facts), device=place))
    _refuse_mean(path, facts)
    return SavedModel(path, facts, model, Augmenter(*map(torch.tensor, (facts.mean, facts.std))))


def _file(run: Path, which: str) -> Path:
    if run.is_file():
        return run
    if not run.is_dir():
        raise UserError(f"{run}: no such run; give a folder such as save/runs/NAME, or a file")
    path = run / FILES[which]
    if path.is_file():
        return path
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: holds no run; give a folder such as save/runs/NAME, or a file")
    if (run / "DONE").exists():
        raise UserError(f"{path}: is absent, though the run is finished; give the other --model")
    raise UserError(
        f"{run}: has no model before it is finished; go on with python src/main_fednml.py "
        f"--resume {run}"
    )


def _facts(path: Path, table: Mapping[str, Any]) -> ModelFacts:
    try:
        facts = ModelFacts.read(table)
    except ValueError as error:
        raise UserError(
            f"{path}: its metadata are damaged ({error}); take another copy of the file"
        ) from error
    if facts.model not in MODELS:
        raise UserError(f"{path}: holds a model '{facts.model}', which this version does not know")
    return facts


def _module(facts: ModelFacts) -> nn.Module:
    return build_module(facts.model, classes=len(facts.classes), weights="none", seed=0)


def _loaded(path: Path, saved: SavedWeights, model: FlatModel) -> FlatModel:
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.tensors.items()}
    wrong = [piece.name for piece in model.slices if shapes.get(piece.name) != piece.shape]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is absent or of another shape; take another copy")
    vector = model.pack(saved.tensors)
    if not torch.isfinite(vector).all():
        raise UserError(f"{path}: holds NaN or infinity, so the training had failed; train anew")
    model.load(vector)
    return model


def _refuse_mean(path: Path, facts: ModelFacts) -> None:
    if facts.models > 1:
        raise UserError(
            f"{path}: --method {facts.method} trains a model at each site ({facts.models}) and "
            "none for all: this file is their mean, which nobody has scored; predict with a run "
            "of another method"
        )


def _recovered(
    path: Path, saved: SavedWeights, *, device: torch.device, quiet: bool
) -> tuple[ModelFacts, FlatModel]:
    """The facts of a file of an earlier version, found anew from the data of its run."""
    config = resolve(settings_of(path.parent))
    if not method_class(config.method).exchange:
        raise UserError(f"{path}: --method {config.method} trains no model for all sites")
    logger.info("%s: of an earlier version; what it lacks is found from the data of its run", path)
    dataset = load_dataset(config, quiet=quiet)
    scenario = build_scenario(dataset, config.part(ScenarioSettings), folder=None)
    _refuse_other_data(path.parent, {IMAGES: dataset.image_key, SCENARIO: scenario.key})
    module = build_module(config.model, classes=len(dataset.classes), weights="none", seed=0)
    model = _loaded(path, saved, FlatModel(module, device=device))
    rows = np.flatnonzero(scenario.part == TRAIN)
    augmenter = Augmenter(*channel_statistics(dataset.images, rows))
    predictor = Predictor(model, dataset.images, augmenter)
    truth = reference(dataset, scenario, noise=config.corrupts)
    evaluator = Evaluator(dataset, scenario, predictor, truth=truth)
    tuned_on = [VAL] if evaluator.has(VAL) else []
    predicted = {part: evaluator.predict_each(model.snapshot(), part) for part in tuned_on}
    bound = method_class(config.method).true_labels
    facts = describe_model(
        config,
        dataset,
        augmenter,
        trained=trained_classes(dataset, scenario, true_labels=bound),
        thresholds=evaluator.thresholds(predicted),
        round=None,
    )
    return facts, model


def _refuse_other_data(folder: Path, present: Mapping[str, str]) -> None:
    changed = changes(folder, present)
    if changed:
        raise UserError(
            f"{folder}: of an earlier version, and the {' and '.join(changed)} are not those of "
            "its run any more, which would tell what its model lacks; restore them or train anew"
        )
