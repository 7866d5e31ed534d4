"""Rules that turn the clients' vectors into the next global vector (docs/methods.md 13).

- Vectors are float32, sums and distances are float64. Ties go to the lower client number, so the
  order of arrival does not matter.
- ``mean``, ``uniform``, ``classwise``, and ``clip`` with a given radius fold the reports one at a
  time. The other rules need all vectors of a round at once.
- A vector holds the parameters, then the BatchNorm statistics. Rules for each coordinate treat both
  alike. Norms and distances are those of the parameters, because the statistics are on another
  scale and would drown them. The statistics then move with the same weights, so each new one lies
  between reported ones and variances stay positive.
- krum, multikrum, geometric and clip do not see a site that lies in its statistics alone.
  ``--buffers server`` takes no statistics from anybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from src.messages import ANNOTATED_CELLS, Report
from utils_.arrays import LARGEST, Expected, array_fault, largest_size

if TYPE_CHECKING:
    from src.models import FlatModel

TOLERANCE = 1e-12  # relative change of the objective at which Weiszfeld's iteration ends
CHUNK = 2**22  # numbers in one float64 work array


@dataclass(frozen=True)
class Layout:
    """What lies where in a (P,) vector.

    Attributes:
        parameters: their number; BatchNorm statistics follow.
        weight: place of the head's (C, D) weight, of which row c belongs to class c; empty where
            there is no head.
        bias: place of its (C,) bias.
        variances: places of the running variances.
    """

    parameters: int
    weight: slice = field(default_factory=lambda: slice(0, 0))
    bias: slice = field(default_factory=lambda: slice(0, 0))
    variances: tuple[slice, ...] = ()

    @property
    def classes(self) -> int:
        """C, the number of rows of the head."""
        return int(self.bias.stop - self.bias.start)

    @property
    def lengths(self) -> dict[str, int]:
        """Of the axes of arrays in reports, by name; those of the head where there is one."""
        known = {"parameters": self.parameters}
        if self.classes:
            features = (self.weight.stop - self.weight.start) // self.classes
            known |= {"classes": self.classes, "features": features}
        return known

    def head(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the head's (C, D) weight and (C,) bias in a (P,) vector."""
        return vector[self.weight].view(self.classes, -1), vector[self.bias]

    @classmethod
    def of(cls, model: FlatModel) -> Layout:
        """The layout of a model's vector."""
        weight, bias = (slice(piece.start, piece.stop) for piece in model.head_slices)
        found = [piece for piece in model.slices if piece.name.endswith("running_var")]
        variances = tuple(slice(piece.start, piece.stop) for piece in found)
        return cls(model.parameter_count, weight, bias, variances)


