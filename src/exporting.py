"""A saved model as one file for other programs: ONNX or TorchScript, compared before it is kept."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from src.saved_model import SavedModel
from utils_.errors import UserError
from utils_.files import atomic_path
from utils_.rng import derive

TOLERANCE = 1e-5  # of probabilities
COMPARED = 5  # images, two of them black and white
INPUT = "uint8 (N, image_size, image_size, 3), RGB, 0 to 255, not normalised"
OUTPUT = "float32 (N, C), probabilities; NaN for a class that is not trained"
INSTALL = 'pip install "onnx>=1.16" "onnxruntime>=1.18"'  # the group "export" of pyproject.toml
FACTS_FILE = "fednml.json"  # inside a TorchScript file


class Deployed(nn.Module):
    """From pixels to probabilities: what a user may get wrong lies inside.

    (N, S, S, 3) uint8 RGB to (N, C) float32; NaN for classes that are not trained.
    """

    mean: Tensor
    std: Tensor
    untrained: Tensor

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        facts = saved.facts
        self.module = saved.plain_module()
        self.register_buffer("mean", torch.tensor(facts.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(facts.std).view(3, 1, 1))
        self.register_buffer("untrained", ~torch.tensor(facts.trained))

    def forward(self, images: Tensor) -> Tensor:
        batch = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        probability = torch.sigmoid(self.module((batch - self.mean) / self.std))
        return torch.where(self.untrained, torch.full_like(probability, torch.nan), probability)


def export_model(saved: SavedModel, kind: str, path: Path) -> float:
    """Write the model to a file of a kind in :data:`KINDS` and run it from there.

    Returns:
        The largest difference of a probability from the model's own.

    Raises:
        UserError: a library is absent, or the outputs differ; then there is no file.
    """
    write, run = KINDS[kind]
    images = _examples(saved.facts.image_size)
    expected = Deployed(saved).eval()(torch.from_numpy(images)).detach().numpy()
    with atomic_path(path) as temporary:
        write(Deployed(saved).eval(), _facts(saved), temporary)
        together = run(temporary, images)
        alone = np.concatenate([run(temporary, image[None]) for image in images])
        largest = max(_difference(expected, found) for found in (together, alone))
        if largest > TOLERANCE:
            raise UserError(
                f"--export {kind}: the outputs differ by {largest:.2g}, so {path} is not written; "
                "try another kind or version of the library"
            )
    return largest


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return np.inf
    return float(np.nanmax(np.abs(found - expected), initial=0))


def _examples(size: int) -> np.ndarray:
    images = derive(0, "export").integers(0, 256, (COMPARED, size, size, 3)).astype(np.uint8)
    images[0], images[1] = 0, 255
    return images


def _facts(saved: SavedModel) -> dict[str, str]:
    facts = {name: json.dumps(value) for name, value in asdict(saved.facts).items()}
    return facts | {"input": INPUT, "output": OUTPUT}


def _write_onnx(module: nn.Module, facts: dict[str, str], path: Path) -> None:
    onnx = _library("onnx")
    size = json.loads(facts["image_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            module,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            str(path),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_axes={"images": {0: "N"}, "probabilities": {0: "N"}},
            dynamo=False,  # the other exporter needs one more library and fifteen times as long
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    runtime = _library("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": images})[0]
    return found


def _write_torchscript(module: nn.Module, facts: dict[str, str], path: Path) -> None:
    size = json.loads(facts["image_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is in maintenance
        images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        traced = torch.jit.trace(module, images, check_trace=False)
        traced.save(str(path), _extra_files={FACTS_FILE: json.dumps(facts)})


def _run_torchscript(path: Path, images: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.jit.load(str(path), map_location="cpu")
        found: np.ndarray = program(torch.from_numpy(images)).numpy()
    return found


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--export onnx: {name} is not installed; {INSTALL}") from error


Write = Callable[[nn.Module, dict[str, str], Path], None]
Run = Callable[[Path, np.ndarray], np.ndarray]
KINDS: dict[str, tuple[Write, Run]] = {
    "onnx": (_write_onnx, _run_onnx),
    "torchscript": (_write_torchscript, _run_torchscript),
}
