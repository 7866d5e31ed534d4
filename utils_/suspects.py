"""Which given labels are probably wrong: predictions of a model against what annotators wrote.

Labels go wrong for whole images (a report of another patient, one diagnosis for two eyes) and cell
by cell. So an image is judged first, by how likely its given labels are together: under calibrated
predictions, or as labels drawn without a look at the image. A label is then as probably wrong as
its image is doubtful and its prediction contradicts it. In the order of the list the image counts
less, by the root of its doubt: where classes are hard to see, the cell alone is the better witness.

This is half a step of an EM that begins with the ranks of the loss. Iterated to its end it may take
the doubtful images for the good ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = 1e-4  # predictions and shares are kept this far from 0 and 1
ANCHOR = 0.8  # the doubt of the image with the highest loss, before anything is known
NEWTON_STEPS = 10
RIDGE, PRIOR_IMAGES = 5.0, 2.0  # images that speak for no shift, and for the usual share
SCALES = (0.3, 2.0)  # of the logits: a model may be over- or underconfident


@dataclass(frozen=True)
class Doubt:
    """What is thought of the labels of n images, C classes.

    Attributes:
        wrong: (n, C) float64, probability that the given label is wrong; NaN where none is given.
        suspicion: (n, C) float64 in [0, 1], what lists are ordered by; NaN where none is given.
        present: (n, C) float64, calibrated probability that the class is there.
        image: (n,) float64, probability that the image's labels are not its own.
    """

    wrong: np.ndarray
    suspicion: np.ndarray
    present: np.ndarray
    image: np.ndarray


def doubt_labels(probability: np.ndarray, given: np.ndarray) -> Doubt:
    """Judge the labels of one site.

    Args:
        probability: (n, C) in [0, 1], predictions of models that were not trained on the images.
        given: (n, C) of 0, 1 and NaN where nobody looked; such cells are not judged.
    """
    logits = log_odds_of(probability)
    known = ~np.isnan(given)
    label = np.where(known, given, 0.0)
    usual = (label.sum(axis=0) + TINY) / (known.sum(axis=0) + 2 * TINY)
    image = ANCHOR * _ranks(np.where(known, _loss(logits, label), 0.0).sum(axis=1), known)
    scale, shift = _calibrate(logits, label, (1 - image)[:, None] * known)
    present = np.clip(_sigmoid(scale * logits + shift), TINY, 1 - TINY)
    image = (image + _doubt_images(present, label, known, before=image, usual=usual)) / 2
    against = np.where(known, np.abs(label - present), np.nan)
    doubt = image[:, None]
    return Doubt(doubt * against, np.sqrt(doubt) * against, present, image)


def second_look(suspicion: np.ndarray) -> np.ndarray:
    """The value of a second look at labels, by how suspect they are.

    Cross-entropy of the given label minus entropy of the prediction (Bernhardt et al., Nature
    Communications 2022): high where a label is both probably wrong and easily told. It grows with
    the suspicion from about 0.22 on, and is above 0 from 0.5 on.
    """
    doubt = np.clip(suspicion, TINY, 1 - TINY)
    return np.asarray(doubt * log_odds_of(doubt))


def log_odds_of(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), kept finite."""
    p = np.clip(probability.astype(np.float64), TINY, 1 - TINY)
    return np.asarray(np.log(p) - np.log1p(-p))


def _calibrate(
    logits: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> tuple[float, np.ndarray]:
    """A common scale of the logits and a shift for each class, by the images not doubted."""
    scale, shift = 1.0, np.zeros(logits.shape[1])
    for _ in range(NEWTON_STEPS):
        present = _sigmoid(scale * logits + shift)
        gap, slope = weight * (label - present), weight * present * (1 - present)
        shift = shift + gap.sum(axis=0) / (slope.sum(axis=0) + RIDGE)
        step = (gap * logits).sum() / ((slope * logits**2).sum() + RIDGE)
        scale = float(np.clip(scale + step / 2, *SCALES))
    return scale, shift


def _doubt_images(
    present: np.ndarray,
    label: np.ndarray,
    known: np.ndarray,
    *,
    before: np.ndarray,
    usual: np.ndarray,
) -> np.ndarray:
    """(n,) probability that the given labels were drawn without a look at the image."""
    weight = before[:, None] * known
    drawn = (weight * label).sum(axis=0) + PRIOR_IMAGES * usual
    drawn = np.clip(drawn / (weight.sum(axis=0) + PRIOR_IMAGES), TINY, 1 - TINY)
    ratio = label * np.log(drawn / present) + (1 - label) * np.log((1 - drawn) / (1 - present))
    evidence = np.where(known, ratio, 0.0).sum(axis=1)
    first = _sigmoid(evidence + log_odds_of(before.mean(keepdims=True)))
    share = (before.mean() + first.mean()) / 2
    return _sigmoid(evidence + log_odds_of(np.array([share])))


def _ranks(loss: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) in [0, 1): the rank of the mean loss over the cells that are known."""
    mean = loss / np.maximum(known.sum(axis=1), 1)
    return np.asarray(mean.argsort(kind="stable").argsort() / max(len(mean), 1))


def _loss(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, logits) - label * logits)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))
