"""Multi-label metrics of the published tables, all classes at once; scikit-learn is not needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLD = 0.5
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """What :func:`multilabel_metrics` returns.

    Attributes:
        overall: ``mAP``, ``macro_f1``, ``macro_recall``, ``macro_precision``,
            ``balanced_accuracy``, ``macro_auroc``, ``hamming_loss``, ``ece``,
            ``classes_evaluated``, ``classes_without_positives``, ``classes_without_negatives``;
            the three counts add up to C.
        per_class: (C,) arrays ``ap``, ``auroc``, ``precision``, ``recall``, ``f1``,
            ``balanced_accuracy``, ``positives``, ``evaluated`` (images with a known cell).
    """

    overall: dict[str, float]
    per_class: dict[str, np.ndarray]


def multilabel_metrics(probability: np.ndarray, truth: np.ndarray) -> Metrics:
    """Score probabilities of C findings on N images.

    Per class, over the images whose cell is known:

    - average precision and AUROC as scikit-learn defines them: tied scores count as one threshold;
    - at threshold 0.5 (``>=``) precision (0 where nothing is predicted), recall and F1;
    - balanced accuracy at that threshold, the mean of the true positive and the true negative rate.

    In a class without known positives or without known negatives nothing can be measured: of
    positives alone every ranking is perfect. All its numbers are NaN, and no mean counts it.

    Over all known cells: ``hamming_loss``, and ``ece``, the expected calibration error (Guo et al.,
    ICML 2017) of the probability of presence. It is the mean of |mean probability - share present|
    over 15 bins of equal width, weighted by their cells. A mean over nothing is NaN.

    Args:
        probability: (N, C) float in [0, 1].
        truth: (N, C) of 0, 1 and NaN = unknown.

    Raises:
        ValueError: shapes differ, a probability is not finite or outside [0, 1], or a truth value
            is none of 0, 1, NaN.
    """
    probability = _checked_probability(probability)
    positive, known = _checked_truth(truth, probability.shape)
    evaluated = _count(known) if known is not None else np.full(positive.shape[1], len(positive))
    positives = _count(positive)
    ap, auroc = _ranking(probability, positive, known, negatives=evaluated - positives)
    predicted = probability >= THRESHOLD
    per_class = {"ap": ap, "auroc": auroc}
    per_class |= _thresholded(predicted, positive, known, evaluated=evaluated)
    measured = measurable(positives, evaluated)
    per_class = {name: np.where(measured, column, np.nan) for name, column in per_class.items()}
    per_class |= {"positives": positives, "evaluated": evaluated}
    return Metrics(
        _overall(per_class) | _over_cells(probability, predicted, positive, known), per_class
    )


def measurable(positives: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """(C,) bool: classes with a positive and a negative among the images whose cell is known."""
    both: np.ndarray = (positives > 0) & (positives < evaluated)
    return both


def annotated_missing_means(per_class_ap: np.ndarray, annotated: np.ndarray) -> dict[str, float]:
    """Compare the classes that a client annotates with those it does not.

    The model is the same for all clients, so a class counts once for each client of the kind.
    Classes without AP (NaN) are left out.

    Args:
        per_class_ap: (C,) AP, NaN where undefined.
        annotated: (K, C) bool, True where client k annotates class c.

    Returns:
        ``mAP_annotated``, the mean AP over all pairs (client, class) where the client annotates the
        class, and ``mAP_missing``, over all pairs where it does not. A key without any pair is left
        out.
    """
    annotated = np.asarray(annotated, dtype=bool)
    ap = np.broadcast_to(per_class_ap, annotated.shape)
    defined = ~np.isnan(ap)
    pairs = {"mAP_annotated": annotated & defined, "mAP_missing": ~annotated & defined}
    return {name: float(ap[chosen].mean()) for name, chosen in pairs.items() if chosen.any()}


def _checked_probability(probability: np.ndarray) -> np.ndarray:
    probability = np.asarray(probability)
    if probability.ndim != 2:
        raise ValueError(f"probability has shape {probability.shape}, expected (N, C)")
    if probability.dtype != np.float32:
        probability = probability.astype(np.float64)
    finite = np.isfinite(probability).all(axis=0)
    if not finite.all():
        raise ValueError(
            f"non-finite probabilities in {int((~finite).sum())} of {finite.size} classes"
        )
    if probability.size and (probability.min() < 0 or probability.max() > 1):
        raise ValueError("probabilities outside [0, 1]; pass sigmoids, not logits")
    return probability


def _checked_truth(
    truth: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return where the class is present and which cells are known; None when all are."""
    truth = np.asarray(truth)
    if truth.shape != shape:
        raise ValueError(f"truth has shape {truth.shape}, probability {shape}")
    positive = truth == 1
    known = positive | (truth == 0)
    if known.all():
        return positive, None
    if not np.isnan(truth[~known]).all():
        raise ValueError("truth holds values other than 0, 1 and NaN")
    return positive, known


