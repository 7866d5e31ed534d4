"""Tables of the report: one list of cells for the page, for Markdown and for LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils_.latex import booktabs
from utils_.markdown import aligned, plain_cell
from utils_.reporting.comparison import (
    SURE,
    Contrast,
    MethodRow,
    Setting,
    baseline_of,
    contrasts,
    surely_best,
)
from utils_.run_groups import BASELINE
from utils_.stats import (
    FEW_SEEDS,
    LEAST_SEEDS,
    Paired,
    average_ranks,
    critical_difference,
    holm,
    t_interval,
    wilcoxon,
)

METRICS = {
    "mAP": "mAP",
    "AUROC": "macro_auroc",
    "F1 (val. thr.)": "macro_f1_tuned",
    "BACC (val. thr.)": "balanced_accuracy_tuned",
    "ECE": "ece",
}
NEVER_BOLD = ("ece",)  # the lowest would be best, and it follows the prior of each method
ALSO_READ = ("mAP_annotated", "mAP_missing")  # by figures
DASH = "–"
FEWEST_SETTINGS = 6  # of fewer the signed-rank test cannot fall below 0.05


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: the number or name.
        number: what it sorts by; None: by its text.
        bold: surely the best of its column.
        span: the interval behind it.
    """

    text: str
    number: float | None = None
    bold: bool = False
    span: str = ""

    @property
    def whole(self) -> str:
        """Text and interval in one."""
        return f"{self.text} {self.span}".strip()


@dataclass(frozen=True)
class ReportTable:
    """A table, or the reason why there is none.

    Attributes:
        name: unlike that of any other table of the report.
        title: above it.
        caption: what it shows, and how the round was chosen.
        head: names of the columns.
        rows: as long as ``head``; the first cell names the row.
        absent: why there are no rows.
    """

    name: str
    title: str
    caption: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    absent: str = ""

    def markdown(self) -> str:
        """As Markdown, with its title and caption."""
        if self.absent:
            return f"### {plain_cell(self.title)}\n\n{plain_cell(self.absent)}"
        rows = [[_marked(plain_cell(cell.whole), cell) for cell in row] for row in self.rows]
        table = aligned([[plain_cell(name) for name in self.head], *rows])
        return f"### {plain_cell(self.title)}\n\n{table}\n\n{plain_cell(self.caption)}"

    def latex(self) -> str:
        """For a paper, with its caption; blank where there are no rows."""
        if self.absent:
            return ""
        rows = [[_marked(cell.whole, cell) for cell in row] for row in self.rows]
        return booktabs(self.head, rows, caption=f"{self.title}. {self.caption}")


def _marked(text: str, cell: Cell) -> str:
    return f"**{text}**" if cell.bold else text


def _number(value: float) -> str:
    return DASH if np.isnan(value) else f"{value:.3f}"


def _sorted(value: float) -> float | None:
    return None if np.isnan(value) else value


def _span(low: float, high: float, *, sign: str = "") -> str:
    return "" if np.isnan(low) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def summary(setting: Setting, rule: str) -> ReportTable:
    """Scores of every method with intervals, and what its runs cost."""
    shown = {h: m for h, m in METRICS.items() if not _unknown(setting, m)}
    best = {m: None if m in NEVER_BOLD else surely_best(setting, m) for m in shown.values()}
    over_images = any(row.images for row in setting.rows)
    head = [
        "method",
        *shown,
        *["mAP over test images"] * over_images,
        "gap closed",
        "seeds",
        "seconds",
    ]
    rows = []
    for row in setting.rows:
        cells = [Cell(row.label)]
        cells += [_score(row, metric, best[metric]) for metric in shown.values()]
        cells += [_image_score(row)] * over_images
        took = float(np.mean([r.result.get("seconds", np.nan) for r in row.records]))
        cells += [_gap(row), Cell(str(len(row.records)), len(row.records))]
        rows.append([*cells, Cell(DASH if np.isnan(took) else f"{took:.0f}", _sorted(took))])
    return ReportTable("scores", "Scores", _summary_caption(setting, rule, best), head, rows)


