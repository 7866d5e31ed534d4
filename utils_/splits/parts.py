"""Cuts images into train, val and test; a patient or lesion stays whole, labels play no role."""

from __future__ import annotations

import logging

import numpy as np

from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.errors import UserError
from utils_.rng import derive
from utils_.splits.base import FAR, dense

logger = logging.getLogger("fednml")


def cut_parts(
    part: np.ndarray,
    groups: np.ndarray | None,
    *,
    val_share: float,
    test_share: float,
    data_seed: int,
) -> np.ndarray:
    """Give every image a part; groups stay whole and label values play no role.

    - Rows that the files put into TRAIN, VAL or TEST stay there. But where the files have no VAL
      row, a val is cut out of TRAIN.
    - UNASSIGNED rows follow a fixed row of their group if there is one: TEST before VAL before
      TRAIN. The others are cut into test (unless the files fix one), then val, then train.
    - Shares count images. They are met to within half a group.

    Args:
        part: (N,) uint8 of TRAIN, VAL, TEST, UNASSIGNED.
        groups: (N,) int64 or None (every image on its own).
        val_share: in [0, 1), of the images that are not test; 0 means no val.
        test_share: in [0, 1), of the unassigned images; 0 means no test but that of the files.
        data_seed: the seed of the data.

    Returns:
        (N,) uint8 of TRAIN, VAL, TEST.

    Raises:
        UserError: a share is out of range, or there are too few groups to cut.
    """
    groups = dense(groups, len(part))
    part = _follow_fixed(part, groups)
    for option, target, source, share in (
        ("--test-share", TEST, UNASSIGNED, test_share),
        ("--val-share", VAL, TRAIN, val_share),
    ):
        if not 0 <= share < 1:
            raise UserError(f"{option} {share} is out of range; give a share from 0 up to below 1")
        if target == VAL:
            part[part == UNASSIGNED] = TRAIN
        if share > 0 and not (part == target).any() and (part == source).any():
            rng = derive(data_seed, "split", option)
            part[_cut(part == source, groups, share=share, rng=rng, option=option)] = target
    return part


def _follow_fixed(part: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Send unassigned rows to the part that the files fix for another image of their group."""
    followed = part.astype(np.uint8)
    parts_of_group = np.zeros(len(groups), dtype=np.int64)  # there are no more groups than rows
    for fixed in (TRAIN, VAL, TEST):  # the later wins: better to lose training images than to leak
        has = np.zeros(len(groups), dtype=bool)
        has[groups[part == fixed]] = True
        parts_of_group += has
        followed[(part == UNASSIGNED) & has[groups]] = fixed
    straddling = int((parts_of_group > 1).sum())
    if straddling:
        logger.warning(
            "the files put images of %d patients or lesions into several of train, val and test",
            straddling,
        )
    return followed


def _cut(
    source: np.ndarray,
    groups: np.ndarray,
    *,
    share: float,
    rng: np.random.Generator,
    option: str,
) -> np.ndarray:
    """Return (N,) bool: random whole groups that make about ``share`` of the ``source`` rows."""
    total = np.bincount(groups)
    inside = np.bincount(groups[source], minlength=len(total))
    # Groups that lie in several parts already are not spread any further.
    whole = np.flatnonzero((inside > 0) & (inside == total))
    if len(whole) < 2:
        images = int(source.sum())
        told, deed = f"there is {images} image", "add images"
        if images > 1:
            told = f"the {images} images are of one patient, or of such as are in other parts too"
            deed = "check the ids of the patients"
        none = " or use --val-share 0" if option == "--val-share" else ""
        raise UserError(f"{option} {share} cannot be cut: {told}; {deed}{none}")
    order = rng.permutation(whole)
    reached = np.cumsum(total[order])
    # Take the number of groups whose images come nearest to the share, and leave at least one.
    taken = 1 + int(np.abs(reached[:-1] - share * source.sum()).argmin())
    chosen = np.zeros(len(total), dtype=bool)
    chosen[order[:taken]] = True
    rows: np.ndarray = source & chosen[groups]
    _report_share(int(rows.sum()), int(source.sum()), share=share, option=option)
    return rows


def _report_share(images: int, total: int, *, share: float, option: str) -> None:
    """Log a part that is far from what was asked for: large groups cannot be cut."""
    asked = share * total
    if abs(images - asked) > max(1, FAR * asked):
        logger.warning(
            "%s %s: the %s part has %d of %d images (%.0f %%), since images of one patient stay "
            "together",
            *(option, share, option.split("-")[2], images, total, 100 * images / total),
        )
