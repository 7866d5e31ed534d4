"""Label noise: which training labels an annotator gets wrong, and what is written instead.

Every type is coupled: the random numbers belong to the image (its row in the dataset) and the
class, and never to the rate. A higher rate adds corrupted images or cells and leaves the earlier
ones as they are; another number or order of clients draws the same numbers. Cells without a label
(NaN) stay without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils_.errors import UserError, nearest
from utils_.rng import derive


@dataclass(frozen=True)
class TrainingLabels:
    """The n training rows that noise acts on, and the random numbers that belong to them.

    Attributes:
        labels: (n, C) float32 of 0, 1 and NaN (not annotated in the files).
        client: (n,) int32, the client that holds each row.
        rows: (n,) int64, their rows in the dataset.
        images: N, rows of the whole dataset.
        data_seed: the seed of the data.
    """

    labels: np.ndarray
    client: np.ndarray
    rows: np.ndarray
    images: int
    data_seed: int

    @property
    def known(self) -> np.ndarray:
        """(n, C) bool, cells with a label."""
        return ~np.isnan(self.labels)

    @property
    def positive(self) -> np.ndarray:
        """(n, C) bool, cells labelled 1."""
        return self.labels == 1

    def draw(self, name: str, sample: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        """Draw for all N images of the dataset, from the stream ``name``, and keep our rows."""
        return sample(derive(self.data_seed, "noise", name))[self.rows]


NoiseModel = Callable[[TrainingLabels, float], np.ndarray]  # the result: noisy labels (n, C)


def add_noise(
    labels: np.ndarray,
    client: np.ndarray,
    *,
    rate: float,
    noise_type: str,
    data_seed: int,
) -> np.ndarray:
    """Return the labels with noise in the training rows.

    Args:
        labels: (N, C) float32 of 0, 1 and NaN.
        client: (N,) int32, -1 outside train.
        rate: in [0, 1]; what it counts is said by the type.
        noise_type: a name of ``NOISE_TYPES``.
        data_seed: the seed of the data.

    Returns:
        (N, C) float32, NaN where ``labels`` is; unchanged where ``client`` is -1.

    Raises:
        UserError: unknown type, or a rate outside [0, 1].
    """
    if noise_type not in NOISE_TYPES:
        raise UserError(f"--noise-type {noise_type} is unknown; {nearest(noise_type, NOISE_TYPES)}")
    if not 0 <= rate <= 1:
        raise UserError(f"--noise {rate} is out of range; give a rate from 0 to 1")
    noisy = labels.astype(np.float32, copy=True)
    rows = np.flatnonzero(client >= 0)
    if rate == 0 or not len(rows):
        return noisy
    training = TrainingLabels(noisy[rows], client[rows], rows, len(labels), data_seed)
    noisy[rows] = np.where(training.known, NOISE_TYPES[noise_type](training, rate), np.nan)
    return noisy


def no_noise(training: TrainingLabels, rate: float) -> np.ndarray:
    """Leave the labels as they are, whatever the rate."""
    return training.labels.copy()


def paper(training: TrainingLabels, rate: float) -> np.ndarray:
    """Replace whole label vectors, as the published FedNML code does (methods.md 14.6).

    Each image has s ~ Dir(0.1), plus 0.5 spread over its positives, renormalised, then
    0.7 s + 0.3 h with h the class frequencies of the whole training set. p_t is the mean of s over
    the positives (over all classes if there is none). Each client corrupts exactly
    floor(rate * n_k) images, drawn without replacement with probability proportional to 1 - p_t.
    The new vector is exactly m classes, m uniform in 1 .. max(2, min(M, C)) - 1 with M the most
    positives of any training image, drawn without replacement from s with positives times 0.2.
    It may equal the old one, so the realised rate is a little lower. The images play no part in
    it, although the publication calls this noise instance-dependent.

    What differs from the published code: both draws without replacement take the smallest
    exponential (largest Gumbel) keys, which has the same distribution (Efraimidis and Spirakis,
    Information Processing Letters 2006) and nests the selections of growing rates. Unlabelled
    cells are neither drawn nor counted, and images without any label are left out of n_k. Without
    a positive anywhere h is uniform, and images of weight 0 (where a single class takes all of s)
    are selected after the others; the published code fails in both cases.

    Args:
        training: the rows to corrupt.
        rate: share of each client's images, in [0, 1].

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    classes = training.labels.shape[1]
    known, positive = training.known, training.positive
    affinity = _paper_affinity(training)
    among = np.where(positive.any(axis=1, keepdims=True), positive, known)
    p_t = (affinity * among).sum(axis=1) / np.maximum(among.sum(axis=1), 1)
    key = training.draw("paper/select", lambda rng: rng.standard_exponential(training.images))
    selected = _select(training, key=key, weight=1 - p_t, rate=rate)

    largest = max(2, min(int(positive.sum(axis=1).max()), classes)) - 1
    uniform = training.draw("paper/size", lambda rng: rng.random(training.images))
    size = 1 + (uniform * largest).astype(np.int64)
    gumbel = training.draw("paper/classes", lambda rng: rng.gumbel(size=(training.images, classes)))
    chance = np.where(known, affinity * np.where(positive, 0.2, 1), 0)[selected]
    noisy = training.labels.copy()
    noisy[selected] = _draw_classes(chance, size[selected], gumbel[selected])
    return noisy


