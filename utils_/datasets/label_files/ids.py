"""Ids of patients, lesions and sites as people write them; what stands for a missing one."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger("fednml")
UNKNOWN_SITE = "unknown"
LARGE_GROUP = 0.05  # of the images: a patient with more is often an id that stands for many
FEW_IMAGES = 4  # but not where the data set is so small that a few images are that many
NAMES_SHOWN = 3

# What pandas, R, SAS, SPSS, Excel, DICOM anonymisers and people write where there is no id.
MISSING_IDS = frozenset(
    (
        *("", "nan", "na", "n/a", "n.a.", "#n/a", "<na>", "nat", "none", "null", "nil", "#null!"),
        *("#ref!", "#value!", "#name?", "#div/0!", "undefined", "(null)", "(blank)", "[null]"),
        *("?", "??", "???", ".", "..", "...", "-", "--", "---", "_", "\u2013", "\u2014"),
        *("xxx", "-1", "-1.0", "-9", "-9.0", "-99", "-99.0", "-999", "-999.0", "-9999", "-9999.0"),
        *("unknown", "unk", "unkn", "not known", "not available", "not recorded", "not applicable"),
        *("not specified", "unspecified", "missing", "empty", "blank", "no id", "tbd", "todo"),
        *("anonymous", "anonymized", "anonymised", "anonymous patient", "removed", "redacted"),
        *("deidentified", "de-identified", "masked", "unbekannt", "k.a.", "keine angabe"),
        *("inconnu", "desconocido", "desconhecido", "sconosciuto", "onbekend"),
    )
)


def is_missing(text: str) -> bool:
    """Whether an id says that there is none, in any case and with any spaces around it."""
    return unicodedata.normalize("NFKC", text).strip().casefold() in MISSING_IDS


def number_groups(ids: Sequence[str], *, what: str, sites: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) int64: equal ids share a number, each missing id gets one of its own (logged).

    Args:
        ids: one text per image.
        what: what an id is called in the log, e.g. ``patient_id``.
        sites: (N,) names, where ids are unique within a site only: the same id at two sites is
            then two. An image without site belongs to the one site that has its id.
    """
    names = np.array(ids, dtype=str)
    texts, numbers = np.unique(names, return_inverse=True)
    numbers = numbers.reshape(-1).astype(np.int64)
    missing = np.array([is_missing(text) for text in texts.tolist()], dtype=bool)[numbers]
    if sites is not None:
        numbers = _by_site(names, numbers, sites, missing=missing, what=what)
    _report_large(names, numbers, missing, what=what)
    if missing.any():
        told = "%d of %d images have no %s: each counts as one of its own"
        logger.warning(told, missing.sum(), len(ids), what)
        numbers[missing] = numbers.max() + 1 + np.arange(missing.sum())
    return numbers


def name_sites(ids: Sequence[str]) -> np.ndarray:
    """Return (N,) str, the site of each image; those with a missing id are the site 'unknown'."""
    texts, place = np.unique(np.array(ids, dtype=str), return_inverse=True)
    missing = np.array([is_missing(text) for text in texts.tolist()], dtype=bool)
    count = int(missing[place.reshape(-1)].sum())
    if count:
        logger.warning("%d of %d images have no site: they form one", count, len(ids))
    _report_twins(texts[~missing].tolist())
    sites: np.ndarray = np.where(missing, UNKNOWN_SITE, texts)[place.reshape(-1)]
    return sites


def _by_site(
    names: np.ndarray, numbers: np.ndarray, sites: np.ndarray, *, missing: np.ndarray, what: str
) -> np.ndarray:
    """Number the pairs of id and site; ids that are at one site only keep their order."""
    labels, site = np.unique(sites, return_inverse=True)
    site = np.where(missing, 0, site.reshape(-1))
    known = (sites != UNKNOWN_SITE) & ~missing
    pairs = np.unique(np.stack([numbers[known], site[known]]), axis=1)
    homes = np.bincount(pairs[0], minlength=numbers.max() + 1)
    home = np.zeros(len(homes), dtype=np.int64)
    home[pairs[0]] = pairs[1]
    homeless = ~known & (homes[numbers] == 1)
    site = np.where(homeless, home[numbers], site)
    for number in np.flatnonzero(homes > 1)[:1].tolist():
        where = " and ".join(labels[pairs[1][pairs[0] == number][:2]].tolist())
        logger.warning(
            "%s '%s' occurs at %s (%d such ids in all): taken as different patients, since each "
            "site may number its own",
            *(what, names[numbers == number][0], where, (homes > 1).sum()),
        )
    _, paired = np.unique(numbers * (len(labels) + 1) + site, return_inverse=True)
    result: np.ndarray = paired.reshape(-1).astype(np.int64)
    return result


def _report_large(
    names: np.ndarray, numbers: np.ndarray, missing: np.ndarray, *, what: str
) -> None:
    """Log the ids that more images share than one patient is likely to have."""
    sizes = np.bincount(numbers[~missing]) if (~missing).any() else np.zeros(0, np.int64)
    large = np.flatnonzero((sizes > LARGE_GROUP * len(names)) & (sizes >= FEW_IMAGES))
    if not len(large):
        return
    shown = large[np.argsort(-sizes[large], kind="stable")][:NAMES_SHOWN]
    told = [f"'{names[numbers == number][0]}' {sizes[number]}" for number in shown.tolist()]
    more = f" and {len(large) - len(shown)} more" if len(large) > len(shown) else ""
    logger.warning(
        "of %d images very many share a %s: %s%s; images of one id stay together, so parts and "
        "sites may differ much from what is asked; check that each is one patient",
        *(len(names), what, ", ".join(told), more),
    )


def _report_twins(sites: Sequence[str]) -> None:
    """Log names of sites that differ in case or spaces alone."""
    seen: dict[str, str] = {}
    for site in sites:
        other = seen.setdefault("".join(site.casefold().split()), site)
        if other != site:
            logger.warning("sites '%s' and '%s' count as two; write one name", other, site)
