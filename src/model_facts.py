"""What a saved model says of itself, so that its file alone is enough to predict with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from src.weight_files import describe_weights
from utils_.datasets.base import ImageDataset
from utils_.files import atomic_path
from utils_.scenario import Scenario

if TYPE_CHECKING:
    from src.config import Config
    from src.simulation import Simulation
    from utils_.augment import Augmenter


@dataclass(frozen=True)
class ModelFacts:
    """The metadata of ``model.safetensors`` and ``best.safetensors``, of C classes.

    Attributes:
        model: the backbone, a name of ``models.MODELS``.
        classes: what the C logits mean.
        image_size, fit, pixel_range: how image files become arrays, as in a run's settings.
        pixel_bounds: the values of deep pixels that became 0 and 255 where ``pixel_range`` is
            ``auto``; None where no training image had more than 8 bits.
        mean, std: of each channel of the training images, scaled to [0, 1]; (3,).
        thresholds: (C,) where F1 on the validation part is best; None where nothing tells.
        trained: (C,) whether any site has annotated the class.
        method, dataset: what the run was.
        round: the round that the weights are of, from 0.
        models: how many models were scored; of several, the file holds the mean, scored by nobody.
    """

    model: str
    classes: tuple[str, ...]
    image_size: int
    fit: str
    pixel_range: str
    pixel_bounds: tuple[float, float] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    thresholds: tuple[float | None, ...]
    trained: tuple[bool, ...]
    method: str
    dataset: str
    round: int | None
    models: int = 1

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> ModelFacts:
        """Return what a file's metadata say; names of later versions are passed over.

        Raises:
            ValueError: something is absent or cannot be.
        """
        known = {field.name: table[field.name] for field in fields(cls) if field.name in table}
        try:
            facts = cls(**{name: _frozen(value) for name, value in known.items()})
            facts._check()
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        return facts

    def _check(self) -> None:
        for name, length in {"mean": 3, "std": 3, **self._of_classes}.items():
            if len(getattr(self, name)) != length:
                raise ValueError(f"'{name}' has not {length} entries")
        numbers = (*self.mean, *self.std, *(t for t in self.thresholds if t is not None))
        if not all(math.isfinite(number) for number in numbers) or min(self.std) <= 0:
            raise ValueError("a number that cannot be")

    @property
    def _of_classes(self) -> dict[str, int]:
        return dict.fromkeys(("thresholds", "trained"), len(self.classes))

    @property
    def cuts(self) -> np.ndarray:
        """(C,) float64 thresholds, NaN where there is none or the class is not trained."""
        chosen = [np.nan if cut is None else cut for cut in self.thresholds]
        return np.where(self.trained, np.array(chosen, np.float64), np.nan)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def absent_facts(table: Mapping[str, Any]) -> list[str]:
    """The facts that the metadata of an earlier version lack."""
    return [field.name for field in fields(ModelFacts) if field.name not in {*table, "models"}]


def trained_classes(dataset: ImageDataset, scenario: Scenario, *, true_labels: bool) -> np.ndarray:
    """(C,) bool, the classes that a site annotates; of a bound, those with a true label there."""
    seen = scenario.annotated & ~scenario.assumed
    labelled = ~np.isnan(dataset.best_known) if true_labels else seen
    found: np.ndarray = labelled[scenario.client >= 0].any(axis=0)
    return found


def describe_model(
    config: Config,
    dataset: ImageDataset,
    augmenter: Augmenter,
    *,
    trained: np.ndarray,
    thresholds: np.ndarray,
    round: int | None,
    models: int = 1,
) -> ModelFacts:
    """The facts of one model of a run; ``thresholds`` is (C,) with NaN where there is none."""
    return ModelFacts(
        model=config.model,
        classes=dataset.classes,
        image_size=config.image_size,
        fit=config.fit,
        pixel_range=config.pixel_range,
        pixel_bounds=dataset.pixel_bounds,
        mean=tuple(augmenter.mean.tolist()),
        std=tuple(augmenter.std.tolist()),
        thresholds=tuple(None if np.isnan(cut) else cut for cut in thresholds.tolist()),
        trained=tuple(trained.tolist()),
        method=config.method,
        dataset=config.dataset,
        round=round,
        models=models,
    )


def save_models(simulation: Simulation, folder: Path) -> None:
    """Write the last and the best model of a finished run, each with its facts."""
    models = {
        "last": ("model.safetensors", simulation.scored, simulation.config.rounds - 1),
        "best": ("best.safetensors", simulation.best, simulation.best_round),
    }
    for which, (name, vector, round) in models.items():
        cuts = simulation.thresholds[which]
        _save(simulation, vector, folder / name, round=round, thresholds=cuts)


def _save(
    simulation: Simulation, vector: Tensor, path: Path, *, round: int, thresholds: np.ndarray
) -> None:
    from safetensors.torch import save_file

    several = vector.view(-1, vector.shape[-1])
    facts = describe_model(
        simulation.config,
        simulation.dataset,
        simulation.predictor.augmenter,
        trained=simulation.trained,
        thresholds=thresholds,
        round=round,
        models=len(several),
    )
    one = several.mean(dim=0)  # of the sites' own models: their mean
    with atomic_path(path) as temporary:
        metadata = describe_weights(**asdict(facts))
        save_file(simulation.model.unpack(one), temporary, metadata=metadata)
