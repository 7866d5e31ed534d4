"""How good a client's labels have become, judged with the truth; called by the evaluator alone.

:func:`label_counts` counts, :func:`pool` adds the counts and divides. Counts add up over clients,
so a pooled figure is that of all clients' images together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from utils_.labels import CORRECTED, PSEUDO, LabelState
from utils_.metrics import THRESHOLD

# figure: (count above the line, count below the line); left out where the latter is 0
RATIOS = {
    "noise_precision": ("flagged_and_noisy", "flagged_judged"),
    "noise_recall": ("flagged_and_noisy", "judged_noisy_images"),
    "noise_f1": ("flagged_and_noisy_twice", "flagged_plus_noisy"),
    "noise_auroc": ("noise_pairs_won", "noise_pairs"),
    "noise_before": ("noisy_cells", "annotated_cells"),
    "noise_remaining": ("wrong_cells", "trained_cells"),
    "correction_precision": ("corrected_right", "corrected_judged"),
    "flip_precision": ("flipped_right", "flipped_judged"),
    "pseudo_accuracy": ("pseudo_right", "pseudo_judged"),
    "pseudo_precision": ("pseudo_hits", "pseudo_claimed"),
    "pseudo_recall": ("pseudo_hits", "pseudo_positives"),
}
COUNTING = {"noise_auroc_counting": ("counting_pairs_won", "counting_pairs")}
REPORTED_COUNTS = ("flagged_images", "corrected_cells", "flipped_cells", "pseudo_cells")


def label_diagnostics(
    labels: LabelState,
    *,
    true: np.ndarray,
    noise: np.ndarray,
    noise_score: np.ndarray | None = None,
    flagged: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the figures of one client: :func:`pool` of its :func:`label_counts`."""
    counts = label_counts(labels, true=true, noise=noise, noise_score=noise_score, flagged=flagged)
    return pool([counts])


def label_counts(
    labels: LabelState,
    *,
    true: np.ndarray,
    noise: np.ndarray,
    noise_score: np.ndarray | None = None,
    flagged: np.ndarray | None = None,
) -> dict[str, float]:
    """Count what a client's labels get right and wrong.

    - An image is noisy where any annotated cell differs from the truth, an assumed negative
      included. Images without an annotated cell of known truth are not judged.
    - A target counts as present from 0.5 on.
    - Of targets only the cells of weight above 0 count, since training does not see the others.

    Args:
        labels: the client's labels, n images by C classes.
        true: (n, C) of 0, 1 and NaN where nobody knows; such cells are in the counts alone.
        noise: (n, C) bool, cells that the simulation made wrong. A cell counts only where this
            client's observed value is wrong too: the clean-label bound is given true values.
        noise_score: (n,) higher where the method finds an image more suspect, NaN where it has no
            opinion; None when the method has no score.
        flagged: (n,) bool, images that the method takes for noisy; None when it does not say.

    Returns:
        Counts for :func:`pool`, JSON-ready.

    Raises:
        ValueError: an array does not have the shape of the labels.
    """
    images = labels.observed.shape[:1]
    _check_shapes(labels.observed.shape, true=true, noise=noise)
    _check_shapes(images, noise_score=noise_score, flagged=flagged)
    judged_cells, noisy_cells = judged_and_noisy(labels, true=true, noise=noise)
    judged, noisy = judged_cells.sum(axis=1) > 0, noisy_cells.sum(axis=1) > 0
    counts = {"annotated_cells": judged_cells.sum(), "noisy_cells": noisy_cells.sum()}
    counts |= _target_counts(labels, true)
    if flagged is not None:
        flagged = np.asarray(flagged, dtype=bool) & labels.annotated.any(axis=1)
        counts |= {"flagged_images": flagged.sum()} | _flag_counts(flagged & judged, noisy)
    given = judged_cells & (labels.observed == 1)
    if noise_score is not None:
        score = np.asarray(noise_score)
        opinion = ~np.isnan(score)
        counts |= _pairs("noise", score[judged & opinion], noisy[judged & opinion])
        counts |= _class_pairs(score, given & opinion[:, None], noisy_cells)
        judged = judged & opinion if opinion.any() else judged
    annotated_positives = np.sum(labels.annotated & (labels.observed == 1), axis=1)
    counts |= _pairs("counting", annotated_positives[judged], noisy[judged])
    return {name: float(count) for name, count in counts.items()}


