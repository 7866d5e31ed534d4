"""Noise that depends on the image: look-alike images are mislabelled alike."""

from __future__ import annotations

import numpy as np

from utils_.noise.base import Rate, TrainingLabels
from utils_.noise.cells import move
from utils_.rng import derive

IMAGE_SHARE = 0.8  # the image's share of the variance of a score; the rest is the annotator's luck
RIDGE = 0.1  # this share of the mean variance is added before whitening
COLOUR_GRID, EDGE_GRID = 6, 4
BLOCK = 256  # images in memory at once


def instance(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Move positive labels by what the image looks like.

    The score of an image and a class is a frozen random projection of the image's features (pooled
    colours and edges, whitened) plus some luck: 80 % of its variance comes from the pixels. There
    are two kinds:

    - Hardness says how hard a finding is to see. Of each class's positives those on the hardest
      images move, a share of ``rate``.
    - Likeness says what the image looks like. They move to the negative class of the highest score.

    The number of positives stays, so one-hot rows stay one-hot, and rows without a positive stay as
    they are. Without pixels (a dry run reads none) random features stand in for the images'.

    After Xia et al., Part-dependent label noise, NeurIPS 2020 (docs/methods.md 14.5 a). Two things
    differ. There each image's rate is drawn at random; here it depends on the image, so that errors
    can be learnt. There the new class is drawn from the softmax of a random projection of the
    pixels; here the highest score with its luck decides, because then a higher rate only adds.

    Args:
        training: the rows to corrupt.
        rate: share of the positives of each class, in [0, 1]; a number, or one for each row.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    features = _features(training)
    hardness = _scores(training, features, name="hardness")
    likeness = _scores(training, features, name="likeness")
    luck = training.uniform("instance/rank")  # within a rank, so that small classes are unbiased
    leave = np.zeros_like(hardness)
    for c, positive in enumerate(training.positive.T):
        hardest_first = np.argsort(np.argsort(-hardness[positive, c], kind="stable"))
        leave[positive, c] = (hardest_first + luck[positive, c]) / max(1, positive.sum())
    return move(training, rate, leave=leave, arrive=-likeness)


def _scores(training: TrainingLabels, features: np.ndarray, *, name: str) -> np.ndarray:
    """(n, C) scores of variance 1: a random projection of the features, and luck."""
    classes = training.labels.shape[1]
    rng = derive(training.data_seed, "noise", f"instance/{name}/projection")
    seen = _standardised(features @ rng.standard_normal((features.shape[1], classes)))
    shape = (training.images, classes)
    luck = training.draw(f"instance/{name}/luck", lambda rng: rng.standard_normal(shape))
    scores: np.ndarray = np.sqrt(IMAGE_SHARE) * seen + np.sqrt(1 - IMAGE_SHARE) * luck
    return scores


def _features(training: TrainingLabels) -> np.ndarray:
    """(n, d) whitened features of the training images."""
    if training.pixels is None:
        shape = (training.images, COLOUR_GRID**2)
        return training.draw("instance/stand-in", lambda rng: rng.standard_normal(shape))
    features = _standardised(image_features(training.pixels, training.rows))
    covariance = features.T @ features / len(features)
    variance = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    spread, axes = np.linalg.eigh(covariance + RIDGE * variance * np.eye(len(covariance)))
    # The symmetric square root: it does not depend on the signs of the axes.
    white: np.ndarray = features @ (axes / np.sqrt(spread)) @ axes.T
    return white


def image_features(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean colours on a 6 x 6 grid and mean edge strength on a 4 x 4 grid.

    Args:
        pixels: (N, H, W, 3) uint8, may be memory-mapped.
        rows: (n,) the images to look at.

    Returns:
        (n, d) float64; d is 124 for images of 6 x 6 pixels or more.
    """
    blocks = np.array_split(rows, max(1, -(-len(rows) // BLOCK)))
    return np.concatenate([_block_features(pixels[block]) for block in blocks])


def _block_features(images: np.ndarray) -> np.ndarray:
    images = images.astype(np.float32) / 255
    grey = (images[..., :1] + images[..., 1:2] + images[..., 2:]) / 3  # mean(axis=3) is slow
    edges = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    edges += np.abs(np.diff(grey, axis=2, append=grey[:, :, -1:]))
    pooled = (_pooled(images, COLOUR_GRID), _pooled(edges, EDGE_GRID))
    return np.concatenate([p.reshape(len(images), -1) for p in pooled], axis=1).astype(np.float64)


def _pooled(images: np.ndarray, grid: int) -> np.ndarray:
    """Means over a grid of at most ``grid`` x ``grid`` fields."""
    for axis in (1, 2):
        length = images.shape[axis]
        starts = np.arange(min(grid, length)) * length // min(grid, length)
        sizes = np.diff(starts, append=length).reshape([-1 if a == axis else 1 for a in range(4)])
        images = np.add.reduceat(images, starts, axis=axis) / sizes
    return images


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant columns become 0."""
    deviation = values.std(axis=0)
    scaled: np.ndarray = values - values.mean(axis=0)
    return scaled / np.where(deviation > 1e-9, deviation, np.inf)
