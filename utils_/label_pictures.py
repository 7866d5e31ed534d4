"""Figures of labels and of doubt about them, for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils_.labels import CORRECTED, MISSING, PSEUDO
from utils_.truth import DRAWN, FILES, UNKNOWN, VERIFIED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

PICTURES, PICTURE_LINES, NAME_LENGTH = 6, 8, 30
FLAGGED_ABOVE, SPREAD_BINS = 0.5, [i / 20 for i in range(21)]
JUDGES = {  # {what labels are judged by: (head of the column, how the title calls it)}
    DRAWN: ("truth", "the truth"),
    VERIFIED: ("verified", "verified labels, where there are any"),
    FILES: ("file", "the files' labels, which nobody has verified"),
    UNKNOWN: ("truth", "no truth: it is unknown, since nobody has verified the labels"),
}
RIGHT, WRONG, NO_LABEL = "#0072b2", "#d55e00", "#767676"  # told apart by colour-blind readers too


def label_picture(
    images: np.ndarray,
    *,
    observed: np.ndarray,
    target: np.ndarray,
    status: np.ndarray,
    true: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
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
        names: those of the n images.
        judge: where ``true`` comes from, a key of ``utils_.truth.WORDS``.
    """
    from matplotlib.figure import Figure

    count = min(len(images), PICTURES)
    rows = max(-(-count // 2), 1)
    figure = Figure(figsize=(13, 2.8 * rows + 0.9), layout="constrained")
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
        picture.set_title(_short(names[i]), fontsize=9, parse_math=False)
        lines = _label_lines(observed[i], target[i], status[i], true[i], classes)
        _draw_labels(table, [("class", "observed → now", JUDGES[judge][0], NO_LABEL), *lines])
    return figure


def suspects_picture(scores: np.ndarray, wrong: np.ndarray, *, judge: str = DRAWN) -> Figure:
    """Draw which images a method suspects against which have a wrong label.

    On the left the images counted, flagged or not; on the right how doubt is spread among them.

    Args:
        scores: (n,) noise scores in [0, 1], flagged above 0.5; NaN without an opinion.
        wrong: (n,) bool, whether the image has a wrong label.
        judge: where ``wrong`` comes from, a key of ``utils_.truth.WORDS``.
    """
    from matplotlib.figure import Figure

    flagged = scores > FLAGGED_ABOVE
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(
        f"Suspects: {flagged.sum():,} of {len(scores):,} images are flagged, "
        f"{wrong.sum():,} have a wrong label\njudged by {JUDGES[judge][1]}",
        fontsize=11,
    )
    counted, spread = figure.subplots(1, 2, width_ratios=[1, 1.4])
    _draw_confusion(counted, flagged, wrong)
    _draw_spread(spread, scores, wrong)
    return figure


def _draw_confusion(axis: Axes, flagged: np.ndarray, wrong: np.ndarray) -> None:
    """Four cells, each dark by its share of the images that are wrong, or of those that are right.

    The two cells of a row so add up to 100 %.
    """
    for row, images in enumerate((wrong, ~wrong)):
        for column, guess in enumerate((flagged, ~flagged)):
            count, total = int((images & guess).sum()), max(int(images.sum()), 1)
            share, place = count / total, (column - 0.5, row - 0.5)
            axis.add_patch(_cell_of(place, share, colour=RIGHT if row == column else WRONG))
            axis.text(
                column,
                row,
                f"{count:,}\n{share:.0%}",
                ha="center",
                va="center",
                color="white" if share > 0.6 else "black",
                fontsize=13,
            )
    axis.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    axis.set_xticks([0, 1], ["flagged", "not flagged"])
    axis.set_yticks([0, 1], ["wrong\nlabel", "all\nright"])
    axis.tick_params(length=0)


def _cell_of(place: tuple[float, float], share: float, *, colour: str) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle(place, 1, 1, facecolor=colour, alpha=0.05 + 0.9 * share, edgecolor="white")


def _draw_spread(axis: Axes, scores: np.ndarray, wrong: np.ndarray) -> None:
    """Two histograms of the doubt, each of its own kind of images."""
    for images, colour, name in (
        (~wrong, RIGHT, "all labels right"),
        (wrong, WRONG, "a wrong one"),
    ):
        known = scores[images & ~np.isnan(scores)]
        weights = np.full(len(known), 1 / max(len(known), 1))
        axis.hist(known, SPREAD_BINS, weights=weights, color=colour, alpha=0.55, label=name)
    axis.axvline(FLAGGED_ABOVE, color="#555555", linestyle="--", linewidth=0.8)
    axis.set(xlabel="doubt of the method (noise score)", ylabel="share of these images")
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _short(name: str) -> str:
    """The end of a long file name, which tells images apart."""
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]


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
