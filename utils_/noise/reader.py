"""Noise at the rates at which single radiologists were seen to miss and to invent findings.

The tables count the public expert labels of ChestX-ray14, which name each reader:

- ``READS``: Nabulsi et al., Scientific Reports 2021. 810 radiographs; two readers, each against the
  majority of three others.
- ``MORE_READS``: Majkowska et al., Radiology 2020. 13,081 reads against adjudicated labels. A
  reader may have sat on the panel that adjudicated, so these rates are on the low side.

The counts were made once, for this project; the publications themselves print other statistics.
They are of chest radiographs: for other images they are a pattern with realistic proportions, not a
measurement.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from utils_.noise.base import Rate, TrainingLabels, plain_name
from utils_.noise.cells import flip_cells
from utils_.rng import derive

logger = logging.getLogger("fednml")

# finding: (reads of images that show it, how many of these omit it,
#           reads of images that do not show it, how many of these report it)
READS = {
    "Atelectasis": (606, 240, 1014, 126),
    "Cardiomegaly": (162, 112, 1458, 6),
    "Effusion": (452, 178, 1168, 62),
    "Infiltration": (122, 94, 1498, 66),
    "Mass": (198, 60, 1422, 56),
    "Nodule": (260, 114, 1360, 79),
    "Pneumonia": (4, 4, 1616, 24),
    "Pneumothorax": (272, 83, 1348, 30),
    "Consolidation": (166, 21, 1454, 398),
    "Edema": (46, 29, 1574, 63),
    "Emphysema": (14, 10, 1606, 97),
    "Fibrosis": (26, 10, 1594, 76),
    "Pleural Thickening": (98, 62, 1522, 134),
    "Hernia": (10, 8, 1610, 6),
}
MORE_READS = {
    "Fracture": (554, 308, 12527, 105),
    "Pneumothorax": (672, 181, 12244, 217),
    "Airspace opacity": (6463, 1082, 6618, 434),
    "Nodule/mass": (1701, 546, 11119, 404),
}
SAME = {"Pleural Effusion": "Effusion", "Lung Opacity": "Airspace opacity",
        "Lung Lesion": "Nodule/mass", "Oedema": "Edema"}  # fmt: skip
PRIOR_READS = 20  # reads at the pooled rate that are added to a finding's own, which may be few


def reader(training: TrainingLabels, rate: Rate) -> np.ndarray:
    """Omit and report findings at the rates of each site's reader times ``rate``.

    Each site has one reader, see :func:`reader_profile`. Rare findings are reported far more often
    than they are there, as in the measurements: 6 % of the reads of images without a finding report
    it.

    Args:
        training: the rows to corrupt.
        rate: scale in [0, 1]; one number, or one for each row's client.

    Returns:
        (n, C) float32 of 0 and 1 where labels are known.
    """
    counts = _posterior(training.classes or [""] * training.labels.shape[1])
    sites, site = np.unique(training.client, return_inverse=True)
    readers = [_draw(counts, training.data_seed, site=int(number)) for number in sites]
    omitted, added = np.moveaxis(np.array(readers), 1, 0)[:, site]
    return flip_cells(training, omit=rate * omitted, add=rate * added, stream="reader")


def reader_profile(
    classes: Sequence[str], *, data_seed: int, site: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (C,) omission and (C,) commission rates, in [0, 1], of the reader of one site.

    They are drawn from the Beta posteriors whose means are :func:`reader_rates`: the reads that
    omit (or report) a finding against those that do not, ``PRIOR_READS`` pooled ones among them. A
    finding with few reads differs more between sites. The number of sites plays no part.
    """
    omitted, added = _draw(_posterior(classes), data_seed, site=site)
    return omitted, added


def reader_rates(classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (C,) omission and (C,) commission rates, in [0, 1]: the means over readers.

    - A class whose name is in a table (case and punctuation aside) has its own rates, drawn to the
      pooled ones by ``PRIOR_READS`` reads. Where both sources saw it, their reads are added.
    - The others have the pooled rates: the totals over the fourteen findings of ``READS``.
    """
    shown, omitted, absent, added = _posterior(classes).T
    return omitted / shown, added / absent


def _draw(counts: np.ndarray, data_seed: int, *, site: int) -> np.ndarray:
    """(2, C) rates of one reader, from the (C, 4) reads of the posterior."""
    shown, omitted, absent, added = counts.T
    rng = derive(data_seed, "noise", "reader", site)
    return np.stack([rng.beta(omitted, shown - omitted), rng.beta(added, absent - added)])


def _posterior(classes: Sequence[str]) -> np.ndarray:
    """(C, 4) reads of each class as in ``READS``, with ``PRIOR_READS`` pooled ones of each kind."""
    shown, omitted, absent, reported = np.sum(list(READS.values()), axis=0)
    counts = np.array([_reads(name) for name in classes]).reshape(-1, 4)
    named = [name for name, count in zip(classes, counts, strict=True) if count[0]]
    rest = f"the other {len(classes) - len(named)} of {len(classes)} classes have the pooled rates"
    logger.info("reader noise: own rates for %s; %s", ", ".join(named) or "no class", rest)
    counts += PRIOR_READS * np.array([1, omitted / shown, 1, reported / absent])
    return counts


def _reads(name: str) -> np.ndarray:
    """(4,) reads of one finding over both sources, 0 where it is unknown."""
    other = {plain_name(alias): plain_name(finding) for alias, finding in SAME.items()}
    wanted = other.get(plain_name(name), plain_name(name))
    found = [
        counts
        for source in (READS, MORE_READS)
        for finding, counts in source.items()
        if plain_name(finding) == wanted
    ]
    total: np.ndarray = np.sum([np.zeros(4), *map(np.asarray, found)], axis=0)
    return total
