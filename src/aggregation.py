"""Rules that turn the clients' vectors into the next global vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from src.messages import Report


def weighted_mean(reports: Iterable[Report]) -> Tensor:
    """Mean of the reported vectors, weighted by images (McMahan et al., AISTATS 2017).

    Reports are folded into one float64 sum as they arrive, so memory does not grow with K.
    """
    total: Tensor | None = None
    samples = 0
    for report in reports:
        part = report.model.double().mul_(report.samples)
        total = part if total is None else total.add_(part)
        samples += report.samples
    if total is None:
        raise ValueError("no report to aggregate")
    return (total / samples).float()


AGGREGATORS: dict[str, Callable[[Iterable[Report]], Tensor]] = {"mean": weighted_mean}
