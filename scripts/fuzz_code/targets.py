"""All that reads what comes from outside, with files of a real run as valid input."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from scripts import example_data
from scripts.audit_code.answers import read_answers
from src import main_fednml
from src.checkpoint import read_sealed, write_sealed
from src.command_line import parse_command_line, read_yaml
from src.config import OPTIONS, Config, resolve
from src.job import data_options
from src.models import build_module
from src.option import flag
from src.run_folder import changes, finished_table, settings_of
from src.saved_model import open_model
from src.simulation import Simulation, build_model
from utils_ import datasets
from utils_.datasets.base import ImageDataset
from utils_.datasets.cache.decode import problem_of
from utils_.finished_runs import collect
from utils_.predictions import read_predictions
from utils_.reporting.records import read_record
from utils_.rng import derive
from utils_.scenario import Scenario, ScenarioSettings, build_scenario
from utils_.splits.file import read_split

IMAGES, SIZE = 60, 16
RUN = ("--rounds=1", "--warmup-rounds=0", f"--image-size={SIZE}", "--method=fedavg", "--quiet")
RUN += ("--device=cpu", "--workers=1", "--name=run", "--local-epochs=1")
FILES = ("--dataset=csv", "--ignore-columns=sex,age,reader", "--allow-duplicates")
COUNTS = ("train", "val", "test")


@dataclass(frozen=True)
class Target:
    """Something that reads a file, or several.

    Attributes:
        files: valid ones; one of them is made wrong, and put right again afterwards.
        read: reads them, and refuses by UserError.
        refusals: what else it may raise, as its documentation says.
    """

    files: Sequence[Path]
    read: Callable[[], object]
    refusals: tuple[type[Exception], ...] = ()


class Examples:
    """A hospital's files and a finished run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        example_data.write(self.data, count=IMAGES)
        places = (f"--data-dir={self.data}", f"--save-dir={folder}", f"--cache-dir={self.cache}")
        if main_fednml.main([*RUN, *FILES, *places]):
            raise RuntimeError("the run of the examples fails")
        self.run = folder / "runs" / "run"
        self.config = resolve(settings_of(self.run))
        mapped = self.load()
        self.dataset = replace(mapped, images=np.array(mapped.images))  # the file will be spoilt
        self.listed = self.load(labels_only=True)
        self.scenario = self.deal()

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def load(self, *, labels_only: bool = False) -> ImageDataset:
        options = data_options(self.config, quiet=True, labels_only=labels_only)
        return datasets.load("csv", options)

    def deal(self) -> Scenario:
        settings = self.config.part(ScenarioSettings)
        return build_scenario(self.dataset, settings, folder=self.folder / "splits")

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / "more" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name; they read and write below ``folder``."""
    examples = Examples(folder)
    run, data = examples.run, examples.data
    labels = [data / f"{name}.csv" for name in ("train_data", "test_data", "groups", "true_data")]
    cached = [path for path in examples.cache.iterdir() if path.suffix in (".npy", ".json")]
    checkpoint = next((run / "checkpoint").iterdir())
    tables = [run / name for name in ("config.yaml", "env.json", "result.json", "metrics.csv")]
    return {
        "labels": Target(labels, partial(examples.load, labels_only=True)),
        "split file": Target([run / "assignments.csv"], partial(_split, examples)),
        "answers": _answers(examples),
        "yaml": _yaml(examples),
        "options": _options(examples),
        "run folder": Target(tables, partial(_look_at, examples)),
        "report": Target([*tables, run / "clients.csv"], partial(read_record, run), (ValueError,)),
        "predictions": Target(
            [run / "predictions.safetensors"], partial(read_predictions, run), (ValueError,)
        ),
        "scenario": Target(list((folder / "splits").iterdir()), partial(_same_scenario, examples)),
        "cache": Target(cached, partial(_same_images, examples)),
        "images": _images(examples),
        "medmnist": _medmnist(examples),
        "weights": _weights(examples),
        "model": Target([run / "best.safetensors"], partial(_open, run / "best.safetensors")),
        "checkpoint": Target([checkpoint], partial(_resume, examples)),
        "sealed": _sealed(examples, checkpoint),
        **_messages(examples),
    }


def _split(examples: Examples) -> object:
    dataset, path = examples.dataset, examples.run / "assignments.csv"
    clients = examples.config.clients
    return read_split(path, dataset.files, dataset.groups, dataset.part, clients=clients)


def _answers(examples: Examples) -> Target:
    rows = [f"{name},DR,{row % 2}" for row, name in enumerate(examples.listed.files[:20])]
    text = "\n".join(["image,class,answer", *rows, f"{examples.listed.files[20]},MH,?", ""])
    path = examples.write("answers.csv", text.encode())
    return Target([path], lambda: read_answers([path], examples.listed))


def _yaml(examples: Examples) -> Target:
    text = (examples.run / "config.yaml").read_bytes()
    path = examples.write("my.yaml", text)
    short = examples.write("short.yaml", b"rounds: 3\nlr: 1.0e-3\nname: &a x\nparam: {margin: 1}\n")
    return Target([path, short], lambda: [resolve(read_yaml(p)) for p in (path, short)])


def _options(examples: Examples) -> Target:
    """Words of a command line, one a line."""
    defaults = Config()
    table = {name: getattr(defaults, name) for name in OPTIONS}
    words = [f"{flag(k)}={v}" for k, v in table.items() if v not in (None, "", {}, True, False)]
    pairs = ["--param=margin=1", "--loss=gce", "--loss-param=q=0.5", "--quiet"]
    few = ["--noise", "0.4", "--missing", "8", "--method", "fednml", "--param", "trust=0.9"]
    lists = ["\n".join(words + pairs), "\n".join(few), "\n".join([*few, *pairs])]
    paths = [examples.write(f"words{n}", text.encode()) for n, text in enumerate(lists)]

    def read() -> None:
        for path in paths:
            given = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
            resolve(parse_command_line([word for word in given if "--config" not in word])[0])

    return Target(paths, read)


def _look_at(examples: Examples) -> None:
    settings_of(examples.run)
    changes(examples.run, {"settings": "", "images": ""})
    finished_table(examples.run)
    collect(examples.run)


def _same_scenario(examples: Examples) -> None:
    found = examples.deal()
    for name in ("part", "client", "noisy", "annotated"):
        one, other = getattr(found, name), getattr(examples.scenario, name)
        if not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            raise AssertionError(f"'{name}' of a damaged scenario is taken for valid")


def _same_images(examples: Examples) -> None:
    if not np.array_equal(examples.load().images, examples.dataset.images):
        raise AssertionError("a damaged cache is taken for valid")


def _images(examples: Examples) -> Target:
    picture = Image.open(examples.data / "images" / "north" / "0000.png")
    deep = Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48))
    files = []
    for kind, image, more in (
        ("png", picture, {}),
        ("jpg", picture, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("tiff", picture, {"compression": "tiff_lzw"}),
        ("gif", picture, {}),
        ("bmp", picture, {}),
        ("webp", picture, {}),
        ("deep.png", deep, {}),
        ("deep.tiff", deep, {}),
    ):
        buffer = io.BytesIO()
        form = {"jpg": "jpeg"}.get(kind, kind.removeprefix("deep."))
        image.save(buffer, form, **more)
        files.append(examples.write(f"image.{kind}", buffer.getvalue()))

    def read() -> None:
        for path in files:
            problem_of(str(path), image_size=SIZE, fit="crop", pixel_range="auto")

    return Target(files, read)


def _medmnist(examples: Examples) -> Target:
    draw = derive(1, "medmnist")
    arrays: dict[str, np.ndarray] = {}
    for part in COUNTS:
        arrays[f"{part}_images"] = draw.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(6)[:, None] % 2
    files = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **arrays)
        files.append(
            examples.write(f"{save.__name__}/breastmnist.npz".replace("/", "-"), buffer.getvalue())
        )
    folder = examples.folder / "medmnist"
    folder.mkdir()
    config = replace(Config(), image_size=SIZE, data_dir=folder, cache_dir=folder / "cache")

    def read() -> None:
        for path in files:
            shutil.copyfile(path, folder / "breastmnist.npz")
            datasets.load("breastmnist", data_options(config, quiet=True))

    return Target(files, read)


def _weights(examples: Examples) -> Target:
    state = safetensors.numpy.load_file(examples.run / "model.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    files = [examples.write("w.safetensors", (examples.run / "model.safetensors").read_bytes())]
    for name, content, new in (("new.pt", tensors, True), ("old.pt", tensors, False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": content}, buffer, _use_new_zipfile_serialization=new)
        files.append(examples.write(name, buffer.getvalue()))
    classes = examples.dataset.classes

    def read() -> None:
        for path in files:
            build_module(
                "small", classes=len(classes), weights=str(path), seed=0, class_names=classes
            )

    return Target(files, read)


def _open(path: Path) -> object:
    return open_model(path, which="best", device="cpu")


def _resume(examples: Examples) -> None:
    config, dataset = examples.config, examples.dataset
    model = build_model(config, classes=len(dataset.classes))
    Simulation(config, dataset, examples.scenario, model).resume(examples.run)


def _sealed(examples: Examples, checkpoint: Path) -> Target:
    """Checkpoints whose checksum is right, as somebody might forge them."""
    arrays, notes = read_sealed(checkpoint)
    table = {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
    forged = examples.write("forged.json", json.dumps({"notes": notes, "arrays": table}).encode())

    def read() -> None:
        found = _parsed(forged)
        before = checkpoint.read_bytes()
        try:
            write_sealed(checkpoint, _forged(found, arrays), found.get("notes", {}))
            _resume(examples)
        finally:
            checkpoint.write_bytes(before)

    return Target([forged], read)


def _messages(examples: Examples) -> dict[str, Target]:
    """Flower's records; nothing where Flower is not installed."""
    if importlib.util.find_spec("flwr") is None:
        return {}
    from scripts.fuzz_code import records
    from src.flower.records import BadRecord

    pairs = zip(("array", "values"), records.examples(), strict=True)
    files = [examples.write(name, data) for name, data in pairs]
    return {"records": Target(files, partial(records.read, *files), (BadRecord,))}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _forged(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of the types and shapes that a table says, as far as it says what can be."""
    made = {}
    table = found.get("arrays", {})
    for name, kind in table.items() if isinstance(table, dict) else ():
        try:
            name.encode()  # no file can hold half a character
            shape = tuple(int(n) for n in kind[1])
            if name in arrays and arrays[name].shape == shape and kind[0] == arrays[name].dtype:
                made[name] = arrays[name]
            elif np.prod(shape, dtype=float) < 1e5 and np.dtype(kind[0]).kind in "biuf":
                made[name] = np.zeros(shape, kind[0])
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            continue
    return made
