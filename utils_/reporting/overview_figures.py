"""Figures over settings: mAP against noise, against missing labels, and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.reporting.comparison import Setting
from utils_.reporting.drawing import ReportFigure, legend, look, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 3
NAMES = {"noise": "noise rate", "missing": "missing, share or count"}


def _same_but(setting: Setting, name: str) -> str:
    """All that parts a setting from others, but for one fact."""
    other = {"noise": "missing", "missing": "noise"}[name]
    kept = [setting.facts["base"]] + [setting.facts.get(k) for k in (other, f"{other}_type")]
    kind = setting.facts.get(f"{name}_type") if setting.facts.get(name) else None
    whole = isinstance(setting.facts.get(name), int) and name == "missing"  # a count of classes
    return repr((kept, kind, whole, setting.facts.get("assume_negative")))


def _series(settings: Sequence[Setting], name: str) -> list[list[Setting]]:
    """Settings that differ in the level of one flaw alone, by that level; the longest first."""
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(_same_but(setting, name), []).append(setting)
    rising = [sorted(own, key=lambda s: _level(s, name)) for own in found.values() if len(own) > 1]
    return sorted(rising, key=lambda own: -len(own))


def _level(setting: Setting, name: str) -> float:
    return float(str(setting.facts.get(name, 0)))


def against(settings: Sequence[Setting], name: str, rule: str) -> ReportFigure:
    """mAP against the level of ``noise`` or ``missing``."""
    title = {"noise": "mAP against noise", "missing": "mAP against missing labels"}[name]
    series = _series(settings, name)[:MOST_PANELS]
    if not series:
        return ReportFigure(
            f"against-{name}", title, absent=f"It takes settings that differ in {name} alone."
        )
    figure, panels = new_figure(len(series), height=3.1)
    labels = list(dict.fromkeys(row.label for own in series for s in own for row in s.rows))
    for panel, own in zip(panels, series, strict=True):
        for place, label in enumerate(labels):
            _draw_levels(panel, own, name, label, place)
        other = {"noise": "missing", "missing": "noise"}[name]
        held = f"{other} {_level(own[0], other):g}"
        name_axes(panel, NAMES[name], "mAP on the test set" * (panel is panels[0]), held)
    legend(figure, panels[0])
    return ReportFigure(
        f"against-{name}",
        title,
        f"Test set, {rule}. Lines: mean over seeds; bands: from the lowest to the highest seed. "
        "Settings: " + "; ".join(setting.head for own in series for setting in own) + ".",
        figure,
    )


def _draw_levels(panel: Axes, series: Sequence[Setting], name: str, label: str, place: int) -> None:
    there = [(_level(s, name), row.values["mAP"]) for s in series if (row := s.row(label))]
    there = [(level, values) for level, values in there if not np.isnan(values).any()]
    if not there:
        return
    levels, style = [level for level, _ in there], look(place)
    panel.plot(
        levels, [v.mean() for _, v in there], marker="o", ms=3.5, lw=1.2, label=label, **style
    )
    ends = [v.min() for _, v in there], [v.max() for _, v in there]
    panel.fill_between(levels, *ends, color=style["color"], alpha=0.15, linewidth=0)


def attacks(settings: Sequence[Setting], rule: str) -> ReportFigure:
    """mAP of every setting that has an attack, beside those that have none."""
    title = "Attacks"
    attacked = [s for s in settings if str(s.facts.get("attack", "none")) != "none"]
    if not attacked:
        return ReportFigure(
            "attacks", title, absent="No site misbehaves in any of the runs (--attack)."
        )
    labels = list(dict.fromkeys(row.label for s in settings for row in s.rows))
    figure, (panel,) = new_figure(height=1.2 + 0.32 * len(settings))
    for line, setting in enumerate(settings):
        for row in setting.rows:
            place = labels.index(row.label)
            values = row.values["mAP"]
            style = {"color": look(place)["color"], "marker": "oDs"[place // 8 % 3]}
            panel.plot(values.mean(), line, ls="none", ms=5, label=row.label, **style)
    panel.set_yticks(range(len(settings)), [s.head for s in settings], parse_math=False)
    panel.set_ylim(len(settings) - 0.5, -0.5)
    panel.set_xlim(left=0)
    name_axes(panel, "mAP on the test set", "")
    _once(panel)
    legend(figure, panel)
    return ReportFigure(
        "attacks", title, f"Test set, {rule}; mean over seeds. Each line is a setting.", figure
    )


def _once(panel: Axes) -> None:
    """Name every method once in the legend."""
    seen: set[str] = set()
    for line in panel.lines:
        name = str(line.get_label())
        line.set_label(f"_{name}" if name in seen else name)
        seen.add(name)


def overview_pictures(settings: Sequence[Setting], rule: str) -> Sequence[ReportFigure]:
    """All figures of this file."""
    flaws = [against(settings, name, rule) for name in ("noise", "missing")]
    return [*flaws, attacks(settings, rule)]