def _unknown(setting: Setting, metric: str) -> bool:
    return all(np.isnan(row.values[metric]).all() for row in setting.rows)


def _score(row: MethodRow, metric: str, best: str | None) -> Cell:
    found = t_interval(row.values[metric])
    span = _span(found.low, found.high)
    return Cell(_number(found.mean), _sorted(found.mean), row.label == best, span)


def _image_score(row: MethodRow) -> Cell:
    if row.images is None:
        return Cell(DASH)
    mean, low, high = row.images.interval()
    return Cell(_number(mean), _sorted(mean), span=_span(low, high))


def _gap(row: MethodRow) -> Cell:
    if not len(row.gap):
        return Cell("")
    mean = 100 * float(row.gap.mean())
    some = f" ({len(row.gap)} of {len(row.records)})" * (len(row.gap) < len(row.records))
    return Cell(f"{mean:.0f} %{some}", mean)


def _summary_caption(setting: Setting, rule: str, best: Mapping[str, str | None]) -> str:
    texts = [f"Test set, {rule}."]
    if setting.fewest_seeds < LEAST_SEEDS:
        texts.append(f"WARNING: {FEW_SEEDS} over seeds, and nothing is called best.")
    else:
        texts.append("In brackets: 95 % interval of the mean over seeds (Student's t).")
        if any(best.values()):
            texts.append(
                "Bold: better than every other method by paired tests over seeds and, in mAP, over "
                f"test images (p < {SURE:g} after Holm's correction)."
            )
        else:
            texts.append("Nothing is bold: no method is surely better than every other.")
    if any(row.images for row in setting.rows):
        texts.append("Over test images: interval of images drawn with replacement.")
    if any("(leaky)" in row.label for row in setting.rows):
        texts.append("(leaky): trained with labels hidden from its sites; never compare as equal.")
    if any("(bound)" in row.label for row in setting.rows):
        texts.append("(bound): trained with the true labels, which no real site has.")
    return " ".join(texts)


def differences(setting: Setting, rule: str) -> ReportTable:
    """Every method against FedAvg, paired over seeds and over test images."""
    base = baseline_of(setting)
    found = contrasts(setting, base) if base else {}
    if not found:
        return ReportTable(
            "differences",
            f"Against {BASELINE}",
            absent=f"It takes a run of {BASELINE} and one of another method.",
        )
    head = ["method", "over seeds", "wins", "p (Holm)", "over test images", "p (Holm) "]
    rows = [[Cell(label), *_difference(one)] for label, one in found.items()]
    few = "" if setting.fewest_seeds >= LEAST_SEEDS else f" WARNING: {FEW_SEEDS} over seeds."
    return ReportTable(
        "differences",
        f"Against {BASELINE}",
        f"mAP of the method minus that of {BASELINE}, {rule}: on the same seeds, with the 95 % "
        "interval of a paired t test, and on the same drawn test images, with a percentile "
        f"interval (means over seeds). p: corrected for all methods of the table (Holm).{few}",
        head,
        rows,
    )


def _difference(one: Contrast) -> list[Cell]:
    seeds, images = one.seeds, one.images
    cells = [Cell(DASH), Cell(DASH), Cell(DASH)]
    if seeds is not None:
        tested = seeds.pairs >= LEAST_SEEDS
        wins = Cell(f"{seeds.wins} of {seeds.pairs}", seeds.wins / seeds.pairs)
        cells = [_apart(seeds, tested), wins, _p(one.p_seeds if tested else np.nan)]
    return [*cells, *([_apart(images, True), _p(one.p_images)] if images else [Cell(DASH)] * 2)]


def _apart(paired: Paired, tested: bool) -> Cell:
    span = _span(paired.low, paired.high, sign="+") if tested else ""
    return Cell(f"{paired.mean:+.3f}", paired.mean, span=span)


