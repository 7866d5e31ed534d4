"""From the history of a run to ``result.json`` and the table on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils_.datasets.base import TEST, VAL
from utils_.metrics import Metrics
from utils_.one_sided import count_labels
from utils_.predictions import Predictions
from utils_.truth import VERIFIED, WORDS
from utils_.uncertainty import Intervals, bootstrap_intervals, few

if TYPE_CHECKING:
    from src.simulation import Simulation
    from utils_.runlog import RunLog

LAST = 5  # rounds in the mean "last5"
SHOWN = ("mAP", "macro_f1", "macro_recall", "balanced_accuracy", "macro_auroc")
Predicted = Mapping[int, np.ndarray]  # {part: (M, n, C) probabilities}
REPORTS = ("rejected", "flagged", "flagged_honest")  # a round, in the mean
ROUGH_SHOWN = 8  # classes of few images below the table; result.json has all


def summarise(simulation: Simulation, log: RunLog) -> dict[str, Any]:
    """Score the final and the selected model and collect what ``result.json`` holds of them.

    What they predict is left in ``simulation.predictions``, and ``simulation.thresholds``.
    """
    config, history = simulation.config, simulation.history
    classes, evaluator = simulation.dataset.classes, simulation.evaluator
    tested = [row for row in history if "test_mAP" in row]
    last, selected = _predicted(simulation)
    final, truth = _test_scores(simulation, last), evaluator.truth_of(TEST)
    pooled = np.concatenate(last[TEST]), np.tile(truth, (len(last[TEST]), 1))
    log.pr_curves(*pooled, classes=simulation.class_names, step=config.rounds)
    simulation.predictions = _to_keep(simulation, last, selected)
    simulation.thresholds = {
        "last": evaluator.thresholds(last),
        "best": evaluator.thresholds(selected or last),
    }
    return {
        "status": "done",
        "method": config.method,
        "dataset": config.dataset,
        "noise": config.noise,
        "missing": config.missing,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "leaky": bool(simulation.method.leak),
        "bound": simulation.method.true_labels,
        **({"sites": list(simulation.names.names)} if simulation.names.names else {}),
        "warmup_only": config.never_starts,
        "rounds": config.rounds,
        "classes": list(classes),
        "not_trained": [
            name for name, own in zip(classes, simulation.trained, strict=True) if not own
        ],
        "not_measured": {
            name: evaluator.one_sided(part)
            for name, part in {"val": VAL, "test": TEST}.items()
            if evaluator.has(part)
        },
        "last": _test_part(history[-1]),
        "last5": _mean_rows([_test_part(row) for row in tested[-LAST:]]),
        "val_selected": _val_selected(simulation, selected),
        "oracle_selected": _oracle_selected(tested),
        "per_class": _per_class(
            final.per_class,
            classes,
            _intervals(list(last[TEST]), truth, config.seed),
        ),
        "labels": _part(history[-1], "labels_"),
        "reports": {name: _mean(history.column(name)) for name in REPORTS},
        "truth": evaluator.truth,
        "seconds": sum(row["seconds"] for row in history),
        "seconds_per_round": float(np.median([row["seconds"] for row in history])),
        "bytes_up": int(sum(row["bytes_up"] for row in history)),
        "bytes_down": int(sum(row["bytes_down"] for row in history)),
    }


def _part(row: dict[str, float], prefix: str) -> dict[str, float]:
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}


def _test_part(row: dict[str, float]) -> dict[str, float]:
    return _part(row, "test_") | {"round": int(row["round"])}


def _mean_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    names = [name for name in rows[-1] if name != "round"]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _mean(values: np.ndarray) -> float | None:
    """Of the values that are known; None of none."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _predicted(simulation: Simulation) -> tuple[Predicted, Predicted | None]:
    """{part: (M, n, C)} of the last model, and of the one that validation prefers, if it can."""
    evaluator = simulation.evaluator
    parts = [part for part in (VAL, TEST) if evaluator.has(part)]
    last = {part: evaluator.predict_each(simulation.scored, part) for part in parts}
    if _best_round(simulation) is None:
        return last, None
    if torch.equal(simulation.best, simulation.scored):
        return last, last
    return last, {part: evaluator.predict_each(simulation.best, part) for part in parts}


def _test_scores(simulation: Simulation, predicted: Predicted) -> Metrics:
    each_site = simulation.scored.ndim == 2
    return simulation.evaluator.score_predicted(predicted, [TEST], each_site=each_site)[TEST]


def _to_keep(simulation: Simulation, last: Predicted, selected: Predicted | None) -> Predictions:
    evaluator, one_model = simulation.evaluator, simulation.scored.ndim == 1
    nothing = np.zeros((*last[TEST].shape[:1], 0, *last[TEST].shape[2:]), np.float32)

    def shaped(predicted: Predicted, part: int) -> np.ndarray:
        found = predicted.get(part, nothing)
        return found[0] if one_model else found

    return Predictions(
        val_probability=shaped(last, VAL),
        val_truth=evaluator.truth_of(VAL),
        val_row=evaluator.rows(VAL),
        test_probability=shaped(last, TEST),
        test_truth=evaluator.truth_of(TEST),
        test_row=evaluator.rows(TEST),
        test_probability_selected=None if selected is None else shaped(selected, TEST),
    )


