"""What a run writes while it runs: ``metrics.csv`` and TensorBoard events in its folder."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils_.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.csv"
GROUPS = ("train", "val", "test", "labels")
TAG_ORDER = (*GROUPS, "cost", "run")
COSTS = ("seconds", "bytes")
FLUSH_SECONDS = 10
logger = logging.getLogger("fednml")

# Columns that hardly change from round to round: metrics.csv has them, TensorBoard does not.
OUT_OF_SIGHT = re.compile(r"bytes_|(val|test)_classes_")
DOUBT_BINS = np.linspace(0, 1, 21)
FEW_SITES = r"sites/1?\d( [^/]*)?"  # as many lines as a chart can show

# TensorBoard sorts groups of tags by name. Its "Custom scalars" tab keeps this order: {group:
# {chart: tags}}; tags are regular expressions, and a run that lacks a tag just lacks its line.
OVERVIEW = {
    "train": {"training loss": ["train/loss$"]},
    "val": {
        "mAP": ["val/mAP$"],
        "macro AUROC": ["val/macro_auroc$"],
        "macro F1, at 0.5 and tuned": ["val/macro_f1(_tuned)?$"],
    },
    "test": {
        "mAP": ["test/mAP$"],
        "mAP of annotated and of missing classes": ["test/mAP_(annotated|missing)$"],
        "macro F1, at 0.5 and tuned": ["test/macro_f1(_tuned)?$"],
    },
    "labels": {
        "noise detection": ["labels/noise_(precision|recall|f1)$"],
        "noise detection (AUROC)": ["labels/noise_auroc(_counting|_within_class)?$"],
        "wrong labels": ["labels/noise_(before|remaining)$"],
        "pseudo-labels": ["labels/pseudo_(accuracy|precision|recall)$"],
    },
    "sites": {
        "loss": [f"{FEW_SITES}/loss$"],
        "noise detection (recall)": [f"{FEW_SITES}/noise_recall$"],
        "distance from the other updates": [f"{FEW_SITES}/outlier_distance$"],
    },
}


class RunLog:
    """The log of one run.

    ``metrics.csv`` has one row for each round. A row is appended, so that the thousandth round
    takes no longer than the first. Where a row has new columns (a test every ten rounds), the file
    is rewritten whole and atomically, and they get their place. The order is
    ``round``, ``seconds``, ``train_*``, ``val_*``, ``test_*``, ``labels_*``, then the rest; within
    a group, that of first appearance. Cells that a round does not have are blank.

    A column is one TensorBoard tag: ``val_mAP`` is ``val/mAP``, see :func:`tag_of`. Those that
    hardly change are in ``metrics.csv`` alone.
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
        self._columns: list[str] = []
        self._last = -1  # number of the last round
        rows = [self._checked(row) for row in history or ()]
        if rows:
            self._write_table(rows)
        elif history is not None:  # resumed before the first checkpoint
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
        self._start = self._last + 1
        self._hook = threading.excepthook
        threading.excepthook = self._failed_aside
        self._writer = SummaryWriter(
            str(self.folder),
            purge_step=None if history is None else self._start,
            flush_secs=FLUSH_SECONDS,
        )
        if not self._start:
            self._writer.add_custom_scalars(
                {
                    group: {title: ["Multiline", tags] for title, tags in charts.items()}
                    for group, charts in OVERVIEW.items()
                }
            )
        self._session_end: Any = None

    def row(self, scalars: Mapping[str, float]) -> None:
        """Write one round to ``metrics.csv`` and to TensorBoard, at step ``round``.

        Args:
            scalars: column to number; ``round`` is required and grows from row to row.

        Raises:
            ValueError: ``round`` is absent or does not come after the last row's.
        """
        row = self._checked(scalars)
        self._append(row)
        for column, value in row.items():
            if column != "round" and not OUT_OF_SIGHT.match(column):
                self._writer.add_scalar(tag_of(column), value, row["round"])
        self._writer.flush()

    def scalars(self, group: str, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers to TensorBoard alone, e.g. of one client under ``sites/3/<name>``.

        NaN is left out.
        """
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def settings(
        self,
        settings: Mapping[str, str | float],
        metrics: Sequence[str],
        *,
        first: Collection[str] = (),
    ) -> None:
        """Fill the row of this run in TensorBoard's HParams tab.

        ``add_hparams`` would make another run of it, so the summaries go into the run's own file.
        TensorBoard takes the columns of whichever run it finds first: give every run the same
        names, with values of the same types.

        Args:
            settings: name to value.
            metrics: tags of scalars, of which it shows the last value; also ones still to come.
            first: names of settings that stand before the others, which are sorted by name.
        """
        from torch.utils.tensorboard.summary import hparams

        columns, row, self._session_end = hparams(dict(settings), dict.fromkeys(metrics))
        _mark_differing(columns, first)
        for summary in (columns, row):
            self._summary(summary, self._start)

    def finished(self, scalars: Mapping[str, float], *, step: int) -> None:
        """Mark the run of :meth:`settings` as done; what it came to is ``result/<name>``."""
        self.scalars("result", scalars, step=step)
        if self._session_end is not None:
            self._summary(self._session_end, step)

    def doubt(self, tag: str, scores: np.ndarray, *, step: int) -> None:
        """Show a histogram of numbers in [0, 1]; NaN is left out, and nothing shown of none."""
        known = scores[~np.isnan(scores)]
        if len(known):
            self._writer.add_histogram(tag, known, step, bins=DOUBT_BINS)

    def text(self, tag: str, markdown: str, *, step: int | None = None) -> None:
        """Show Markdown in TensorBoard's text tab, e.g. :func:`settings_table`.

        Without a step it stands at the round where this log was opened, so a resumed run shows
        both versions.
        """
        self._writer.add_text(tag, markdown, self._start if step is None else step)

    def figure(self, tag: str, draw: Callable[[], Figure | None], *, step: int) -> None:
        """Show the matplotlib figure that ``draw`` returns, if any, in TensorBoard's images tab."""
        figure = draw()
        if figure is not None:
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
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed_aside(self, told: threading.ExceptHookArgs) -> None:
        """One line for TensorBoard's own thread; its next call raises the same error here."""
        if isinstance(told.exc_value, OSError):
            reason = told.exc_value.strerror or told.exc_value
            logger.warning("%s: TensorBoard's events cannot be written: %s", self.folder, reason)
        else:
            self._hook(told)

    def _summary(self, summary: Any, step: int) -> None:
        file_writer: Any = self._writer.file_writer  # None by its type, but there until closed
        file_writer.add_summary(summary, step)

    def _checked(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """The row as plain numbers, with its round counted."""
        if "round" not in scalars:
            raise ValueError("a row of metrics.csv needs 'round'")
        row = {name: _plain_number(value) for name, value in scalars.items()}
        row["round"] = int(row["round"])
        if row["round"] <= self._last:
            raise ValueError(f"round {row['round']} is in metrics.csv already")
        self._last = int(row["round"])
        return row

    def _append(self, row: dict[str, float]) -> None:
        if set(row) <= set(self._columns):
            with (self.folder / METRICS_FILE).open("r+", encoding="utf-8") as file:  # never anew
                file.seek(0, io.SEEK_END)
                file.write(self._format(row))
        else:
            self._write_table([*(read_metrics(self.folder) if self._columns else ()), row])

    def _format(self, row: Mapping[str, float]) -> str:
        # repr is the shortest text that reads back as the same float.
        return _csv_line(repr(row[name]) if name in row else "" for name in self._columns)

    def _write_table(self, rows: Sequence[dict[str, float]]) -> None:
        names = [name for row in rows for name in row]
        new = dict.fromkeys(name for name in names if name not in self._columns)
        self._columns = sorted([*self._columns, *new], key=_column_rank)  # stable
        lines = [_csv_line(self._columns), *map(self._format, rows)]
        write_text(self.folder / METRICS_FILE, "".join(lines))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read ``metrics.csv`` of a run back to the same numbers, bit for bit; blanks are left out.

    A last line without an end is what a process was writing when it was killed, and left out too.

    Raises:
        ValueError: a row has more cells than the header, or a cell is no number.
    """
    text = (Path(folder) / METRICS_FILE).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.split("\n")[:-1]))
    if any(None in row for row in rows):
        raise ValueError("a row has more cells than the header")
    return [{name: _parsed_number(text) for name, text in row.items() if text} for row in rows]


def tag_of(column: str) -> str:
    """Return the TensorBoard tag of a column of ``metrics.csv``.

    ``<group>_<name>`` is ``<group>/<name>`` for the groups train, val, test and labels; a column
    that starts with seconds or bytes is ``cost/<column>``, and any other ``run/<column>``.
    """
    group, _, name = column.partition("_")
    if group in GROUPS and name:
        return f"{group}/{name}"
    return f"cost/{column}" if column.startswith(COSTS) else f"run/{column}"


def settings_table(settings: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Return a Markdown table of settings, nested ones as ``outer.inner``.

    What differs from its default comes first and is bold, with the default beside it. ``None`` is
    an empty cell, and an empty mapping has no line.
    """
    usual = dict(_flat(defaults))
    lines = {name: (value, usual.get(name, value)) for name, value in _flat(settings)}
    changed = [name for name, (value, default) in lines.items() if value != default]
    rest = [name for name in lines if name not in changed]
    rows = [
        (f"**{name}**", f"**{_cell(lines[name][0])}**", _cell(lines[name][1])) for name in changed
    ]
    rows += [(name, _cell(lines[name][0]), "") for name in rest]
    head = ["| setting | value | default |", "|---|---|---|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _mark_differing(columns: Any, names: Collection[str]) -> None:
    """Mark columns of the HParams tab as those in which runs may differ: they come first."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = columns.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for column in data.experiment.hparam_infos:
        column.differs = column.name in names
    plugin.content = data.SerializeToString()


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


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
