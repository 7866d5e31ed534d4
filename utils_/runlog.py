"""What a run writes while it runs: ``metrics.csv`` and TensorBoard events in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils_.files import write_text
from utils_.labels import CORRECTED, MISSING, PSEUDO
from utils_.truth import DRAWN, FILES, UNKNOWN, VERIFIED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.csv"
GROUPS = ("train", "val", "test", "labels")
TAG_ORDER = (*GROUPS, "cost", "run")
COSTS = ("seconds", "bytes")
FLUSH_SECONDS = 10

# What TensorBoard's "Custom scalars" tab draws together: {chart: tags}; tags are regular
# expressions, and a run that lacks a tag just lacks its line.
OVERVIEW = {
    "mAP": ["val/mAP$", "test/mAP$"],
    "macro F1": ["val/macro_f1$", "test/macro_f1$"],
    "annotated and missing classes (mAP)": ["(val|test)/mAP_(annotated|missing)$"],
    "training loss": ["train/loss$"],
    "noise detection": ["labels/noise_(precision|recall|f1|auroc(_counting|_within_class)?)$"],
    "wrong labels": ["labels/noise_(before|remaining)$"],
    "pseudo-labels": ["labels/pseudo_(accuracy|precision|recall)$"],
}

PICTURES, PICTURE_LINES = 6, 8
JUDGES = {  # {what labels are judged by: (head of the column, how the title calls it)}
    DRAWN: ("truth", "the truth"),
    VERIFIED: ("verified", "verified labels, where there are any"),
    FILES: ("file", "the files' labels, which nobody has verified"),
    UNKNOWN: ("truth", "no truth: it is unknown, since nobody has verified the labels"),
}
RIGHT, WRONG, NO_LABEL = "#0072b2", "#d55e00", "#767676"  # told apart by colour-blind readers too


class RunLog:
    """The log of one run.

    ``metrics.csv`` has one row for each round. It is rewritten whole and atomically, so that
    columns which only some rounds have (a test every ten rounds) get their place. The order is
    ``round``, ``seconds``, ``train_*``, ``val_*``, ``test_*``, ``labels_*``, then the rest; within
    a group, that of first appearance. Cells that a round does not have are blank.

    A column is one TensorBoard tag: ``val_mAP`` is ``val/mAP``, see :func:`tag_of`.
    """

    def __init__(
        self, folder: Path, *, history: Iterable[Mapping[str, float]] | None = None
    ) -> None:
        """Open the log of the run in ``folder`` (created if need be).

        Args:
            folder: the run's folder, which TensorBoard shows under its name.
            history: on resume, the rows up to the checkpoint. Rows written after it are dropped
                from ``metrics.csv``, and TensorBoard hides the steps after the last row.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []
        self._columns: list[str] = []
        self._lines: list[str] = []
        for row in history or ():
            self._append(row)
        if self.rows:
            self._write_table()
        elif history is not None:  # resumed before the first checkpoint
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
        self._start = int(self.rows[-1]["round"]) + 1 if self.rows else 0
        self._writer = SummaryWriter(
            str(self.folder),
            purge_step=None if history is None else self._start,
            flush_secs=FLUSH_SECONDS,
        )
        charts = {title: ["Multiline", tags] for title, tags in OVERVIEW.items()}
        self._writer.add_custom_scalars({"run": charts})

    def row(self, scalars: Mapping[str, float]) -> None:
        """Write one round to ``metrics.csv`` and to TensorBoard, at step ``round``.

        Args:
            scalars: column to number; ``round`` is required and grows from row to row.

        Raises:
            ValueError: ``round`` is absent or does not come after the last row's.
        """
        self._append(scalars)
        self._write_table()
        for column, value in self.rows[-1].items():
            if column != "round":
                self._writer.add_scalar(tag_of(column), value, self.rows[-1]["round"])
        self._writer.flush()

    def scalars(self, group: str, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers to TensorBoard alone, e.g. of one client under ``sites/3/<name>``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def text(self, tag: str, markdown: str) -> None:
        """Show Markdown in TensorBoard's text tab, e.g. :func:`parameter_table`.

        It stands at the round where this log was opened, so a resumed run shows both versions.
        """
        self._writer.add_text(tag, markdown, self._start)

    def figure(self, tag: str, figure: Figure, *, step: int) -> None:
        """Show a matplotlib figure in TensorBoard's images tab."""
        self._writer.add_figure(tag, figure, step)

    def pr_curves(
        self, probability: np.ndarray, truth: np.ndarray, classes: Sequence[str], *, step: int
    ) -> None:
        """Write one precision-recall curve a class, under ``pr/<class>``.

        Unknown cells (NaN) are left out, and so are classes without positives or negatives.

        Args:
            probability: (N, C) in [0, 1].
            truth: (N, C) of 0, 1 and NaN.
            classes: C names.
            step: the round.
        """
        for column, name in enumerate(classes):
            known = ~np.isnan(truth[:, column])
            labels = truth[known, column].astype(bool)
            if labels.any() and not labels.all():
                self._writer.add_pr_curve(
                    f"pr/{name}", labels, np.asarray(probability)[known, column], step
                )

    def close(self) -> None:
        """Write what is pending and close the files."""
        self._writer.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, scalars: Mapping[str, float]) -> None:
        if "round" not in scalars:
            raise ValueError("a row of metrics.csv needs 'round'")
        row = {name: _plain_number(value) for name, value in scalars.items()}
        row["round"] = int(row["round"])
        if self.rows and row["round"] <= self.rows[-1]["round"]:
            raise ValueError(f"round {row['round']} is in metrics.csv already")
        self.rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns = sorted(self._columns + new, key=_column_rank)  # stable
            self._lines = [_csv_line(self._columns)]
            self._lines += [self._format(earlier) for earlier in self.rows]
        else:
            self._lines.append(self._format(row))

    def _format(self, row: Mapping[str, float]) -> str:
        # repr is the shortest text that reads back as the same float.
        return _csv_line(repr(row[name]) if name in row else "" for name in self._columns)

    def _write_table(self) -> None:
        write_text(self.folder / METRICS_FILE, "".join(self._lines))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read ``metrics.csv`` of a run back to the same numbers, bit for bit; blanks are left out."""
    with (Path(folder) / METRICS_FILE).open(encoding="utf-8", newline="") as file:
        return [
            {name: _parsed_number(text) for name, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def tag_of(column: str) -> str:
    """Return the TensorBoard tag of a column of ``metrics.csv``.

    ``<group>_<name>`` is ``<group>/<name>`` for the groups train, val, test and labels; a column
    that starts with seconds or bytes is ``cost/<column>``, and any other ``run/<column>``.
    """
    group, _, name = column.partition("_")
    if group in GROUPS and name:
        return f"{group}/{name}"
    return f"cost/{column}" if column.startswith(COSTS) else f"run/{column}"


def column_of(tag: str) -> str:
    """Return the column of a tag: the inverse of :func:`tag_of`."""
    group, _, name = tag.partition("/")
    return f"{group}_{name}" if group in GROUPS else name


def parameter_table(parameters: Mapping[str, object]) -> str:
    """Return a Markdown table of settings, nested ones as ``outer.inner``."""
    lines = ["| parameter | value |", "|---|---|"]
    for name, value in _flat(parameters):
        text = str(value).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {text} |")
    return "\n".join(lines)


def label_picture(
    images: np.ndarray,
    *,
    observed: np.ndarray,
    target: np.ndarray,
    status: np.ndarray,
    true: np.ndarray,
    classes: Sequence[str],
    judge: str = DRAWN,
) -> Figure:
    """Draw a few images beside what became of their labels: observed -> now, against the truth.

    Each image has the lines of most interest: labels that are wrong now, then those that were
    changed or guessed, then findings that are present. A last line counts the rest.

    Args:
        images: (n, H, W, 3) uint8; the first six are drawn.
        observed: (n, C) of 0, 1 and NaN = not annotated.
        target: (n, C) in [0, 1], what training fits now.
        status: (n, C), a cell's status as in ``utils_.labels``.
        true: (n, C) of 0, 1 and NaN = unknown.
        classes: C names.
        judge: where ``true`` comes from, a key of ``utils_.truth.WORDS``.
    """
    from matplotlib.figure import Figure

    count = min(len(images), PICTURES)
    rows = max(-(-count // 2), 1)
    figure = Figure(figsize=(13, 2.6 * rows + 0.9), layout="constrained")
    figure.suptitle(
        f"Labels as observed, as training sees them now, and {JUDGES[judge][1]}\n"
        "blue ✓ right   orange ✗ wrong   grey: no label, or truth unknown   blank: not annotated",
        fontsize=11,
    )
    axes = figure.subplots(rows, 4, squeeze=False, width_ratios=[1, 1.5, 1, 1.5])
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        picture, table = axes[i // 2, 2 * (i % 2) : 2 * (i % 2) + 2]
        picture.imshow(images[i])
        lines = _label_lines(observed[i], target[i], status[i], true[i], classes)
        _draw_labels(table, [("class", "observed → now", JUDGES[judge][0], NO_LABEL), *lines])
    return figure


def _label_lines(
    observed: np.ndarray,
    target: np.ndarray,
    status: np.ndarray,
    true: np.ndarray,
    classes: Sequence[str],
) -> list[tuple[str, str, str, str]]:
    """Return (class, observed -> now, truth, colour) of one image's cells, by interest."""
    now, labelled, known = target >= 0.5, status != MISSING, ~np.isnan(true)
    wrong = labelled & known & (now != (true == 1))
    changed = (status == PSEUDO) | (status == CORRECTED)
    changed &= now | (np.nan_to_num(observed) >= 0.5)
    present = np.where(known, true == 1, labelled & now)
    interest = 4 * wrong + 2 * changed + present
    order = np.argsort(-interest, kind="stable")
    shown = order[interest[order] > 0][:PICTURE_LINES]
    lines = []
    for c in shown:
        before = "blank" if np.isnan(observed[c]) else f"{observed[c]:.0f}"
        after = f" → {target[c]:.2f}" if status[c] in (CORRECTED, PSEUDO) else ""
        truth = f"{true[c]:.0f}" if known[c] else "?"
        colour = (WRONG if wrong[c] else RIGHT) if labelled[c] and known[c] else NO_LABEL
        lines.append((str(classes[c]), before + after, truth, colour))
    rest = np.setdiff1d(order, shown)
    return [*lines, (_rest_text(wrong[rest], labelled[rest], known[rest]), "", "", NO_LABEL)]


