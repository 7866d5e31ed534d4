"""Where the truth is known: how many wrong labels a reviewer finds who follows the lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.audit_code.run import PastRun
from scripts.audit_code.worklist import Federation
from utils_.files import write_json, write_text
from utils_.labels import Oracle
from utils_.review import Review, cleanlab_scores, has_cleanlab, review_cells, review_images
from utils_.suspects import Doubt
from utils_.truth import UNKNOWN, WORDS, reference

NO_CLEANLAB = "cleanlab is not installed, so its order is not shown (pip install -e '.[audit]')"
POINTS = 200  # of the curve, at most
SHOWN = ("looked_at", "wrong", "random", "precision_at_50", "precision_at_100", "gain_first_tenth")


def judge(run: PastRun, federation: Federation, doubt: Doubt, folder: Path) -> list[str]:
    """Write ``review.json`` and ``curve.csv``, of all sites together; return what to say of them.

    Only labels of which the truth is known count, and nothing is written where that is none.
    """
    truth = reference(run.dataset, run.scenario, noise=run.config.corrupts)
    told = ["", WORDS[truth.kind]]
    judged = np.isfinite(doubt.suspicion) & ~np.isnan(truth.labels)
    if truth.kind == UNKNOWN or not judged.any():
        return told
    oracle = Oracle(truth.labels, run.scenario.noisy)
    wrong = oracle.noise(np.arange(len(judged)))
    scores = {"suspects": doubt.suspicion}
    if has_cleanlab():
        scores["cleanlab"] = cleanlab_scores(federation.probability, federation.given)
        judged &= np.isfinite(scores["cleanlab"])
    orders = {
        what: {name: review(score, wrong, judged) for name, score in scores.items()}
        for what, review in (("labels", review_cells), ("images", review_images))
    }
    summary = {
        what: {name: order.summary() for name, order in named.items()}
        for what, named in orders.items()
    }
    facts = {"evidence": federation.evidence, "truth": truth.kind}
    write_json(folder / "review.json", facts | summary)
    write_text(folder / "curve.csv", _curve(orders["labels"]))
    return [*told, *_table(summary), *([] if has_cleanlab() else [NO_CLEANLAB])]


def _curve(orders: dict[str, Review]) -> str:
    """Wrong labels found against labels reviewed, by each order and at random."""
    import pandas as pd

    first = next(iter(orders.values()))
    depth = np.unique(np.linspace(1, len(first.wrong), POINTS).round().astype(int))
    table = {"reviewed": depth}
    table |= {
        name: order.found[np.minimum(depth, len(order.wrong)) - 1] for name, order in orders.items()
    }
    table["random"] = (depth * first.base).round(1)
    return pd.DataFrame(table).to_csv(index=False)


def _table(summary: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    import pandas as pd

    rows = [
        {"reviewed": what, "order": name} | {key: figures[key] for key in SHOWN if key in figures}
        for what, orders in summary.items()
        for name, figures in orders.items()
    ]
    table = pd.DataFrame(rows).rename(
        columns={"looked_at": "there", "random": "precision of random order"}
    )
    table.columns = table.columns.str.replace("_", " ")
    return table.to_string(index=False, float_format=_digits).splitlines()


def _digits(value: float) -> str:
    """Counts as they are, shares and ratios with two digits."""
    return f"{value:,.0f}" if value >= 10 and value == round(value) else f"{value:.2f}"
