"""Folders of finished runs that nobody has trained: files as the program writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils_.metrics import multilabel_metrics
from utils_.predictions import FILE, Predictions, write_predictions
from utils_.rng import derive
from utils_.thresholds import best_thresholds, tuned_metrics

CLASSES = ("common", "rare", "nowhere")
IMAGES = {"val": 40, "test": 80}
ROUNDS, SITES = 4, ("north", "south")


def draw_predictions(quality: float, *, classes: int, seed: int) -> Predictions:
    """Of a model whose probabilities tell the truth the better, the higher ``quality`` is."""
    found: dict[str, np.ndarray] = {}
    for part, count in IMAGES.items():
        truth = (derive(1, "truth", part).random((count, classes)) < 0.3).astype(np.float32)
        noise = derive(seed, "noise", part).random((count, classes)) / 20
        shared = derive(1, "doubt", part).random((count, classes))  # what every model finds hard
        score = (quality * truth + shared + noise) / (quality + 1.05)
        found |= {f"{part}_probability": score.astype(np.float32), f"{part}_truth": truth}
        found[f"{part}_row"] = np.arange(count) + 100 * (part == "test")
    return Predictions(**found, test_probability_selected=found["test_probability"])


def write_finished(
    folder: Path,
    method: str = "fednml",
    *,
    quality: float = 0.5,
    seed: int = 1,
    classes: tuple[str, ...] = CLASSES,
    leaky: bool = False,
    bound: bool = False,
    **settings: Any,
) -> Path:
    """A finished run with all that a report reads; the last class is annotated nowhere."""
    kept = draw_predictions(quality, classes=len(classes), seed=seed)
    folder.mkdir(parents=True)
    write_predictions(folder / FILE, kept, classes=classes)
    config = {"dataset": "isic", "method": method, "param": {}, "seed": seed, "data_seed": 1}
    config |= {"noise": 0.4, "noise_type": "paper", "missing": 0.5, "missing_type": "classes"}
    config |= {"rounds": ROUNDS, "model": "small", "image_size": 16, "weights": "none"}
    config |= {"attack": "none"} | settings
    scores = multilabel_metrics(kept.test_probability, kept.test_truth)
    cuts = best_thresholds(kept.val_probability, kept.val_truth)
    own = scores.overall | {"mAP_annotated": 0.5, "mAP_missing": 0.4, "round": ROUNDS - 1}
    own |= tuned_metrics(kept.test_probability, kept.test_truth, thresholds=cuts)
    result = {"status": "done", "method": method, "dataset": config["dataset"], "seed": seed}
    result |= {"data_seed": 1, "leaky": leaky, "bound": bound, "rounds": ROUNDS}
    result |= {"classes": list(classes), "sites": list(SITES), "seconds": 60.0 + seed}
    result |= dict.fromkeys(("last", "last5", "val_selected", "oracle_selected"), own)
    result |= {"labels": {}, "truth": {"reference": "drawn"}, "bytes_up": 1e6, "bytes_down": 1e6}
    result["not_measured"] = {"test": {"no_positive": [classes[-1]], "no_negative": []}}
    columns = {name: column.tolist() for name, column in scores.per_class.items()}
    result["per_class"] = {
        name: {metric: column[c] for metric, column in columns.items()}
        for c, name in enumerate(classes)
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "env.json").write_text(json.dumps({"hardware": "2 cores", "commit": "abc"}))
    _write_tables(folder, classes, quality)
    (folder / "DONE").touch()
    return folder


def _write_tables(folder: Path, classes: tuple[str, ...], quality: float) -> None:
    head = "client,site,images,annotated,annotated_classes,noise_cells,missing_cells"
    sites = [f"{k},{site},50,-,{len(classes) - 1},0.1,0.5" for k, site in enumerate(SITES)]
    (folder / "clients.csv").write_text("\n".join([head, *sites]) + "\n")
    cells = ["client,class,annotated,positive"]
    for k in range(len(SITES)):
        for c, name in enumerate(classes):
            seen = 0 if c == len(classes) - 1 else 50
            cells.append(f'{k},"{name}",{seen},{seen // 4 + k}')
    (folder / "site_classes.csv").write_text("\n".join(cells) + "\n")
    names = "round,val_mAP,test_mAP,labels_noise_auroc,labels_noise_auroc_counting"
    names += ",labels_corrected_cells,labels_pseudo_cells"
    rows = [f"{r},{r / 10 + quality / 9},{r / 10},0.7,0.6,{r},{9 * r}" for r in range(ROUNDS)]
    (folder / "metrics.csv").write_text("\n".join([names, *rows]) + "\n")
