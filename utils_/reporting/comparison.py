"""Methods compared in one setting: intervals over seeds and images, and which one is best."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils_.reporting.image_scores import ImageScores, score_images
from utils_.reporting.records import RunRecord
from utils_.run_groups import (
    BASELINE,
    by_label,
    gap_shares,
    ordered_labels,
    selected_values,
    with_bounds,
)
from utils_.stats import Paired, drawn_difference, holm, paired_difference

if TYPE_CHECKING:
    import pandas as pd

SURE = 0.05


@dataclass(frozen=True)
class MethodRow:
    """The runs of one method in one setting.

    Attributes:
        label: as in the tables.
        method: its name on the command line.
        fair: neither leaky nor a bound, so that it may be called best.
        records: one a seed.
        values: {metric: (seeds,)} under the report's rule of selection.
        replicates: what tells the seeds apart, in the order of ``records``.
        gap: (n,) shares of the gap closed, of the seeds where it is defined.
        images: scores over drawn test images; None where no run has kept its predictions.
    """

    label: str
    method: str
    fair: bool
    records: Sequence[RunRecord]
    values: Mapping[str, np.ndarray]
    replicates: Sequence[str]
    gap: np.ndarray
    images: ImageScores | None = None


@dataclass(frozen=True)
class Contrast:
    """One method against another: over the seeds that both have, and over test images.

    Attributes:
        seeds: None without a common seed.
        images: None without predictions of both.
        p_seeds, p_images: corrected for all methods of the setting (Holm); NaN where untested.
    """

    seeds: Paired | None
    images: Paired | None
    p_seeds: float = np.nan
    p_images: float = np.nan


@dataclass(frozen=True)
class Setting:
    """One setting with its methods, in the order in which they are shown.

    Attributes:
        name: in full.
        head: what tells it from the other settings of the report.
        rows: FedAvg first, bounds last.
        facts: what parts it from others, e.g. ``noise`` and ``missing``, as numbers or text.
    """

    name: str
    head: str
    rows: Sequence[MethodRow]
    facts: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def fair(self) -> list[MethodRow]:
        """The methods that may be called best."""
        return [row for row in self.rows if row.fair]

    def row(self, label: str) -> MethodRow | None:
        """The method of that label, if it ran here."""
        return next((row for row in self.rows if row.label == label), None)

    @property
    def first(self) -> RunRecord:
        """A run that stands for what all share: data, classes, sites."""
        return self.rows[0].records[0]

    @property
    def fewest_seeds(self) -> int:
        """Seeds of the method that has the fewest."""
        return min(len(row.records) for row in self.rows)


def build_settings(
    frame: pd.DataFrame,
    heads: Mapping[str, str],
    records: Mapping[Path, RunRecord],
    *,
    selection: str,
    metrics: Sequence[str],
) -> list[Setting]:
    """Group runs as the tables do, with bounds lent to the settings that lack one.

    Args:
        frame: of :func:`utils_.run_groups.grouped_runs`.
        heads: {setting: what tells it from the others}.
        records: by folder.
        selection: the rule of selection.
        metrics: which are compared.
    """
    settings = []
    for name, head in heads.items():
        group = with_bounds(frame, name)
        own = frame[frame["setting"] == name]
        rows = by_label(group)
        made = [
            _method_row(rows[label], group, records, selection=selection, metrics=metrics)
            for label in ordered_labels(group)
        ]
        settings.append(Setting(name, head or name, made, _facts(own.iloc[0].to_dict())))
    return [_with_images(setting, selection) for setting in settings]


def _facts(run: Mapping[Hashable, object]) -> dict[str, object]:
    facts = {str(name): value for name, value in run.items()}
    own = {name[7:]: value for name, value in facts.items() if name.startswith("config.")}
    return own | {"base": facts["base"]}


def _method_row(
    runs: pd.DataFrame,
    group: pd.DataFrame,
    records: Mapping[Path, RunRecord],
    *,
    selection: str,
    metrics: Sequence[str],
) -> MethodRow:
    return MethodRow(
        label=str(runs["label"].iloc[0]),
        method=str(runs["method"].iloc[0]),
        fair=not bool(runs[["leaky", "bound"]].any(axis=None)),
        records=[records[Path(run)] for run in runs["run"]],
        values={metric: selected_values(runs, selection, metric) for metric in metrics},
        replicates=list(runs["replicate"]),
        gap=gap_shares(group, runs, selection),
    )


def _with_images(setting: Setting, selection: str) -> Setting:
    """The same with scores over drawn test images, read from the runs' predictions."""
    paired = ((row.label, zip(row.replicates, row.records, strict=True)) for row in setting.rows)
    chosen = {label: dict(records) for label, records in paired}
    found = score_images(chosen, selected=selection == "val_selected")
    rows = [replace(row, images=found.get(row.label)) for row in setting.rows]
    return replace(setting, rows=rows)