def _best_round(simulation: Simulation) -> int | None:
    """The round with the best validation mAP; None where validation cannot tell."""
    unknown = np.isnan(simulation.history.column("val_mAP")).all()
    return None if unknown else simulation.best_round


def _val_selected(simulation: Simulation, predicted: Predicted | None) -> dict[str, float] | None:
    """Test metrics of the round with the best validation mAP; None where validation cannot tell."""
    number = _best_round(simulation)
    if number is None or predicted is None:
        return None
    return _test_scores(simulation, predicted).overall | {"round": number}


def _oracle_selected(tested: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best of the tested rounds by test mAP: optimistic, for comparison with older papers."""
    return _test_part(max(tested, key=lambda row: np.nan_to_num(row["test_mAP"], nan=-1)))


def _intervals(
    probabilities: Sequence[np.ndarray], truth: np.ndarray, seed: int
) -> dict[int, Intervals]:
    """Intervals of the classes whose scores rest on few images, by column."""
    scarce = few(*count_labels(truth))
    return {
        c: bootstrap_intervals([own[:, c] for own in probabilities], truth[:, c], seed=seed)
        for c in np.flatnonzero(scarce).tolist()
    }


def _per_class(
    table: dict[str, np.ndarray], classes: Sequence[str], intervals: dict[int, Intervals]
) -> dict[str, dict[str, Any]]:
    def number(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    return {
        name: {metric: number(column[c]) for metric, column in table.items()}
        | {"few": c in intervals, "intervals": intervals.get(c)}
        for c, name in enumerate(classes)
    }


def final_table(result: dict[str, Any]) -> str:
    """The table shown at the end of a run: one line for each rule of selection, then remarks."""
    rules = {
        "last round": "last",
        "mean of last 5": "last5",
        "best on validation": "val_selected",
        "best on test (oracle)": "oracle_selected",
    }
    titles = ("mAP", "macro-F1", "recall", "BACC", "AUROC")
    lines = [f"{'test set':<22}" + "".join(f"{title:>10}" for title in titles)]
    for title, key in rules.items():
        if result[key] is not None:
            numbers = "".join(f"{digits(result[key][name]):>10}" for name in SHOWN)
            lines.append(f"{title:<22}{numbers}")
    lines += _not_trained(result) + _not_measured(result) + _rough(result["per_class"])
    if "truth" in result:  # runs of older versions do not say
        lines.append(_judged(**result["truth"]))
    if result.get("warmup_only"):
        lines.append("WARM-UP ONLY: the method's own part never started; see --warmup-rounds")
    if result["leaky"]:
        lines.append("LEAKY: this run used what is hidden from sites; never compare it as equal")
    return "\n".join(lines)


def digits(value: float | None) -> str:
    """Four digits; a dash where nothing could be measured."""
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"


def _judged(reference: str, train_cells: int, val_cells: int, test_cells: int) -> str:
    """By what the numbers of this run were judged."""
    text = WORDS[reference]
    if reference == VERIFIED:
        text += f" ({train_cells:,} cells; {val_cells:,} in val, {test_cells:,} in test)"
    return text


def _not_trained(result: dict[str, Any]) -> list[str]:
    """Which classes have scores that mean nothing."""
    names = result.get("not_trained", [])  # runs of older versions have none
    return [f"not trained, since no site annotates them: {', '.join(names)}"] * bool(names)


def _not_measured(result: dict[str, Any]) -> list[str]:
    """Which classes are in no mean, and why."""
    found = result.get("not_measured", {}).get("test", {})  # runs of older versions have none
    why = {"no_positive": "without a positive", "no_negative": "without a negative"}
    texts = [f"{text}: {', '.join(found[kind])}" for kind, text in why.items() if found.get(kind)]
    if not texts:
        return []
    total = len(result["classes"])
    measured = total - sum(map(len, found.values()))
    return [f"{measured} of {total} classes could be measured; {'; '.join(texts)}"]


def _rough(per_class: dict[str, dict[str, Any]]) -> list[str]:
    """AP with its interval where it rests on few images."""
    rough = {name: own for name, own in per_class.items() if own.get("few")}
    lines = [_rough_line(name, own) for name, own in list(rough.items())[:ROUGH_SHOWN]]
    more = len(rough) - len(lines)
    return lines + [f"rough: {more} more classes, see per_class in result.json"] * (more > 0)


def _rough_line(name: str, own: dict[str, Any]) -> str:
    low, high = own["intervals"]["ap"]
    images = f"{own['positives']:.0f} positives in {own['evaluated']:.0f} images"
    return f"rough: {name} AP {digits(own['ap'])} ({digits(low)} to {digits(high)}), {images}"
