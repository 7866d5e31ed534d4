"""The card of a trained model: what it is, what it was judged by, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils_.finished_runs import SELECTIONS
from utils_.markdown import aligned, plain_cell
from utils_.predictions import Predictions, read_predictions
from utils_.reporting.image_scores import ImageScores, score_images
from utils_.reporting.records import RunRecord, read_record
from utils_.thresholds import best_thresholds
from utils_.truth import WORDS

CARD = "model_card.md"
SCORES = {"mAP": "mAP", "AUROC": "macro_auroc", "F1 (val. thr.)": "macro_f1_tuned", "ECE": "ece"}
DASH = "–"
FLAWS = ("noise", "missing", "assume_negative", "attack")
LIMITS = """\
- For research. It is no medical device, nobody has approved it, and it must not decide about a
  patient.
- It knows images like those of the sites above. On other cameras, patients or findings nothing is
  known of it.
- A probability is no diagnosis: see ECE above, and the reliability diagram of `scripts/report.py`.
- The scores are those of one run. How much they change with the seed is not in this card."""


def model_card(folder: Path) -> str:
    """Return the card of the finished run in ``folder`` as Markdown.

    It names sites and classes, and neither images nor patients.

    Raises:
        ValueError: a file of the run is absent or damaged.
    """
    record, predictions = read_record(folder), read_predictions(folder)
    parts = {
        "What it is": _what(record),
        "Data": _data(record, predictions),
        "Labels": _labels(record),
        "Classes": _classes(record, predictions),
        "Scores": _scores(record),
        "Not measured": _not_measured(record),
        "Use and limits": f"{LIMITS}\n{_bounds(record)}".rstrip(),
        "How to predict": f"```bash\npython scripts/predict.py {folder.name} IMAGES\n```\n\n"
        f"`{folder.name}` stands for the run's folder.",
    }
    title = f"# {plain_cell(folder.name)}"
    return "\n\n".join([title, *(f"## {name}\n\n{text}" for name, text in parts.items())]) + "\n"


def _what(record: RunRecord) -> str:
    config, environment = record.config, record.environment
    lines = {
        "network": f"{config.get('model')}, images of {config.get('image_size')} pixels",
        "trained by": f"{config.get('method')}, {config.get('rounds')} rounds, seed "
        f"{config.get('seed')} (data seed {config.get('data_seed')})",
        "began from": f"weights `{config.get('weights')}`",
        "code": f"FedNML, commit {environment.get('commit', 'unknown')}",
        "files": "`model.safetensors` is the last round's model, `best.safetensors` that of the "
        "best round on validation",
    }
    if record.result.get("method") == "local":
        lines["files"] = "each site has its own model; `model.safetensors` is their mean, which "
        lines["files"] += "nobody has scored"
    return _listed(lines)


def _listed(lines: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _data(record: RunRecord, predictions: Predictions | None) -> str:
    images = [int(row["images"]) for row in record.clients]
    lines: dict[str, object] = {
        "data set": record.result["dataset"],
        "training": f"{sum(images):,} images at {len(images)} sites",
    }
    if predictions:
        lines["validation"] = f"{len(predictions.val_row):,} images"
        lines["test"] = f"{len(predictions.test_row):,} images"
    head = ["site", "images", "classes annotated", "wrong cells", "missing cells"]
    rows = [
        [
            *(plain_cell(name), row["images"], row["annotated_classes"]),
            *(_share(row["noise_cells"]), _share(row["missing_cells"])),
        ]
        for name, row in zip(record.site_names, record.clients, strict=True)
    ]
    return f"{_listed(lines)}\n\n{aligned([head, *rows])}"


def _share(text: str) -> str:
    try:
        return f"{100 * float(text):.1f} %"
    except ValueError:  # blank, or the word "unknown"
        return text or DASH


def _labels(record: RunRecord) -> str:
    config, lines = record.config, {}
    for name in FLAWS:
        value, kind = config.get(name), config.get(f"{name}_type")
        if value and value != "none":
            lines[name.replace("_", " ")] = f"{value}" + (f" ({kind})" if kind else "")
    simulated = _listed(lines) if lines else "Nothing was simulated: the labels are the files'."
    judged = WORDS.get(record.result.get("truth", {}).get("reference", ""), "")
    return simulated + (f"\n\n{judged[:1].upper()}{judged[1:]}." if judged else "")


def _classes(record: RunRecord, predictions: Predictions | None) -> str:
    """Prevalence in training and test, score with interval, and the threshold of every class."""
    head = ["class", "training", "test", "average precision", "AUROC", "threshold"]
    rows = [_class_row(record, column, predictions) for column in range(len(record.classes))]
    own, cut = _image_scores(record, selected=False), _thresholds(predictions)
    for column, row in enumerate(rows):
        untrained = not record.trained.get(record.classes[column], True)
        row += ["not trained"] * 3 if untrained else _class_scores(record, column, own, cut)
    return (
        f"{aligned([head, *rows])}\n\nTraining: positives of the annotated images, all sites "
        "together, as the sites read them. Test: positives of the images where the class is "
        "known. Scores and thresholds are those of the last round's model; in brackets the 95 % "
        "interval over test images. A threshold (present from it on) has the highest F1 on the "
        "validation part; a dash where none can be chosen. Not trained: no site annotates it."
    )


def _class_row(record: RunRecord, column: int, predictions: Predictions | None) -> list[str]:
    name, training, test = record.classes[column], DASH, DASH
    if record.annotated is not None and record.positive is not None:
        seen, found = record.annotated[:, column].sum(), record.positive[:, column].sum()
        training = f"{found:,} of {seen:,}"
    if predictions:
        truth = predictions.test_truth[:, column]
        test = f"{(truth == 1).sum():,} of {(~np.isnan(truth)).sum():,}"
    return [plain_cell(name), training, test]


def _class_scores(
    record: RunRecord, column: int, own: ImageScores | None, cut: np.ndarray | None
) -> list[str]:
    scores = record.result.get("per_class", {}).get(record.classes[column], {})
    precision = _number(scores.get("ap"))
    if own is not None:
        precision += _span(own.class_interval(column)[1:])
    threshold = DASH if cut is None else _number(cut[column])
    return [precision, _number(scores.get("auroc")), threshold]


def _number(value: float | None) -> str:
    return DASH if value is None or np.isnan(value) else f"{value:.3f}"


def _span(ends: Sequence[float]) -> str:
    return "" if np.isnan(ends[0]) else f" [{ends[0]:.3f}, {ends[1]:.3f}]"


def _thresholds(predictions: Predictions | None) -> np.ndarray | None:
    """(C,) on validation; None without predictions, or where each site has a model of its own."""
    if predictions is None or predictions.val_probability.ndim != 2:
        return None
    return best_thresholds(predictions.val_probability, predictions.val_truth)


def _image_scores(record: RunRecord, *, selected: bool) -> ImageScores | None:
    return score_images({"": {"": record}}, selected=selected).get("")


def _scores(record: RunRecord) -> str:
    rows = []
    for rule, meaning in SELECTIONS.items():
        scores: Mapping[str, Any] | None = record.result.get(rule)
        if not scores or rule == "oracle_selected":  # chosen on the test part: no score of a model
            continue
        numbers = [_number(scores.get(name)) for name in SCORES.values()]
        if rule in ("last", "val_selected"):
            own = _image_scores(record, selected=rule == "val_selected")
            numbers[0] += _span(own.interval()[1:]) if own else ""
        rows.append([meaning, *numbers])
    return (
        f"{aligned([['round', *SCORES], *rows])}\n\nTest set. In brackets: 95 % interval over test "
        "images, drawn with replacement. F1 is at the thresholds of the validation part."
    )


def _not_measured(record: RunRecord) -> str:
    found = record.result.get("not_measured", {})
    why = {"no_positive": "no image is known to show", "no_negative": "no image is known to lack"}
    lines = [
        f"- {part}: {text} {', '.join(plain_cell(name) for name in kinds[kind])}"
        for part, kinds in found.items()
        for kind, text in why.items()
        if kinds.get(kind)
    ]
    if not record.trained:
        lines.append("- which classes any site annotates: the run is older than that table")
    lines.append("- other hospitals than those of the data set; subgroups of patients")
    return "\n".join(lines)


def _bounds(record: RunRecord) -> str:
    """Marks that a reader of the card alone must see."""
    lines = []
    if record.result.get("leaky"):
        lines.append("- LEAKY: it was trained with labels hidden from its sites.")
    if record.result.get("bound"):
        lines.append("- BOUND: it was trained with the true labels, which no real site has.")
    if record.result.get("warmup_only"):
        lines.append("- WARM-UP ONLY: the method's own part never started.")
    return "\n".join(lines)
