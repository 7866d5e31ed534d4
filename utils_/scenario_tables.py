"""What a scenario looks like as tables: one row a client, one row an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from utils_.datasets.base import PART_NAMES, ImageDataset
from utils_.scenario import NO_NAMES, Scenario
from utils_.site_names import SiteNames
from utils_.truth import UNKNOWN, VERIFIED, Reference

if TYPE_CHECKING:
    import pandas as pd


def client_table(
    scenario: Scenario,
    dataset: ImageDataset,
    names: SiteNames = NO_NAMES,
    *,
    truth: Reference,
) -> pd.DataFrame:
    """One row for each client: what it holds and how flawed its labels are, as ``truth`` judges.

    ===================== ======================================================================
    client, site, images  its number, its name where it is a site, how many images it holds
    annotated             the classes with an annotated cell that is not assumed, joined by ``;``
    annotated_classes     how many these are
    noise_samples         share of images with an annotated cell that differs from the truth
    noise_cells           share of annotated cells that differ (NaN without any)
    omission              share of annotated positives written as negative (NaN without any)
    commission            share of annotated negatives written as positive (NaN without any)
    missing_cells         share of cells that are not annotated
    assumed               share of cells that are assumed to be negative
    ===================== ======================================================================

    Cells of unknown truth count in none of the four shares of flaws. Where a client has nothing
    but such cells, the four are the word ``unknown``.
    """
    import pandas as pd

    table = []
    for client in range(scenario.client.max() + 1):
        rows = scenario.rows(client)
        assumed = scenario.assumed[rows]
        seen = (scenario.annotated[rows] & ~assumed).any(axis=0)
        table.append(
            {
                "client": client,
                **({"site": names.names[client]} if names.names else {}),
                "images": len(rows),
                "annotated": ";".join(np.array(dataset.classes, dtype=object)[seen]),
                "annotated_classes": int(seen.sum()),
                **_flaws(scenario, truth, rows),
                "missing_cells": float((~scenario.annotated[rows]).mean()),
                "assumed": float(assumed.mean()),
            }
        )
    return pd.DataFrame(table)


def class_table(
    scenario: Scenario, dataset: ImageDataset, names: SiteNames = NO_NAMES
) -> pd.DataFrame:
    """One row for each client and class: ``client``, ``site``, ``class``, and what it reads of it.

    ``annotated`` counts the cells that it annotates, those apart that are only assumed;
    ``positive`` counts those of them that say present.
    """
    import pandas as pd

    table = []
    for client in range(scenario.client.max() + 1):
        rows = scenario.rows(client)
        seen = scenario.annotated[rows] & ~scenario.assumed[rows]
        counts = seen.sum(axis=0), (seen & (scenario.noisy[rows] == 1)).sum(axis=0)
        site = {"site": names.names[client]} if names.names else {}
        for name, annotated, positive in zip(dataset.classes, *counts, strict=True):
            own = {"client": client, **site, "class": name}
            table.append(own | {"annotated": int(annotated), "positive": int(positive)})
    return pd.DataFrame(table)


def _flaws(scenario: Scenario, truth: Reference, rows: np.ndarray) -> dict[str, float | str]:
    """Shares of wrong labels among those of one client."""
    true, annotated = truth.labels[rows], scenario.annotated[rows]
    judged = annotated & ~np.isnan(true)
    if annotated.any() and not judged.any():
        return dict.fromkeys(("noise_samples", "noise_cells", "omission", "commission"), UNKNOWN)
    differs = judged & (scenario.noisy[rows] != true)
    # Where labels are verified in part, an image of which nothing is verified is no clean one.
    images = judged.any(axis=1) if truth.kind == VERIFIED else np.ones(len(rows), dtype=bool)
    return {
        "noise_samples": _share(differs.any(axis=1)[images]),
        "noise_cells": _share(differs[judged]),
        "omission": _share(differs[judged & (true == 1)]),
        "commission": _share(differs[judged & (true == 0)]),
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else np.nan


def assignment_table(scenario: Scenario, dataset: ImageDataset) -> pd.DataFrame:
    """One row for each image: ``image``, ``split`` (train, val or test) and ``client``.

    ``client`` is NA outside train.
    """
    import pandas as pd

    client = pd.Series(scenario.client, dtype="Int64")
    return pd.DataFrame(
        {
            "image": list(dataset.files),
            "split": np.array(PART_NAMES, dtype=object)[scenario.part],
            "client": client.mask(scenario.client < 0),
        }
    )
