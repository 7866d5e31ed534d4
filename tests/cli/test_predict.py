"""scripts/predict.py: the numbers of the engine from one file alone, and what users do wrong."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score

from scripts import predict
from scripts.predict_code import batches
from scripts.predict_code.images import gather
from scripts.predict_code.overlays import overlay_name
from scripts.predict_code.sheet import NOT_TRAINED, labels
from src import exporting, job
from src.model_facts import ModelFacts, trained_classes
from src.saved_model import open_model
from utils_.datasets.base import TEST, ImageDataset

UNTRAINED = 3  # nobody annotates this class in training
Run = SimpleNamespace


@pytest.fixture(scope="module")
def run(csv_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on files, and what its engine predicted for the test part."""
    place = tmp_path_factory.mktemp("predict")
    data = shutil.copytree(csv_data, place / "data")
    table = tiny.read_table(data / "train_data.csv")
    for row in table[1:]:
        row[1 + UNTRAINED] = ""
    tiny.write_table(data / "train_data.csv", table)
    kept: list[Any] = []
    save = job.save_models
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "save_models", lambda s, folder: (kept.append(s), save(s, folder)))
        options = tiny.command(data, place / "save", name="run", val_share=0.3)
        assert tiny.call_main(options) == 0
    (simulation,) = kept
    folder = place / "save" / "runs" / "run"
    best, truth = simulation.evaluator.predict(simulation.best, TEST)
    last, _ = simulation.evaluator.predict(simulation.scored, TEST)
    return Run(folder=folder, data=data, best=best, last=last, truth=truth, simulation=simulation)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]], kind: str, classes: Any = range(UNTRAINED)) -> np.ndarray:
    return np.array([[float(row[f"{kind}_class{c}"] or "nan") for c in classes] for row in rows])


def call(*words: Any) -> int:
    return predict.main([str(word) for word in (*words, "--device", "cpu", "--quiet")])