def _p(value: float) -> Cell:
    if np.isnan(value):
        return Cell(DASH)
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def classes(setting: Setting, rule: str) -> ReportTable:
    """Average precision of every class and method, with intervals over test images."""
    rows = [row for row in setting.rows if row.images]
    title = "Average precision of each class"
    if not rows:
        return ReportTable("per-class", title, absent="No run here has kept its predictions.")
    trained = setting.first.trained
    lines = []
    for column, name in enumerate(setting.first.classes):
        images = rows[0].images
        assert images is not None
        count = int(images.positives[column])
        cells = [Cell(name), Cell(f"{count}", count)]
        if trained.get(name, True):
            cells += [_class_score(row, column) for row in rows]
        else:
            cells += [Cell("not trained") for _ in rows]
        lines.append(cells)
    return ReportTable(
        "per-class",
        title,
        f"Test set, {rule}; mean over seeds, with the 95 % interval over test images drawn with "
        "replacement. A dash: no positive or no negative among the test images. Not trained: no "
        "site annotates the class.",
        ["class", "positives", *(row.label for row in rows)],
        lines,
    )


def _class_score(row: MethodRow, column: int) -> Cell:
    assert row.images is not None
    mean, low, high = row.images.class_interval(column)
    return Cell(_number(mean), _sorted(mean), span=_span(low, high))


def overview(settings: Sequence[Setting], rule: str) -> ReportTable:
    """mAP of every method in every setting."""
    labels = _labels(settings)
    best = [surely_best(setting, "mAP") for setting in settings]
    rows = []
    for label in labels:
        cells = [Cell(label)]
        for setting, winner in zip(settings, best, strict=True):
            row = setting.row(label)
            cells.append(_score(row, "mAP", winner) if row else Cell(""))
        rows.append(cells)
    few = min(setting.fewest_seeds for setting in settings) < LEAST_SEEDS
    return ReportTable(
        "overview",
        "mAP in every setting",
        f"Test set, {rule}. In brackets: 95 % interval of the mean over seeds. Bold as in the "
        "table of each setting: only where paired tests say so."
        + f" WARNING: {FEW_SEEDS} in some settings."
        * few,
        ["method", *(setting.head for setting in settings)],
        rows,
    )


def _labels(settings: Sequence[Setting]) -> list[str]:
    """All methods, bounds and leaky ones last."""
    rows = [row for setting in settings for row in setting.rows]
    order = {row.label: (not row.fair, row.label != BASELINE) for row in rows}
    return sorted(order, key=lambda label: order[label])


def ranks(settings: Sequence[Setting], rule: str) -> ReportTable:
    """Average ranks over settings, and every method against FedAvg over them."""
    title = "Ranks over settings"
    complete = [
        label
        for label in _labels(settings)
        if all((row := s.row(label)) and row.fair for s in settings)
    ]
    means = {n: np.array([_mean_score(s, n) for s in settings]) for n in complete}
    means = {label: own for label, own in means.items() if not np.isnan(own).any()}
    if len(means) < 2 or len(settings) < 2:
        return ReportTable(
            "ranks", title, absent="It takes two settings, and two methods that ran in all of them."
        )
    ranked = average_ranks(np.stack(list(means.values()), axis=1))
    base = means.get(BASELINE)
    p = {n: wilcoxon(own - base) for n, own in means.items() if base is not None and n != BASELINE}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    order = sorted(zip(ranked.tolist(), means, strict=True))
    rows = [
        [Cell(label), Cell(f"{rank:.2f}", rank), _p(float(adjusted.get(label, np.nan)))]
        for rank, label in order
    ]
    apart = critical_difference(len(means), len(settings))
    few = f" WARNING: of fewer than {FEWEST_SETTINGS} settings p cannot fall below 0.05."
    return ReportTable(
        "ranks",
        title,
        f"mAP, {rule}, mean over seeds; rank 1 is best, over {len(settings)} settings. Average "
        f"ranks that differ by less than {apart:.2f} are not told apart (Nemenyi, 95 %). p: "
        f"signed-rank test (Wilcoxon) against {BASELINE} over settings, corrected (Holm)."
        + few
        * (len(settings) < FEWEST_SETTINGS),
        ["method", "average rank", f"p against {BASELINE}"],
        rows,
    )


def _mean_score(setting: Setting, label: str) -> float:
    row = setting.row(label)
    return float(row.values["mAP"].mean()) if row else float("nan")