def judged_and_noisy(
    labels: LabelState, *, true: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Annotated cells of known truth, and those of them that are noisy, both (n, C) bool.

    The arguments are those of :func:`label_counts`.
    """
    judged = labels.annotated & ~np.isnan(true)
    return judged, judged & noise & (labels.observed != true)


def pool(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add the counts of several clients (or rounds) and return the figures.

    Undefined figures are left out: 0/0, or a method that neither flags nor scores images.

    ============================== ==============================================================
    noise_precision, _recall, _f1  flagged images against noisy images
    noise_auroc                    share of pairs (noisy, clean) ranked right by the noise score;
                                   pooled: pairs within a client only, because the scores of
                                   different clients need not share a scale
    noise_auroc_counting           the same for the number of annotated positives as the score, of
                                   the clients (and their images) that noise_auroc judges; of all
                                   where no client has a score
    noise_auroc_within_class       mean over classes of the share of pairs (wrong, right positive)
                                   of the class that the noise score of their images ranks right;
                                   pairs within a client
    noise_before, noise_remaining  share of wrong cells among the annotated: as observed, and in
                                   the targets that training uses now
    correction_precision           share of the corrected cells whose target equals the truth
    flip_precision                 the same for cells whose class really changed (0 to 1, 1 to 0)
    pseudo_accuracy                share of the pseudo-labels that equal the truth
    pseudo_precision, _recall      of the positives among pseudo-labels (accuracy alone is mostly
                                   about the many negatives)
    ..._cells, flagged_images      counts
    ============================== ==============================================================
    """
    counts = list(counts)
    total = _sum(counts)
    figures = _ratios(total, RATIOS)
    figures |= _ratios(
        _sum([part for part in counts if part.get("noise_pairs")] or counts), COUNTING
    )
    classes = [name for name in total if name.startswith("class_pairs/")]
    within = _ratios(total, {name: (name.replace("pairs", "pairs_won"), name) for name in classes})
    if within:
        figures["noise_auroc_within_class"] = float(np.mean(list(within.values())))
    return figures | {name: float(total[name]) for name in REPORTED_COUNTS if name in total}


def _sum(counts: Iterable[Mapping[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return total


def _ratios(total: Mapping[str, float], ratios: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """The figures whose count below the line is not 0."""
    return {
        name: total[above] / total[below]
        for name, (above, below) in ratios.items()
        if total[below] > 0
    }


def _target_counts(labels: LabelState, true: np.ndarray) -> dict[str, int]:
    """Targets against the truth: annotated, corrected, flipped and pseudo-labelled cells."""
    known, present = ~np.isnan(true), true == 1
    used = labels.weight > 0
    now = labels.target >= THRESHOLD
    right = known & (now == present)
    trained = labels.annotated & used
    corrected = used & (labels.status == CORRECTED)
    flipped = trained & (now != (labels.observed >= THRESHOLD))
    pseudo = used & (labels.status == PSEUDO)
    counts = {
        "trained_cells": trained & known,
        "wrong_cells": trained & known & ~right,
        "pseudo_claimed": pseudo & known & now,
        "pseudo_positives": pseudo & present,
        "pseudo_hits": pseudo & present & now,
    }
    for name, cells in (("corrected", corrected), ("flipped", flipped), ("pseudo", pseudo)):
        counts |= {
            f"{name}_cells": cells,
            f"{name}_judged": cells & known,
            f"{name}_right": cells & right,
        }
    return {name: int(np.count_nonzero(cells)) for name, cells in counts.items()}


def _flag_counts(flagged: np.ndarray, noisy: np.ndarray) -> dict[str, int]:
    claimed, wrong, both = (
        int(np.count_nonzero(images)) for images in (flagged, noisy, flagged & noisy)
    )
    return {
        "flagged_judged": claimed,
        "judged_noisy_images": wrong,
        "flagged_and_noisy": both,
        "flagged_and_noisy_twice": 2 * both,
        "flagged_plus_noisy": claimed + wrong,
    }


def _pairs(name: str, score: np.ndarray, noisy: np.ndarray) -> dict[str, float]:
    """Pairs (noisy, clean) and how many the score ranks right, ties half (Mann-Whitney U)."""
    clean = np.sort(score[~noisy])
    below = np.searchsorted(clean, score[noisy], side="left")
    up_to = np.searchsorted(clean, score[noisy], side="right")
    return {
        f"{name}_pairs": int(noisy.sum()) * len(clean),
        f"{name}_pairs_won": float((below + up_to).sum()) / 2,
    }


def _class_pairs(score: np.ndarray, given: np.ndarray, noisy: np.ndarray) -> dict[str, float]:
    """Pairs (wrong, right) among the given positives of each class, by the score of the image."""
    counts: dict[str, float] = {}
    for c in range(given.shape[1]):
        pairs = _pairs("class", score[given[:, c]], noisy[given[:, c], c])
        counts |= {f"{name}/{c}": count for name, count in pairs.items()}
    return counts


def _check_shapes(shape: tuple[int, ...], **arrays: np.ndarray | None) -> None:
    for name, array in arrays.items():
        if array is not None and np.shape(array) != shape:
            raise ValueError(f"{name} has shape {np.shape(array)}, the labels need {shape}")