def symmetric(training: TrainingLabels, rate: float) -> np.ndarray:
    """Move each positive label, with probability ``rate``, to a class that is negative there.

    On one-hot rows this is the textbook symmetric noise whose new class is uniform over the C - 1
    others, so the rate is the share of wrong images (methods.md 14.1). On multi-label rows every
    positive moves on its own and no two to the same class: the number of positives stays, and the
    share of wrong images is larger than the rate (1 - (1 - rate)^p for p positives). Rows without
    a positive have nothing to move and stay; so do positives for which no negative is left.

    Args:
        training: the rows to corrupt.
        rate: share of the positive labels, in [0, 1].

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    shape = (training.images, training.labels.shape[1])
    leave = training.draw("symmetric/leave", lambda rng: rng.random(shape))
    arrive = training.draw("symmetric/arrive", lambda rng: rng.random(shape))
    positive, negative = training.positive, training.labels == 0
    # the j-th positive to leave is matched with the j-th negative, whatever the rate
    width = int(positive.sum(axis=1).max())
    source = np.argsort(np.where(positive, leave, 2), axis=1)[:, :width]
    target = np.argsort(np.where(negative, arrive, 2), axis=1)[:, :width]
    pairs = np.minimum(positive.sum(axis=1), negative.sum(axis=1))
    moved = np.arange(width) < pairs[:, None]
    moved &= np.take_along_axis(leave, source, axis=1) < rate
    noisy, row = training.labels.copy(), np.nonzero(moved)[0]
    noisy[row, source[moved]] = 0
    noisy[row, target[moved]] = 1
    return noisy


def flip(
    training: TrainingLabels, rate: float, *, false_positive: float | np.ndarray | None = None
) -> np.ndarray:
    """Flip cells independently: positives are omitted, negatives reported as positive.

    Each positive is omitted with probability ``rate``. Negatives of class c turn positive with
    probability rate * min(1, positives_c / negatives_c), counted over the training set: as many
    labels come as go, so the prevalence of a class stays what it was. With the plain rate for
    negatives the false positives would outnumber the true ones many times over, since most
    classes are rare. Above a prevalence of one half negatives flip with the rate too, so no cell
    flips with more than the rate, and prevalence falls.

    Args:
        training: the rows to corrupt.
        rate: probability that a positive is omitted (epsilon_10), in [0, 1].
        false_positive: probability that a negative turns positive (epsilon_01), a number or (C,),
            in [0, 1], in place of the rule above.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    if false_positive is None:
        positives = training.positive.sum(axis=0)
        negatives = (training.labels == 0).sum(axis=0)
        false_positive = rate * np.minimum(1, positives / np.maximum(negatives, 1))
    shape = (training.images, training.labels.shape[1])
    uniform = training.draw("flip", lambda rng: rng.random(shape))
    flipped = uniform < np.where(training.positive, rate, false_positive)
    return np.where(flipped, 1 - training.labels, training.labels)


NOISE_TYPES: dict[str, NoiseModel] = {
    "paper": paper,
    "symmetric": symmetric,
    "flip": flip,
    "none": no_noise,
}


def _paper_affinity(training: TrainingLabels) -> np.ndarray:
    """(n, C) the vector s of methods.md 14.6 step 1; rows sum to 1."""
    classes = training.labels.shape[1]
    concentration = np.full(classes, 0.1)
    s = training.draw("paper/s", lambda rng: rng.dirichlet(concentration, training.images))
    positives = training.positive.sum(axis=1, keepdims=True)
    s = s + 0.5 * training.positive / np.maximum(positives, 1)
    s /= s.sum(axis=1, keepdims=True)
    frequency = training.positive.sum(axis=0) / np.maximum(training.known.sum(axis=0), 1)
    total = frequency.sum()
    frequency = frequency / total if total > 0 else np.full(classes, 1 / classes)
    return 0.7 * s + 0.3 * frequency


def _select(
    training: TrainingLabels, *, key: np.ndarray, weight: np.ndarray, rate: float
) -> np.ndarray:
    """Indices of floor(rate * n_k) rows a client, without replacement, probability ~ ``weight``."""
    eligible = np.flatnonzero(training.known.any(axis=1))
    key, weight, client = key[eligible], weight[eligible], training.client[eligible]
    key = key / np.maximum(weight, 1e-12)  # 0, up to rounding, where a class takes all of s
    order = np.lexsort((key, client))
    sizes = np.bincount(client)
    quota = np.floor(rate * sizes + 1e-9)  # 0.29 * 100 is 28.999... in floating point
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return eligible[order[rank < np.repeat(quota, sizes)]]


def _draw_classes(chance: np.ndarray, size: np.ndarray, gumbel: np.ndarray) -> np.ndarray:
    """(n, C) of 0 and 1: ``size`` distinct classes a row, drawn with probability ~ ``chance``."""
    with np.errstate(divide="ignore"):
        key = np.log(chance) + gumbel
    size = np.minimum(size, (chance > 0).sum(axis=1))
    order = np.argsort(-key, axis=1)
    drawn = np.zeros(chance.shape, dtype=np.float32)
    np.put_along_axis(drawn, order, np.arange(chance.shape[1]) < size[:, None], axis=1)
    return drawn
