"""Predict images with a run's model: scripts/predict.py RUN IMAGE|FOLDER|CSV ...

RUN is the folder of a finished run or one of its .safetensors files, which is enough alone. Writes
a row an image, with a probability and a label for each class; labels are cut where F1 is best on
the run's validation part. --explain draws where the model looked, --export writes it for other
programs. Exit codes: 0 done, 1 some images cannot be read (they are named), 2 bad input and nothing
is written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils_.errors import UserError, some
from utils_.script import Parser, end_with, exit_code

if TYPE_CHECKING:
    from scripts.predict_code.batches import DecodedBatch
    from scripts.predict_code.images import ImageFile
    from scripts.predict_code.sheet import PredictionSheet
    from src.saved_model import SavedModel

DONE, UNREADABLE = 0, 1
NAMES_SHOWN = 10
KINDS, DEVICES = ("onnx", "torchscript"), ("auto", "cpu", "cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict; return the exit code."""
    handler = logging.StreamHandler()
    handler.addFilter(logging.Filter("fednml"))  # torch tells of its caches at the end
    logging.basicConfig(format="predict: %(message)s", level=logging.INFO, handlers=[handler])
    left = "no predictions are written"
    return exit_code(lambda: run(parse(arguments)), name="predict", interrupted=left)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options.

    Raises:
        UserError: a wrong one.
    """
    first, *more = str(__doc__).split("\n\n")
    parser = Parser(description=first, epilog="\n\n".join(more), prog="predict.py")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder, or a .safetensors file of one")
    add("images", type=Path, nargs="*", metavar="IMAGE|FOLDER|CSV", help="what to predict")
    add("--model", choices=("best", "last"), default="best", help="of a folder: the best round on "
        "validation, or the last (default best)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="the predictions (default predictions.csv)")
    add("--data-dir", type=Path, metavar="DIR", help="where images/ of a CSV file lies, if not "
        "beside it")  # fmt: skip
    add("--pixel-range", metavar="RANGE", help="of images of more than 8 bits: auto, full or "
        "LOW,HIGH (default as in training)")  # fmt: skip
    add("--explain", type=Path, metavar="DIR", help="Grad-CAM pictures go there")
    add("--explain-classes", choices=("top", "positive"), default="top", help="the class of "
        "highest probability, or all whose label is 1 (default top)")  # fmt: skip
    add("--export", nargs=2, metavar=("KIND", "FILE"), help=f"write the model: {', '.join(KINDS)}")
    add("--device", choices=DEVICES, default="auto", help="where to compute (default auto)")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if not options.images and not options.export:
        raise UserError("nothing to do: give images, a folder or a CSV file, or --export KIND FILE")
    if options.export and options.export[0] not in KINDS:
        raise UserError(f"--export {options.export[0]}: unknown; known: {', '.join(KINDS)}")
    useless = [name for name in ("out", "explain", "data_dir") if getattr(options, name)]
    if useless and not options.images:
        raise UserError(f"--{useless[0].replace('_', '-')}: no images are given; name some")
    folder = options.explain
    if folder and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--explain {folder}: exists; name a new or empty folder")


def run(options: argparse.Namespace) -> int:
    """Do what the options say; raises UserError."""
    from scripts.predict_code.images import gather
    from src.saved_model import open_model
    from utils_.datasets.cache.pixel_range import parse_range

    if options.pixel_range:
        parse_range(options.pixel_range)
    images = gather(options.images, data_dir=options.data_dir)
    saved = open_model(options.run, which=options.model, device=options.device, quiet=options.quiet)
    if not any(saved.facts.trained):
        raise UserError(f"{saved.path}: no class is trained, since no site annotates any")
    if options.export:
        export(saved, *options.export)
    return predict(saved, images, options) if images else DONE


def export(saved: SavedModel, kind: str, path: str) -> None:
    """Write the model for other programs; say how near its outputs are."""
    from src.exporting import export_model

    difference = export_model(saved, kind, Path(path))
    print(f"{path}: {kind}; its probabilities differ by at most {difference:.1g}")


def predict(saved: SavedModel, images: Sequence[ImageFile], options: argparse.Namespace) -> int:
    """Write the predictions; return the exit code."""
    from scripts.predict_code.batches import decoded_batches
    from scripts.predict_code.sheet import prediction_sheet, remarks

    out, problems = options.out or Path("predictions.csv"), []
    choice = {"pixel_range": options.pixel_range, "quiet": options.quiet}
    with prediction_sheet(out, saved.facts) as sheet:
        for batch in decoded_batches(images, saved.facts, **choice):
            predict_batch(saved, batch, sheet, options)
            named = zip(batch.files, batch.problems, strict=True)
            problems += [f"{file.name} ({problem})" for file, problem in named if problem]
        if len(problems) == len(images):
            raise UserError(f"none of {len(images)} images can be read: {some(problems)}")
    print(f"{out}: {len(images) - len(problems):,} of {len(images):,} images predicted")
    for line in remarks(saved.facts):
        print(line)
    if problems:
        listed = f"{len(problems)} of them cannot be read: {some(problems, NAMES_SHOWN)}"
        print(f"predict: {listed}; see column problem of {out}", file=sys.stderr)
    return UNREADABLE if problems else DONE


def predict_batch(
    saved: SavedModel, batch: DecodedBatch, sheet: PredictionSheet, options: argparse.Namespace
) -> None:
    """Write the rows of a batch, and its pictures where they are asked for."""
    probability = saved.predict(batch.images)
    for number, (file, problem) in enumerate(zip(batch.files, batch.problems, strict=True)):
        if problem:
            sheet.unreadable(file.name, problem)
            continue
        sheet.predicted(file.name, probability[number])
    if options.explain:
        from scripts.predict_code.overlays import explain_batch

        explain_batch(
            saved, batch, probability, folder=options.explain, which=options.explain_classes
        )


if __name__ == "__main__":
    end_with(main)