@dataclass(frozen=True)
class Frame:
    """What a rule may know beside the reports.

    Attributes:
        model: (P,) float32, the global model that the clients were sent.
        layout: what lies where in it.
        parameters: those of the rule, complete, see src/aggregator_options.py.
        needs: names of the facts that every report must hold, see :class:`Aggregator`.
        expected: what the other arrays of a report must be, by name; axes are named as in
            :attr:`Layout.lengths`.
    """

    model: Tensor
    layout: Layout
    parameters: dict[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    expected: Mapping[str, Expected] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregator:
    """An aggregation rule, to be called with the reports and the frame.

    Attributes:
        combine: gives the next global vector, (P,) float32; it may read the reports once.
        needs: facts that each site puts into its report for this rule, see
            :data:`src.client.SITE_FACTS`.
    """

    combine: Callable[[Iterable[Report], Frame], Tensor]
    needs: tuple[str, ...] = ()

    def __call__(self, reports: Iterable[Report], frame: Frame) -> Tensor:
        return self.combine(reports, frame)


def fault(report: Report, frame: Frame) -> str | None:
    """Why a report cannot be used; None where it can."""
    model, expected = report.model, frame.model
    if model.shape != expected.shape:
        return f"its model has shape {tuple(model.shape)} instead of {tuple(expected.shape)}"
    size = largest_size(model)
    if not math.isfinite(size):
        return "its model holds values that are not finite"
    if size > LARGEST:
        return f"its model holds values beyond {LARGEST:g}, as training that diverges makes"
    variances = [model[place] for place in frame.layout.variances]
    if variances and torch.cat(variances).min() < 0:
        return "its model holds variances below 0"
    for name in frame.needs:
        if not _plausible(report.extras.get(name), report, frame.layout):
            return f"its counts '{name}' are absent or impossible"
    lengths = frame.layout.lengths
    for name in {**frame.expected, **report.extras}:
        array = report.extras.get(name)
        if wrong := array_fault(array, frame.expected.get(name), lengths=lengths):
            return f"its array '{name}' {wrong}"
    return None


def _plausible(counts: np.ndarray | None, report: Report, layout: Layout) -> bool:
    """Whether these are counts of a site's images, one for each class."""
    if counts is None or np.shape(counts) != (layout.classes,):
        return False
    return bool(((counts >= 0) & (counts <= report.samples)).all())  # of NaN both are false


# ---- rules that fold the reports one at a time


def mean_by_images(reports: Iterable[Report], frame: Frame | None = None) -> Tensor:
    """Mean of the reported vectors, weighted by images (McMahan et al., AISTATS 2017).

    Reports are folded into one float64 sum as they arrive, so memory does not grow with K.
    """
    return _fold((report, report.samples) for report in reports)


def uniform_mean(reports: Iterable[Report], frame: Frame | None = None) -> Tensor:
    """Mean of the reported vectors, each site counting the same; a suppressed one less."""
    return _fold((report, report.credit) for report in reports)


def _fold(weighted: Iterable[tuple[Report, float]]) -> Tensor:
    total: Tensor | None = None
    weights = 0.0
    for report, weight in weighted:
        part = report.model.to(torch.float64, copy=True).mul_(weight)
        total = part if total is None else total.add_(part)
        weights += weight
    if total is None:
        raise ValueError("no report to aggregate")
    return (total / weights).float()


def classwise(reports: Iterable[Report], frame: Frame) -> Tensor:
    """The mean, but row c of the head weighted by the images in which a site annotates class c.

    After the class-wise head of FedLSM (Deng et al., MICCAI 2023), whose weights are counts of
    positives, pseudo-labels included; here they are annotated cells, which every method has. A
    class that nobody annotates keeps the plain mean of its row.
    """

    def seen(report: Report) -> np.ndarray:
        return report.extras[ANNOTATED_CELLS] * report.credit

    head = HeadMean(frame.layout)
    return head.write(mean_by_images(head.tap(reports, seen)))


class HeadMean:
    """Folds the heads of passing reports into one sum, row c weighted by the seen cases of c."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._weight = self._bias = self._seen = torch.zeros(())

    def tap(
        self, reports: Iterable[Report], seen: Callable[[Report], np.ndarray]
    ) -> Iterator[Report]:
        """Hand the reports on, one at a time, and take their heads in passing.

        Args:
            reports: those of a round.
            seen: gives the (C,) cases of each class that a report stands for.
        """
        for report in reports:
            self._fold(report.model, torch.from_numpy(seen(report)).double())
            yield report

    def _fold(self, vector: Tensor, counts: Tensor) -> None:
        weight, bias = self._layout.head(vector)
        self._seen = self._seen + counts
        self._weight = self._weight + counts[:, None] * weight.double()
        self._bias = self._bias + counts * bias.double()

    def write(self, vector: Tensor) -> Tensor:
        """A copy of ``vector`` with the means in it, but for the classes that nobody has seen."""
        vector = vector.clone()
        weight, bias = self._layout.head(vector)
        rows = self._seen > 0
        weight[rows] = (self._weight[rows] / self._seen[rows, None]).to(vector)
        bias[rows] = (self._bias[rows] / self._seen[rows]).to(vector)
        return vector


def clip(reports: Iterable[Report], frame: Frame) -> Tensor:
    """Weighted mean of updates shortened to at most ``radius`` (Sun et al., 2019).

    A radius of 0 takes the median of the round's norms, for which all vectors must be held.
    """
    radius = frame.parameters["radius"]
    if radius == 0:
        reports = _in_order(reports)
        radius = float(np.median([_update_norm(report, frame) for report in reports]))
    return mean_by_images(_shortened(report, frame, radius) for report in reports)


def _update_norm(report: Report, frame: Frame) -> float:
    own = slice(frame.layout.parameters)
    return float((report.model[own].double() - frame.model[own].double()).norm())


def _shortened(report: Report, frame: Frame, radius: float) -> Report:
    norm = _update_norm(report, frame)
    if norm <= radius:
        return report
    start = frame.model.double()
    return replace(report, model=start + (report.model.double() - start) * (radius / norm))


# ---- rules that need all vectors of a round


def _in_order(reports: Iterable[Report]) -> list[Report]:
    held = sorted(reports, key=lambda report: report.client)
    if not held:
        raise ValueError("no report to aggregate")
    return held


def _chunks(vectors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Cut n vectors alike; yield each place and its (n, size) float64 numbers."""
    size = max(1, CHUNK // len(vectors))
    for start in range(0, len(vectors[0]), size):
        place = slice(start, start + size)
        yield place, torch.stack([vector[place] for vector in vectors]).double()


def coordinate_median(vectors: Sequence[Tensor]) -> Tensor:
    """Median of each coordinate (Yin et al., ICML 2018); of an even number the middle two's mean.

    ``torch.median`` would give the lower of the two.
    """
    result = torch.empty(len(vectors[0]))
    for place, numbers in _chunks(vectors):
        ordered, n = numbers.sort(dim=0).values, len(numbers)
        result[place] = ((ordered[(n - 1) // 2] + ordered[n // 2]) / 2).float()
    return result


def trimmed_mean(vectors: Sequence[Tensor], *, trim: int) -> Tensor:
    """Mean of each coordinate without its ``trim`` smallest and largest (Yin et al., ICML 2018)."""
    if 2 * trim >= len(vectors):
        raise ValueError(f"nothing is left of {len(vectors)} values without {trim} at each end")
    result = torch.empty(len(vectors[0]))
    for place, numbers in _chunks(vectors):
        kept = numbers.sort(dim=0).values[trim : len(numbers) - trim]
        result[place] = kept.mean(dim=0).float()
    return result


def krum_scores(vectors: Sequence[Tensor], *, attackers: int) -> Tensor:
    """(n,) float64, sum of squared distances to the n - f - 2 nearest others, f = ``attackers``.

    Blanchard et al., NeurIPS 2017. At least one neighbour is used; that f is small enough for n
    (2f + 3) is checked where settings are. A lone vector scores 0.
    """
    n = len(vectors)
    squares = torch.zeros(n, n, dtype=torch.float64)
    for _, numbers in _chunks(vectors):  # direct differences: products would cancel
        squares += torch.cdist(numbers, numbers, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    squares.fill_diagonal_(np.inf)
    neighbours = min(max(n - attackers - 2, 1), n - 1)
    return squares.sort(dim=1).values[:, :neighbours].sum(dim=1)


def geometric_weights(
    vectors: Sequence[Tensor], weights: Tensor, *, iterations: int, smoothing: float
) -> Tensor:
    """Shares (n,) of the vectors in their geometric median (RFA: Pillutla et al., IEEE TSP 2022).

    Smoothed Weiszfeld steps from the weighted mean, on whole vectors and not tensor by tensor.

    Args:
        weights: (n,) float64, such as numbers of images.
        iterations: most steps.
        smoothing: a distance below it counts as this much.
    """
    weights = weights / weights.sum()
    shares, objective = weights, np.inf
    for _ in range(iterations):
        center = _combination(vectors, shares)
        distances = torch.stack([(vector.double() - center).norm() for vector in vectors])
        previous, objective = objective, float(weights @ distances)
        if abs(previous - objective) <= TOLERANCE * objective:
            break
        shares = weights / distances.clamp_min(smoothing)
        shares = shares / shares.sum()
    return shares


def _combination(vectors: Sequence[Tensor], shares: Tensor) -> Tensor:
    total = torch.zeros(len(vectors[0]), dtype=torch.float64)
    for vector, share in zip(vectors, shares, strict=True):
        total.add_(vector.double(), alpha=float(share))
    return total


def _median(reports: Iterable[Report], frame: Frame) -> Tensor:
    return coordinate_median([report.model for report in _in_order(reports)])


def _trimmed(reports: Iterable[Report], frame: Frame) -> Tensor:
    """Cuts floor(share x n) of the n reports received at each end."""
    held = _in_order(reports)
    trim = int(frame.parameters["share"] * len(held) + 1e-9)  # 0.29 of 100 is 28.99...
    if trim == 0:
        return uniform_mean(held)
    return trimmed_mean([report.model for report in held], trim=trim)


def _best_by_krum(reports: Iterable[Report], frame: Frame, keep: int) -> Tensor:
    """Mean of the ``keep`` best; f and ``keep`` are lowered where fewer reports came in."""
    held = _in_order(reports)
    n, own = len(held), slice(frame.layout.parameters)
    attackers = max(0, min(int(frame.parameters["assumed_attackers"]), (n - 3) // 2))
    scores = krum_scores([report.model[own] for report in held], attackers=attackers)
    best = scores.argsort(stable=True)[: min(keep, n - attackers)].sort().values
    return uniform_mean(held[i] for i in best.tolist())


def _krum(reports: Iterable[Report], frame: Frame) -> Tensor:
    return _best_by_krum(reports, frame, 1)


def _multikrum(reports: Iterable[Report], frame: Frame) -> Tensor:
    return _best_by_krum(reports, frame, int(frame.parameters["keep"]))


def _geometric(reports: Iterable[Report], frame: Frame) -> Tensor:
    held = _in_order(reports)
    own = slice(frame.layout.parameters)
    shares = geometric_weights(
        [report.model[own] for report in held],
        torch.tensor([report.samples for report in held], dtype=torch.float64),
        iterations=int(frame.parameters["iterations"]),
        smoothing=frame.parameters["smoothing"],
    )
    return _combination([report.model for report in held], shares).float()


AGGREGATORS: dict[str, Aggregator] = {
    "mean": Aggregator(mean_by_images),
    "uniform": Aggregator(uniform_mean),
    "median": Aggregator(_median),
    "trimmed": Aggregator(_trimmed),
    "krum": Aggregator(_krum),
    "multikrum": Aggregator(_multikrum),
    "geometric": Aggregator(_geometric),
    "clip": Aggregator(clip),
    "classwise": Aggregator(classwise, needs=(ANNOTATED_CELLS,)),
}