def with_facts(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model's file whose metadata are changed."""
    with safe_open(source, framework="pt") as file:
        facts = json.loads(file.metadata()["fednml"])
    facts = change(facts)
    save_file(load_file(source), target, metadata=facts and {"fednml": json.dumps(facts)})
    return target


# ---- the same numbers


def test_one_file_alone_predicts_as_the_engine(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(run.folder / "best.safetensors", tmp_path / "copied.safetensors")
    out = tmp_path / "p.csv"
    assert call(alone, run.data / "test_data.csv", "--out", out) == 0
    rows = read(out)
    assert [row["image"] for row in rows] == [f"image{48 + i}.png" for i in range(12)]
    np.testing.assert_allclose(numbers(rows, "probability"), run.best[:, :UNTRAINED], rtol=1e-5)
    exact = open_model(alone, which="best", device="cpu")
    images = run.simulation.dataset.images[48:]
    np.testing.assert_allclose(exact.predict(images)[:, :UNTRAINED], run.best[:, :3], atol=1e-7)
    # The engine scored these labels as macro_f1_tuned, from its own predictions.
    found, truth = numbers(rows, "label"), run.truth[:, :UNTRAINED]
    cut = ~np.isnan(found).any(axis=0)
    assert cut.any()
    scores = [f1_score(truth[:, c], found[:, c]) for c in np.flatnonzero(cut)]
    result = json.loads((run.folder / "result.json").read_text())
    assert result["val_selected"]["macro_f1_tuned"] == pytest.approx(np.mean(scores))
    assert "12 of 12 images" in capsys.readouterr().out


def test_the_last_model_on_request(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert call(run.folder, run.data / "images", "--model", "last", "--out", out) == 0
    by_name = {row["image"]: row for row in read(out)}
    rows = [by_name[f"image{48 + i}.png"] for i in range(12)]
    np.testing.assert_allclose(numbers(rows, "probability"), run.last[:, :UNTRAINED], rtol=1e-5)


def test_a_class_that_nobody_annotates_has_no_number(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    assert call(run.folder, run.data / "images" / "image50.png", "--out", out) == 0
    (row,) = read(out)
    cells = {name: cell for name, cell in row.items() if name.endswith(f"class{UNTRAINED}")}
    assert list(cells.values()) == [NOT_TRAINED, NOT_TRAINED]
    assert "not trained: class3 (no site annotates them)" in capsys.readouterr().out
    saved = open_model(run.folder, which="best", device="cpu")
    assert np.isnan(saved.predict(np.zeros((1, 16, 16, 3), np.uint8))[:, UNTRAINED]).all()


def test_a_class_without_threshold_has_no_label() -> None:
    cuts = np.array([0.5, np.nan, 0.25])
    found = labels(np.array([[0.5, 0.9, 0.2], [0.4, 0.1, np.nan]]), cuts)
    np.testing.assert_array_equal(found, [[1, np.nan, 0], [0, np.nan, np.nan]])


@pytest.mark.parametrize("size", [1, 5])
def test_batches_change_nothing(
    size: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never are more images decoded at once."""
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    assert call(run.folder, run.data / "test_data.csv", "--out", whole) == 0
    monkeypatch.setattr(batches, "BATCH", size)
    shapes: list[int] = []
    written = predict.predict_batch
    monkeypatch.setattr(
        predict, "predict_batch", lambda s, b, *o: (shapes.append(len(b.images)), written(s, b, *o))
    )
    assert call(run.folder, run.data / "test_data.csv", "--out", parts) == 0
    assert max(shapes) == size and sum(shapes) == 12
    for kind in ("probability", "label"):
        one, other = (numbers(read(path), kind) for path in (whole, parts))
        np.testing.assert_allclose(one, other, rtol=1e-5)


# ---- which images


def test_places_and_names(tmp_path: Path, csv_data: Path) -> None:
    (tmp_path / "deep" / ".cache").mkdir(parents=True)
    pixels = csv_data / "images" / "image0.png"
    for name in ("b.png", "deep/a.PNG", "deep/.cache/c.png", "._b.png", "notes.md"):
        shutil.copy(pixels, tmp_path / name)
    assert [image.name for image in gather([tmp_path], data_dir=None)] == ["b.png", "deep/a.PNG"]
    twice = gather([tmp_path / "b.png", tmp_path], data_dir=None)
    assert [image.name for image in twice] == [f"{tmp_path}/b.png", f"{tmp_path}/deep/a.PNG"]
    tiny.write_table(tmp_path / "list.csv", [["image", "x"], ["image7", 1], ["image2.png", 0]])
    listed = gather([tmp_path / "list.csv"], data_dir=csv_data)
    assert [image.path.name for image in listed] == ["image7.png", "image2.png"]
    assert [image.name for image in listed] == ["image7", "image2.png"]


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "scans", tmp_path / "p.csv"
    folder.mkdir()
    shutil.copy(run.data / "images" / "image48.png", folder / "=good.png")
    (folder / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.full((9, 9), 900, np.uint16)).save(folder / "deep.png")
    assert call(run.folder, folder, "--out", out) == predict.UNREADABLE
    good, bad, deep = read(out)
    assert good["image"] == "'=good.png"  # a spreadsheet would run it
    np.testing.assert_allclose(numbers([good], "probability"), run.best[:1, :3], rtol=1e-5)
    assert good["problem"] == ""
    assert "broken" in bad["problem"] and "--pixel-range" in deep["problem"]
    assert {cell for name, cell in bad.items() if "class" in name} == {""}
    said = capsys.readouterr()
    assert "1 of 3 images predicted" in said.out
    assert said.err.count("\n") == 1 and "bad.png" in said.err
    assert call(run.folder, folder / "deep.png", "--pixel-range=0,4095", "--out", out) == 0
    shutil.rmtree(folder)


def test_deep_pixels_are_shown_as_in_training(tmp_path: Path, csv_data: Path) -> None:
    """The range was measured over the training set, and one image alone would have another."""
    data = shutil.copytree(csv_data, tmp_path / "data")
    for number, path in enumerate(sorted((data / "images").iterdir())):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * (4 + number % 3)).save(path)
    dataset = tiny.load("csv", data_dir=data, image_size=16)
    assert dataset.pixel_bounds is not None
    options = {"image_size": 16, "fit": "crop", "pixel_range": "auto"}
    for row in (0, 20, 59):
        path = data / "images" / dataset.files[row]
        found, problem = batches.decode_file(path, bounds=dataset.pixel_bounds, **options)
        assert problem == ""
        np.testing.assert_array_equal(found, dataset.images[row])


# ---- pictures and other programs


def test_pictures_of_where_the_model_looked(run: Run, tmp_path: Path) -> None:
    out, folder = tmp_path / "p.csv", tmp_path / "where"
    words = (run.folder, run.data / "test_data.csv", "--out", out, "--explain", folder)
    assert call(*words) == 0
    assert len(list(folder.iterdir())) == 12
    assert not list(folder.glob(f"*class{UNTRAINED}*"))
    with Image.open(min(folder.iterdir())) as picture:
        assert picture.size == (512, 282)
    assert call(*words) == 2  # it is not empty any more
    shutil.rmtree(folder)
    assert call(*words, "--explain-classes", "positive") == 0
    assert len(list(folder.iterdir())) == np.nansum(numbers(read(out), "label"))
    assert overlay_name(7, "ü" * 300 + "/../x.png", "a b/c").endswith("_.._x.png_a_b_c.png")
    assert len(overlay_name(7, "眼" * 300, "眼" * 300).encode()) < 256


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", predict.KINDS)
def test_exported_models_predict_the_same(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model.bin"
    assert call(run.folder, "--export", kind, path) == 0
    images = np.array(run.simulation.dataset.images[48:])
    found, facts = READ[kind](path, images)
    np.testing.assert_allclose(found[:, :UNTRAINED], run.best[:, :UNTRAINED], atol=1e-5)
    assert np.isnan(found[:, UNTRAINED]).all()
    saved = open_model(run.folder, which="best", device="cpu").facts
    for name in ("classes", "mean", "std", "image_size", "thresholds", "trained"):
        assert facts[name] == json.dumps(getattr(saved, name))
    monkeypatch.setattr(exporting, "TOLERANCE", -1)
    assert call(run.folder, "--export", kind, tmp_path / "other.bin") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.bin"]


def read_onnx(path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {"images": images})
    return found, session.get_modelmeta().custom_metadata_map


def read_torchscript(path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    extra = {"fednml.json": ""}
    program = torch.jit.load(str(path), _extra_files=extra)
    return program(torch.from_numpy(images)).detach().numpy(), json.loads(extra["fednml.json"])


READ = {"onnx": read_onnx, "torchscript": read_torchscript}


def test_what_is_not_installed_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert call(run.folder, "--export", "onnx", tmp_path / "m.onnx") == 2
    assert 'pip install "onnx' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- what the file says


def test_which_classes_are_trained(dataset: ImageDataset) -> None:
    scenario = tiny.make_scenario(dataset)
    hidden = scenario.annotated.copy()
    hidden[scenario.client >= 0, 1] = False
    assumed = np.zeros_like(hidden)
    assumed[scenario.client >= 0, 2] = True
    parts = (scenario.part, scenario.client, scenario.noisy, hidden, "key", assumed)
    flawed = type(scenario)(*parts)
    found = trained_classes(dataset, flawed, true_labels=False)
    assert found.tolist() == [True, False, False, True]
    assert trained_classes(dataset, flawed, true_labels=True).all()  # of the bound `clean`


def test_facts_come_back_as_they_were(run: Run) -> None:
    facts = open_model(run.folder / "model.safetensors", which="best", device="cpu").facts
    augmenter, last = run.simulation.predictor.augmenter, run.simulation.config.rounds - 1
    assert facts.mean == tuple(augmenter.mean.tolist())
    assert facts.std == tuple(augmenter.std.tolist())
    assert (facts.trained, facts.round, facts.models) == ((True, True, True, False), last, 1)
    result = json.loads((run.folder / "result.json").read_text())
    best = open_model(run.folder, which="best", device="cpu").facts
    assert best.round == result["val_selected"]["round"]
    with pytest.raises(ValueError):
        ModelFacts.read({"model": "small"})


def test_files_of_earlier_versions(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they lack is found from the run's data, and not guessed without them."""
    now = open_model(run.folder, which="best", device="cpu").facts
    older = shutil.copytree(run.folder, tmp_path / "older")
    keep = ("model", "classes", "image_size")
    with_facts(
        run.folder / "best.safetensors",
        older / "best.safetensors",
        lambda facts: {name: facts[name] for name in keep},
    )
    found = open_model(older, which="best", device="cpu").facts
    assert found.round is None
    assert found.cuts[:3] == pytest.approx(now.cuts[:3], abs=1e-6, nan_ok=True)
    assert (found.mean, found.std, found.trained) == (now.mean, now.std, now.trained)
    alone = shutil.copy(older / "best.safetensors", tmp_path / "alone.safetensors")
    assert call(alone, run.data / "images") == 2
    assert "lacks fit, pixel_range" in capsys.readouterr().err
    config = older / "config.yaml"
    other = shutil.copytree(run.data, tmp_path / "other")
    Image.new("RGB", (16, 16), "red").save(other / "images" / "image3.png")
    config.write_text(config.read_text().replace(str(run.data), str(other)))
    assert call(older, run.data / "images") == 2
    assert "images and scenario are not those of its run" in capsys.readouterr().err


# ---- misuse

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no such run": (("{tmp}/none", "{image}"), "no such run"),
    "no run": (("{tmp}", "{image}"), "holds no run"),
    "nothing to do": (("{run}",), "nothing to do"),
    "no such image": (("{run}", "{tmp}/none.png"), "no such image, folder or CSV file"),
    "empty folder": (("{run}", "{tmp}/empty"), "holds no image file"),
    "a workbook": (("{run}", "{tmp}/a.xlsx"), "CSV UTF-8"),
    "labels as output": (("{run}", "{image}", "--out", "{tmp}/a.csv"), "holds no predictions"),
    "a folder as output": (("{run}", "{image}", "--out", "{tmp}"), "is a folder"),
    "images elsewhere": (("{run}", "{tmp}/a.csv"), "--data-dir"),
    "no table": (("{run}", "{image}", "--data-dir", "{tmp}"), "leave it out"),
    "no images for --out": (("{run}", "--out", "x", "--export", "onnx", "y"), "no images"),
    "unknown kind": (("{run}", "--export", "tflite", "{tmp}/y"), "onnx, torchscript"),
    "a range": (("{run}", "{image}", "--pixel-range", "4,1"), "--pixel-range"),
    "unreadable": (("{run}", "{tmp}/bad.png"), "none of 1 images can be read"),
    "not finished": (("{tmp}/begun", "{image}"), "--resume"),
    "damaged": (("{tmp}/bad.safetensors", "{image}"), "cannot be read"),
    "other facts": (("{tmp}/short.safetensors", "{image}"), "metadata are damaged"),
    "of sites": (("{tmp}/local.safetensors", "{image}"), "their mean"),
    "unknown model": (("{tmp}/vit.safetensors", "{image}"), "does not know"),
    "other shapes": (("{tmp}/shape.safetensors", "{image}"), "of another shape"),
    "of a later layout": (("{tmp}/bare.safetensors", "{image}"), "lacks model, classes"),
    "untrained": (("{tmp}/untrained.safetensors", "{image}"), "no class is trained"),
    "unknown option": (("{run}", "{image}", "--threshold", "1"), "see --help"),
}


@pytest.fixture(scope="module")
def wrong(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are no models, images or tables of the right kind."""
    place = tmp_path_factory.mktemp("wrong")
    (place / "empty").mkdir()
    (place / "begun").mkdir()
    (place / "begun" / "config.yaml").write_text("")
    (place / "a.xlsx").write_bytes(b"PK")
    (place / "bad.png").write_bytes(b"bad")
    (place / "bad.safetensors").write_bytes(b"bad")
    tiny.write_table(place / "a.csv", [["image", "x"], ["one", 1], ["two", 0]])
    best = run.folder / "best.safetensors"
    changes: dict[str, dict[str, Any]] = {
        "short": {"mean": [0.5]},
        "local": {"models": 3, "method": "local"},
        "vit": {"model": "vit"},
        "shape": {"classes": ["a"], "trained": [True], "thresholds": [0.5]},
        "untrained": {"trained": [False] * 4},
    }
    for name, change in changes.items():
        with_facts(best, place / f"{name}.safetensors", lambda facts, new=change: facts | new)
    with_facts(best, place / "bare.safetensors", lambda facts: None)
    return place


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line_and_write_nothing(
    case: str, run: Run, wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words, said = WRONG[case]
    places = {"run": run.folder, "tmp": wrong, "image": run.data / "images" / "image48.png"}
    before = sorted(wrong.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert call(*(word.format(**places) for word in words)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("predict: ") and shown.err.count("\n") == 1, shown.err
    assert said in shown.err and shown.out == ""
    assert sorted(wrong.rglob("*")) == before and list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_batch", interrupt)
    assert call(run.folder, run.data / "images", "--out", tmp_path / "p.csv") == 130
    assert list(tmp_path.iterdir()) == []