def _rest_text(wrong: np.ndarray, labelled: np.ndarray, known: np.ndarray) -> str:
    counts = {
        "right": np.count_nonzero(labelled & known & ~wrong),
        "wrong": np.count_nonzero(wrong),
        "unlabelled": np.count_nonzero(~labelled),
        "of unknown truth": np.count_nonzero(labelled & ~known),
    }
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    return "others: " + ", ".join(parts) if parts else ""


def _draw_labels(axis: Axes, lines: Sequence[tuple[str, str, str, str]]) -> None:
    """Write a small table, a line a cell below its header, into an empty axis."""
    mark = {RIGHT: "✓", WRONG: "✗", NO_LABEL: ""}
    for i, (name, label, truth, colour) in enumerate(lines):
        height = 0.93 - i / (PICTURE_LINES + 2)
        name = name if len(name) <= 20 or not truth else name[:19] + "…"
        for x, text in ((0, name), (0.5, label), (0.84, truth), (0.93, mark[colour])):
            axis.text(x, height, text, color=colour, fontsize=9.5, va="baseline", parse_math=False)


def _column_rank(column: str) -> int:
    first = ("round", "seconds")
    if column in first:
        return first.index(column)
    return len(first) + TAG_ORDER.index(tag_of(column).partition("/")[0])


def _csv_line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _plain_number(value: float) -> float:
    """Return a Python int or float: a numpy scalar's repr would name its type."""
    return int(value) if isinstance(value, (int, np.integer, np.bool_)) else float(value)


def _parsed_number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _flat(parameters: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
