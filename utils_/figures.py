"""A figure of results: mAP of every method in every setting, with its seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils_.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEAN, SEED, LINE = "#0072b2", "#8fb8d6", "#d0d0d0"  # told apart by colour-blind readers too
OWN, BASELINE = "fednml", "fedavg"


def draw_overview(values: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draw a panel a setting, a line a method: each seed a pale dot, their mean a dark one.

    A dashed line marks FedAvg's mean.

    Args:
        values: {setting: {method: (seeds,) mAP}}, see :func:`utils_.report.overview_values`.
        path: the file, in a format that its suffix tells.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for methods in values.values() for name in methods))
    figure = Figure(
        figsize=(1.2 + 3.1 * len(values), 0.9 + 0.26 * len(names)), layout="constrained"
    )
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for panel, (setting, methods) in zip(panels, values.items(), strict=True):
        _draw_panel(panel, names, methods)
        panel.set_title(setting.replace(", ", "\n"), fontsize=9)
    figure.supxlabel("mAP on the test set (pale: each seed, dark: their mean)", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.removeprefix(".") or "png")


def _draw_panel(panel: Axes, names: list[str], methods: Mapping[str, np.ndarray]) -> None:
    for place, name in enumerate(names):
        seeds = methods.get(name, np.zeros(0))
        panel.plot(seeds, np.full(len(seeds), place), "o", color=SEED, markersize=4)
        if len(seeds):
            panel.plot(seeds.mean(), place, "D" if name == OWN else "o", color=MEAN, markersize=6)
    if BASELINE in methods:
        panel.axvline(methods[BASELINE].mean(), color="#555555", linestyle="--", linewidth=0.8)
    panel.set_yticks(range(len(names)), names, fontsize=9)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(color=LINE, linewidth=0.5)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