def _ranking(
    probability: np.ndarray,
    positive: np.ndarray,
    known: np.ndarray | None,
    *,
    negatives: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC of each class from one sort of all cells."""
    classes, positives = positive.shape[1], _count(positive)
    column, above, rank, hits = _thresholds(probability, positive, known)
    first = np.ones(len(column), dtype=bool)
    first[1:] = column[1:] != column[:-1]
    hits_before = np.where(first, 0, np.roll(hits, 1))
    gained = hits - hits_before
    area = np.bincount(column, gained * (hits / rank), minlength=classes)
    # A positive beats the negatives ranked below it and ties with half of its own group's.
    lost = (above - hits_before + rank - hits) / 2
    pairs = np.bincount(column, gained * (negatives[column] - lost), minlength=classes)
    return _ratio(area, positives), _ratio(pairs, positives * negatives)


def _thresholds(
    probability: np.ndarray, positive: np.ndarray, known: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """List every distinct probability that a positive has, class by class, from high to low.

    Returns:
        The class, the number of images above, the number at or above, and the positives at or
        above.
    """
    keys = _sort_keys(probability, positive)
    if known is not None:
        keys[~known.T] = np.iinfo(keys.dtype).max - 1  # behind all others, label bit 0
    keys.sort(axis=1)
    last_of_ties = np.ones(keys.shape, dtype=bool)
    last_of_ties[:, :-1] = (keys[:, 1:] ^ keys[:, :-1]) > 1
    ends, labels = np.flatnonzero(last_of_ties), (keys & 1).ravel()
    # Within ties the label bit sorts positives last, so a group with one ends in one.
    chosen = np.flatnonzero(labels[ends])
    starts = np.where(chosen > 0, ends[chosen - 1] + 1, 0)
    column = ends[chosen] // max(keys.shape[1], 1)
    row_start = column * keys.shape[1]
    positives_so_far = np.cumsum(labels, dtype=np.int64)
    hits = positives_so_far[ends[chosen]] - np.append(0, _count(positive).cumsum())[column]
    return column, starts - row_start, ends[chosen] + 1 - row_start, hits


def _sort_keys(probability: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(C, N) unsigned integers ascending as the probability descends; the lowest bit is the label.

    The bits of non-negative floats order as the floats do, so that sorting plain integers, which is
    several times faster than an argsort, carries the labels along.
    """
    unsigned = np.uint32 if probability.dtype == np.float32 else np.uint64
    bits: np.ndarray = np.ascontiguousarray(probability.T).view(unsigned)
    one: np.ndarray = np.ones(1, dtype=probability.dtype).view(unsigned)
    # The shift also drops the sign bit, so that -0.0 ties with 0.0.
    keys: np.ndarray = ((one - bits) << 1) | positive.T
    return keys


def _thresholded(
    predicted: np.ndarray,
    positive: np.ndarray,
    known: np.ndarray | None,
    *,
    evaluated: np.ndarray,
) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and balanced accuracy of each class at the threshold."""
    hits, positives = _count(predicted & positive), _count(positive)
    claimed = _count(predicted if known is None else predicted & known)
    negatives = evaluated - positives
    sensitivity = _ratio(hits, positives)
    specificity = _ratio(negatives - (claimed - hits), negatives)
    return {
        "precision": _ratio(hits, claimed, undefined=0),
        "recall": sensitivity,
        "f1": _ratio(2 * hits, claimed + positives),
        "balanced_accuracy": (sensitivity + specificity) / 2,
    }


def _overall(per_class: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the classes that have positives and negatives, and how many have not."""
    present = per_class["positives"] > 0
    both = measurable(per_class["positives"], per_class["evaluated"])
    return {
        "mAP": _mean(per_class["ap"][both]),
        "macro_f1": _mean(per_class["f1"][both]),
        "macro_recall": _mean(per_class["recall"][both]),
        "macro_precision": _mean(per_class["precision"][both]),
        "balanced_accuracy": _mean(per_class["balanced_accuracy"][both]),
        "macro_auroc": _mean(per_class["auroc"][both]),
        "classes_evaluated": float(both.sum()),
        "classes_without_positives": float((~present).sum()),
        "classes_without_negatives": float((present & ~both).sum()),
    }


def _over_cells(
    probability: np.ndarray, predicted: np.ndarray, positive: np.ndarray, known: np.ndarray | None
) -> dict[str, float]:
    """Hamming loss and expected calibration error over all known cells."""
    judged = slice(None) if known is None else known
    probability, positive = probability[judged].ravel(), positive[judged].ravel()
    if not probability.size:
        return {"hamming_loss": float("nan"), "ece": float("nan")}
    gap = np.bincount(_bin_of(probability), probability - positive.astype(probability.dtype))
    return {
        "hamming_loss": float((predicted[judged].ravel() != positive).mean()),
        "ece": float(np.abs(gap).sum() / probability.size),
    }


def calibration_bins(probability: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(3, 15) cells, sum of their probabilities, and positives, in bins of equal width.

    Args:
        probability: (n,) in [0, 1].
        positive: (n,) bool.
    """
    bins = _bin_of(probability)
    columns = (np.ones(len(bins)), probability, positive)
    return np.stack([np.bincount(bins, column, CALIBRATION_BINS) for column in columns])


def _bin_of(probability: np.ndarray) -> np.ndarray:
    found: np.ndarray = (probability * CALIBRATION_BINS).astype(np.intp)
    return found.clip(max=CALIBRATION_BINS - 1)


def _count(cells: np.ndarray) -> np.ndarray:
    counts: np.ndarray = np.count_nonzero(cells, axis=0).astype(np.int64)
    return counts


def _ratio(
    numerator: np.ndarray, denominator: np.ndarray, *, undefined: float = np.nan
) -> np.ndarray:
    out = np.full(denominator.shape, undefined, dtype=np.float64)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
