"""The noise of the published FedNML code, which replaces whole label vectors."""

from __future__ import annotations

import numpy as np

from utils_.noise.base import Rate, TrainingLabels


def paper(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Replace whole label vectors, as the published FedNML code does (docs/methods.md 14.6).

    1. Each image draws s ~ Dir(0.1). 0.5 is spread over its positives and added, s is renormalised,
       then becomes 0.7 s + 0.3 h with h the class frequencies of the whole training set.
    2. p_t is the mean of s over the positives, over all classes if there is none. Each client
       corrupts exactly floor(rate * n_k) images, drawn without replacement with probability
       proportional to 1 - p_t.
    3. The new vector has exactly m classes, m uniform in 1 .. max(2, min(M, C)) - 1 with M the most
       positives of any training image. They are drawn without replacement from s with its positives
       times 0.2.

    The new vector may equal the old one, so the realised rate is a little lower. The pixels play no
    part in it, although the publication calls this noise instance-dependent.

    What differs from the published code:

    - Both draws without replacement take the smallest exponential (largest Gumbel) keys. That has
      the same distribution (Efraimidis and Spirakis, Information Processing Letters 2006) and nests
      the selections of growing rates.
    - Unlabelled cells are neither drawn nor counted, and images without any label are left out of
      n_k.
    - Two cases in which the published code fails are defined. Without a positive anywhere h is
      uniform. Images of weight 0, where a single class takes all of s, are selected after the
      others.

    Args:
        training: the rows to corrupt.
        rate: share of each client's images, in [0, 1]; one number, or one for each row's client.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    classes = training.labels.shape[1]
    known, positive = training.known, training.positive
    affinity = paper_affinity(training)
    among = np.where(positive.any(axis=1, keepdims=True), positive, known)
    p_t = (affinity * among).sum(axis=1) / np.maximum(among.sum(axis=1), 1)
    key = training.draw("paper/select", lambda rng: rng.standard_exponential(training.images))
    selected = select(training, key=key, weight=1 - p_t, rate=rate)

    largest = max(2, min(int(positive.sum(axis=1).max()), classes)) - 1
    uniform = training.draw("paper/size", lambda rng: rng.random(training.images))
    size = 1 + (uniform * largest).astype(np.int64)
    gumbel = training.draw("paper/classes", lambda rng: rng.gumbel(size=(training.images, classes)))
    chance = np.where(known, affinity * np.where(positive, 0.2, 1), 0)[selected]
    noisy = training.labels.copy()
    noisy[selected] = _draw_classes(chance, size[selected], gumbel[selected])
    return noisy


def paper_affinity(training: TrainingLabels) -> np.ndarray:
    """(n, C) the vector s of docs/methods.md 14.6, step 1; rows sum to 1."""
    classes = training.labels.shape[1]
    concentration = np.full(classes, 0.1)
    s = training.draw("paper/s", lambda rng: rng.dirichlet(concentration, training.images))
    positives = training.positive.sum(axis=1, keepdims=True)
    s = s + 0.5 * training.positive / np.maximum(positives, 1)
    s /= s.sum(axis=1, keepdims=True)
    frequency = training.positive.sum(axis=0) / np.maximum(training.known.sum(axis=0), 1)
    total = frequency.sum()
    frequency = frequency / total if total > 0 else np.full(classes, 1 / classes)
    affinity: np.ndarray = 0.7 * s + 0.3 * frequency
    return affinity


def select(
    training: TrainingLabels, *, key: np.ndarray, weight: np.ndarray, rate: Rate
) -> np.ndarray:
    """Draw floor(rate * n_k) rows of each client, without replacement.

    Args:
        training: the rows; those without any label are not drawn and not counted in n_k.
        key: (n,) standard exponential numbers.
        weight: (n,) at least 0, to which the chance of a row is proportional.
        rate: in [0, 1]; one number, or one for each row's client.

    Returns:
        Indices into the n rows, client by client.
    """
    eligible = np.flatnonzero(training.known.any(axis=1))
    key, weight, client = key[eligible], weight[eligible], training.client[eligible]
    key = key / np.maximum(weight, 1e-12)  # the weight is about 0 where a class takes all of s
    order = np.lexsort((key, client))
    sizes = np.bincount(client)
    of_client = np.zeros(len(sizes))
    of_client[client] = np.broadcast_to(rate, (len(training.labels), 1))[eligible, 0]
    quota = np.floor(of_client * sizes + 1e-9)  # 0.29 * 100 is 28.999... in floating point
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    selected: np.ndarray = eligible[order[rank < np.repeat(quota, sizes)]]
    return selected


def _draw_classes(chance: np.ndarray, size: np.ndarray, gumbel: np.ndarray) -> np.ndarray:
    """(n, C) of 0 and 1: ``size`` distinct classes a row, drawn with probability ~ ``chance``."""
    with np.errstate(divide="ignore"):
        key = np.log(chance) + gumbel
    size = np.minimum(size, (chance > 0).sum(axis=1))
    order = np.argsort(-key, axis=1)
    drawn = np.empty(chance.shape, dtype=np.float32)
    np.put_along_axis(drawn, order, np.arange(chance.shape[1]) < size[:, None], axis=1)
    return drawn