def contrasts(setting: Setting, against: str, metric: str = "mAP") -> dict[str, Contrast]:
    """Every fair method but ``against`` compared with it; over images in mAP alone."""
    base = setting.row(against)
    if base is None:
        return {}
    others = [row for row in setting.fair if row.label != against]
    found = {row.label: _contrast(row, base, metric) for row in others}
    p_seeds = holm([one.seeds.p if one.seeds else np.nan for one in found.values()])
    p_images = holm([one.images.p if one.images else np.nan for one in found.values()])
    return {
        label: replace(one, p_seeds=float(a), p_images=float(b))
        for (label, one), a, b in zip(found.items(), p_seeds, p_images, strict=True)
    }


def _contrast(row: MethodRow, base: MethodRow, metric: str) -> Contrast:
    own = dict(zip(row.replicates, row.values[metric], strict=True))
    other = dict(zip(base.replicates, base.values[metric], strict=True))
    pairs = np.array([(own[key], other[key]) for key in own if key in other], dtype=float)
    pairs = pairs[~np.isnan(pairs).any(axis=1)] if len(pairs) else pairs
    seeds = paired_difference(pairs[:, 0], pairs[:, 1]) if len(pairs) else None
    images = None
    if metric == "mAP" and row.images and base.images:
        images = _over_images(row.images, base.images)
    return Contrast(seeds, images)


def _over_images(first: ImageScores, second: ImageScores) -> Paired | None:
    """Over the seeds that both have kept; each draw is a mean over these."""
    common = [key for key in first.drawn if key in second.drawn]
    if not common:
        return None
    drawn = [np.mean([one.drawn[key] for key in common], axis=0) for one in (first, second)]
    seen = [np.mean([one.observed[key] for key in common]) for one in (first, second)]
    return drawn_difference(*drawn, observed=float(seen[0] - seen[1]))


def surely_best(setting: Setting, metric: str) -> str | None:
    """The method of the highest mean, if the paired tests say that it is better than every other.

    Both must: over three seeds or more by t, and in mAP over test images; each corrected for the
    number of methods (Holm). Where one cannot be made, none is called best.
    """
    means = {row.label: float(np.mean(row.values[metric])) for row in setting.fair}
    known = {label: mean for label, mean in means.items() if not np.isnan(mean)}
    if len(known) < 2:
        return None
    best = max(known, key=known.__getitem__)
    against = [one for label, one in contrasts(setting, best, metric).items() if label in known]
    return best if all(_worse(one, metric) for one in against) else None


def _worse(one: Contrast, metric: str) -> bool:
    if one.seeds is None or one.seeds.pairs < 3 or not one.p_seeds < SURE or one.seeds.mean >= 0:
        return False
    if metric != "mAP":
        return True
    return one.images is not None and one.images.mean < 0 and one.p_images < SURE


def baseline_of(setting: Setting) -> str | None:
    """FedAvg's label here, if it ran."""
    return BASELINE if setting.row(BASELINE) else None
