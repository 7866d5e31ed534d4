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
FEWEST_IMAGES, PERMUTATIONS = 20, 5  # of the estimate how many labels are strangers to their image
MIXTURE_STEPS = 200
WIDE, HALVINGS = 50.0, 60  # where a shift of log odds is looked for, and how finely
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


@dataclass(frozen=True)
class Evidence:
    """What predictions say of the labels of n images, C classes.

    Attributes:
        log_odds: (n,) float64, how much likelier the given labels of an image are if they were
            drawn without a look at it than by its prediction, in natural logarithms.
        before: (n,) float64 in [0, 1], what was thought of the images before: ranks of the loss.
        present: (n, C) float64, calibrated probability that the class is there.
        drawn: (C,) float64, share of positives among labels drawn without a look.
    """

    log_odds: np.ndarray
    before: np.ndarray
    present: np.ndarray
    drawn: np.ndarray


def doubt_labels(probability: np.ndarray, given: np.ndarray) -> Doubt:
    """Judge the labels of one site.

    Args:
        probability: (n, C) in [0, 1], predictions of models that were not trained on the images.
        given: (n, C) of 0, 1 and NaN where nobody looked; such cells are not judged.
    """
    evidence = weigh_labels(probability, given)
    image = (evidence.before + doubt_images(evidence.log_odds, evidence.before.mean())) / 2
    present = evidence.present
    against = np.where(np.isnan(given), np.nan, np.abs(np.nan_to_num(given) - present))
    doubt = image[:, None]
    return Doubt(doubt * against, np.sqrt(doubt) * against, present, image)


def weigh_labels(probability: np.ndarray, given: np.ndarray) -> Evidence:
    """Hold the labels of one site against predictions.

    Args:
        probability: (n, C) in [0, 1].
        given: (n, C) of 0, 1 and NaN where nobody looked; such cells are not judged.
    """
    logits, known = log_odds_of(probability), ~np.isnan(given)
    label = np.where(known, given, 0.0)
    before = ANCHOR * _ranks(np.where(known, _loss(logits, label), 0.0).sum(axis=1), known)
    scale, shift = _calibrate(logits, label, (1 - before)[:, None] * known)
    present = np.clip(_sigmoid(scale * logits + shift), TINY, 1 - TINY)
    usual = (label.sum(axis=0) + TINY) / (known.sum(axis=0) + 2 * TINY)
    weight = before[:, None] * known
    drawn = (weight * label).sum(axis=0) + PRIOR_IMAGES * usual
    drawn = np.clip(drawn / (weight.sum(axis=0) + PRIOR_IMAGES), TINY, 1 - TINY)
    return Evidence(_against(given, present, drawn), before, present, drawn)


def doubt_images(log_odds: np.ndarray, share: float) -> np.ndarray:
    """(n,) probability that an image's labels were drawn without a look at it.

    Args:
        log_odds: (n,) evidence.
        share: of such images in [0, 1], as far as it is known. It goes half of the way to the
            mean of what follows from it.
    """
    first = _sigmoid(log_odds + log_odds_of(np.array([share])))
    return _sigmoid(log_odds + log_odds_of(np.array([(share + first.mean()) / 2])))


def mixture_share(log_odds: np.ndarray) -> float:
    """The likeliest share of images whose labels were drawn without a look, if evidence is right.

    EM for the one weight of a mixture, which has one maximum. Predictions that were trained on the
    labels believe in them, so it is rather too small.
    """
    share = ANCHOR / 2
    for _ in range(MIXTURE_STEPS):
        share = float(_sigmoid(log_odds + log_odds_of(np.array([share]))).mean())
    return share


def doubt_share(log_odds: np.ndarray, share: float) -> np.ndarray:
    """(n,) probabilities as :func:`doubt_images` gives them, whose mean is ``share`` in [0, 1]."""
    if not 0 < share < 1:
        return np.full(len(log_odds), share)
    low, high = -log_odds.max() - WIDE, -log_odds.min() + WIDE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_many = _sigmoid(log_odds + middle).mean() > share
        low, high = (low, middle) if too_many else (middle, high)
    return _sigmoid(log_odds + low)


def share_of_strangers(evidence: Evidence, given: np.ndarray, draw: np.random.Generator) -> float:
    """Share of images with a positive label whose labels fit no better than those of another image.

    Labels change places among images with equally many positives. Beyond the median of what such
    strange labels score lies half of the wrong ones, and hardly a right one: no clean label is
    needed for the estimate. NaN where less than ``FEWEST_IMAGES`` have a positive.
    """
    count = (given == 1).sum(axis=1)
    judged = count > 0
    if judged.sum() < FEWEST_IMAGES:
        return float("nan")
    strange = []
    for _ in range(PERMUTATIONS):
        moved = given[_exchange(count, draw)]
        strange.append(_against(moved, evidence.present, evidence.drawn)[judged])
    return float(2 * (evidence.log_odds[judged] > np.median(strange)).mean())


def _exchange(count: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(n,) for each image one of equal count, in a random order."""
    here, there = (np.lexsort((draw.random(len(count)), count)) for _ in range(2))
    exchange = np.empty_like(here)
    exchange[here] = there
    return exchange


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


def _against(given: np.ndarray, present: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(n,) log ratio of the given labels drawn without a look, over those by the prediction."""
    label = np.nan_to_num(given)
    ratio = label * np.log(drawn / present) + (1 - label) * np.log((1 - drawn) / (1 - present))
    return np.asarray(np.where(np.isnan(given), 0.0, ratio).sum(axis=1))


def _ranks(loss: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) in [0, 1): the rank of the mean loss over the cells that are known."""
    mean = loss / np.maximum(known.sum(axis=1), 1)
    return np.asarray(mean.argsort(kind="stable").argsort() / len(mean))


def _loss(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, logits) - label * logits)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))
