"""The procedural dataset: its counts, its labels, its pictures and its cache."""

from __future__ import annotations

import errno
import functools
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from by_hand import float32_tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import ROOT

from utils_.datasets import synthetic
from utils_.datasets.base import TEST, TRAIN
from utils_.datasets.synthetic import CLASSES, load_synthetic, positives_by_class, scene
from utils_.datasets.synthetic.lesions import FINDINGS, PLACES
from utils_.datasets.synthetic.marks import Marks, draw_marks
from utils_.datasets.synthetic.scene import render
from utils_.errors import UserError

# docs/methods.md, section 17: name, train images, val images of MuReD.
MURED = """DR 396/99, NORMAL 395/98, MH 135/34, ODC 211/52, TSLN 125/31, ARMD 126/32, DN 130/32,
MYA 71/18, BRVO 63/16, ODP 50/12, CRVO 44/11, CNV 48/12, RS 47/11, ODE 46/11, LS 37/9, CSR 29/7,
HTR 28/7, ASR 26/7, CRS 24/6, OTHER 209/52"""


def picture(labels: np.ndarray, *, image_size: int = 32, data_seed: int = 1) -> np.ndarray:
    blocks = render(
        labels, classes=CLASSES, image_size=image_size, data_seed=data_seed, part="train"
    )
    return np.concatenate(list(blocks))


def one_finding(name: str) -> np.ndarray:
    return np.tile(np.array(CLASSES) == name, (64, 1)).astype(np.float32)


@functools.cache
def eyes_with(name: str) -> np.ndarray:
    """The same 64 eyes, all with one finding."""
    return picture(one_finding(name))


def load_small(folder: Path, **changes):
    wanted = {"image_size": 16, "data_seed": 1, "train_images": 70, "test_images": 20}
    return load_synthetic(**{**wanted, "cache_dir": folder, **changes})


@pytest.fixture(scope="module")
def labels() -> tuple[np.ndarray, np.ndarray]:
    """Labels of the training and the test part in the default size."""
    whole = load_synthetic(image_size=64, data_seed=1, labels_only=True)
    return whole.labels[whole.part == TRAIN], whole.labels[whole.part == TEST]


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return eyes_with("NORMAL")


# Labels


def test_counts_are_those_of_mured(labels) -> None:
    rows = [entry.split() for entry in MURED.split(",")]
    assert tuple(name for name, _ in rows) == CLASSES
    train, test = zip(*(counts.split("/") for _, counts in rows), strict=True)
    assert [part.shape for part in labels] == [(1764, 20), (444, 20)]
    np.testing.assert_array_equal(labels[0].sum(0), np.array(train, int))
    np.testing.assert_array_equal(labels[1].sum(0), np.array(test, int))


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 3000), st.integers(20, 900), st.integers(0, 2**31))
def test_any_size_keeps_the_rules(train: int, test: int, seed: int) -> None:
    whole = load_synthetic(
        image_size=16, data_seed=seed, train_images=train, test_images=test, labels_only=True
    )
    assert set(np.unique(whole.labels)) == {0.0, 1.0}
    for part, size in ((TRAIN, train), (TEST, test)):
        rows = whole.labels[whole.part == part]
        assert len(rows) == size
        assert (rows.sum(0) >= 1).all()
        expected = positives_by_class(int(part != TRAIN), size)
        np.testing.assert_array_equal(rows.sum(0), expected)
        diseased = np.delete(rows, CLASSES.index("NORMAL"), axis=1).any(1)
        np.testing.assert_array_equal(rows[:, CLASSES.index("NORMAL")] == 1, ~diseased)


def test_prevalence_scales_with_the_size() -> None:
    for size in (588, 3528):
        scaled = positives_by_class(0, 1764) * size / 1764
        assert np.abs(positives_by_class(0, size) - scaled).max() <= 1


def test_findings_share_images_as_in_rfmid(labels) -> None:
    """Of the abnormal images of RFMiD, 70 % have one finding, 25 % two, 6 % more."""
    train = labels[0]
    findings = np.bincount(train.sum(1).astype(int), minlength=6) / (train[:, 1] == 0).sum()
    assert findings[2] > 0.2
    assert 0.003 < findings[3:].sum() < 0.1

    def together(first: str, second: str) -> float:
        a, b = (train[:, CLASSES.index(name)] for name in (first, second))
        return (a * b).sum() / (a.sum() * b.sum() / len(train))

    assert together("BRVO", "CRVO") == together("ODE", "ODC") == 0
    assert together("DR", "LS") > 1 > together("DR", "MH")
    assert together("ARMD", "MYA") > 1


# Pictures


def test_dataset_is_what_was_promised(tmp_path: Path) -> None:
    whole = load_small(tmp_path, image_size=24)
    assert whole.images.shape == (90, 24, 24, 3)
    assert whole.images.dtype == np.uint8
    assert isinstance(whole.images, np.memmap)
    assert not whole.images.flags.writeable
    assert whole.labels.dtype == np.float32
    assert whole.files[0] == "train_00001.png"
    assert whole.files[70] == "test_00001.png"
    assert len(set(whole.files)) == 90
    np.testing.assert_array_equal(whole.part, [TRAIN] * 70 + [TEST] * 20)
    assert whole.groups is None
    assert whole.sites is None
    assert len({image.tobytes() for image in whole.images}) == 90


def test_pictures_fill_the_range(normal: np.ndarray) -> None:
    centre, corner = normal[:, 12:20, 12:20], normal[:, :2, :2]
    assert corner.mean() < 12  # outside of the aperture
    assert 60 < centre.mean() < 170
    assert (centre[..., 0].mean((1, 2)) > centre[..., 2].mean((1, 2))).all()  # red, not blue
    assert (normal == 255).mean() < 0.02
    assert normal.mean((1, 2, 3)).std() > 5  # light and dark eyes


def test_same_seed_same_bits_other_seed_other_images(tmp_path: Path) -> None:
    first, second = load_small(tmp_path / "a"), load_small(tmp_path / "b")
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.image_key == second.image_key
    other = load_small(tmp_path / "a", data_seed=2)
    assert (other.images != first.images).any((1, 2, 3)).all()
    assert (other.labels != first.labels).any()
    assert other.image_key != first.image_key


def test_test_images_do_not_touch_training_images(tmp_path: Path) -> None:
    few, many = load_small(tmp_path), load_small(tmp_path, test_images=65)
    np.testing.assert_array_equal(few.images[:70], many.images[:70])
    np.testing.assert_array_equal(few.labels[:70], many.labels[:70])
    assert few.image_key != many.image_key
    shared = set(map(bytes, many.images[:70])) & set(map(bytes, many.images[70:]))
    assert not shared


def test_bits_depend_neither_on_threads_nor_on_batches(
    normal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'tests', 'tests/data']; import test_synthetic as t, zlib;"
        "print(zlib.crc32(t.picture(t.one_finding('DR'))))"
    )
    checksums = set()
    for threads in ("1", "4"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        checksums.add(done.stdout)
    assert len(checksums) == 1
    monkeypatch.setattr(scene, "PIXEL_BUDGET", 5 * 32**2)
    monkeypatch.setattr("utils_.datasets.synthetic.marks.WINDOW_BUDGET", 1)
    np.testing.assert_array_equal(picture(one_finding("NORMAL")), normal)


GOLDEN = [
    62.36,
    55.70,
    67.25,
    89.77,
    72.96,
    60.15,
    79.89,
    59.04,
    76.23,
    66.33,
    84.81,
    53.61,
    74.83,
    76.17,
    70.12,
    60.64,
    86.57,
    81.22,
    58.94,
    54.87,
]  # mean level of an image of each class


@pytest.mark.numerics
def test_pixels_of_this_version() -> None:
    """If this fails on purpose, raise VERSION, or old caches stay in use."""
    assert synthetic.VERSION == 2
    means = picture(np.eye(20)).mean((1, 2, 3))
    np.testing.assert_allclose(means, GOLDEN, atol=0.1)


@pytest.mark.parametrize("size", [16, 17, 512])
def test_extreme_sizes(size: int) -> None:
    image = picture(np.eye(20)[[14]], image_size=size)
    assert image.shape == (1, size, size, 3)
    assert image.std() > 20


def test_the_same_eye_at_every_size() -> None:
    labels = np.eye(20)
    large = picture(labels, image_size=96).reshape(20, 32, 3, 32, 3, 3).mean((2, 4))
    small = picture(labels, image_size=32).astype(float)
    for one, other in zip(small, large, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


# Evidence


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "NORMAL"])
def test_a_finding_is_local(name: str, normal: np.ndarray) -> None:
    """The same eyes with and without a finding differ, but only in a part of the picture."""
    change = np.abs(eyes_with(name).astype(int) - normal).max(-1)
    share = (change > 0).mean((1, 2))
    assert (share > 0).mean() > 0.95
    assert share.mean() < 0.4
    assert (change.max((1, 2)) > 25).mean() > 0.6


def test_mean_colour_hardly_tells(normal: np.ndarray) -> None:
    """No finding moves the mean colour by more than the deviation between healthy eyes."""
    healthy = normal.mean((1, 2))
    for name in FINDINGS:
        shift = (eyes_with(name).mean((1, 2)) - healthy).mean(0)
        assert (np.abs(shift) < healthy.std(0)).all(), name


def test_no_finding_leaves_no_mark(normal: np.ndarray) -> None:
    np.testing.assert_array_equal(picture(np.zeros((64, 20))), normal)


def test_every_class_has_an_appearance() -> None:
    changed_anatomy = {"ODC", "ODP"}
    assert set(FINDINGS) | changed_anatomy | {"NORMAL"} == set(CLASSES)
    assert {lesion.place for kinds in FINDINGS.values() for lesion in kinds} <= set(PLACES)


# Marks


def make_marks(count: int, **changes: float) -> Marks:
    values = {
        "x": 0.0, "y": 0.0, "along": 0.4, "across": 0.2, "angle": 0.7, "edge": 0.05, "rough": 0.0,
        "hollow": 0.0, "stripes": 0.0, "red": 1.0, "green": 0.5, "blue": 0.0, "opacity": 0.9,
    }  # fmt: skip
    arrays = {name: np.full(count, value) for name, value in {**values, **changes}.items()}
    return Marks(image=np.zeros(count, int), **arrays)


def paint(marks: Marks, size: int = 100) -> np.ndarray:
    image = np.zeros((1, size, size, 3), np.float32)
    draw_marks(image, marks, np.zeros((1, size, size), np.float32))
    return image[0]


@pytest.mark.numerics
def test_mark_has_its_area_colour_and_place() -> None:
    image = paint(make_marks(1, x=0.2, y=-0.3))
    assert image[..., 0].sum() * 0.02**2 == pytest.approx(0.9 * np.pi * 0.4 * 0.2, rel=0.02)
    np.testing.assert_allclose(image[35, 60], [0.9, 0.45, 0], atol=0.01)
    assert image[35 + 10, 60 + 12, 0] > 0.5 > image[35 - 10, 60 + 12, 0]  # angle 0.7, y down


def test_a_mark_below_a_pixel_keeps_its_weight() -> None:
    tiny = make_marks(1, along=0.004, across=0.004, x=0.01, y=0.01)
    assert 0 < paint(tiny).max() < 0.2
    assert paint(tiny)[..., 0].sum() * 0.02**2 == pytest.approx(0.9 * np.pi * 0.004**2, rel=0.5)


def test_hollow_marks_are_rings_and_striped_ones_have_gaps() -> None:
    assert paint(make_marks(1, hollow=0.7))[50, 50, 0] == 0
    stripes = paint(make_marks(1, stripes=10.0, angle=0.0))[40:60, 50, 0]
    assert np.count_nonzero(np.diff(np.sign(np.diff(stripes)))) >= 3


@pytest.mark.numerics
def test_order_of_marks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    marks = make_marks(12)
    for name in ("x", "y", "red", "opacity"):
        setattr(marks, name, rng.uniform(0, 0.9, 12))
    shuffled, atol = marks.take(rng.permutation(12)), float32_tolerance(2 * 12)
    np.testing.assert_allclose(paint(marks), paint(shuffled), rtol=0, atol=atol)


def test_marks_outside_are_cut_off() -> None:
    assert not paint(make_marks(1, x=5.0)).any()
    assert paint(make_marks(1, x=1.0)).any()
    assert not paint(make_marks(0)).any()


# Options and cache


@pytest.mark.parametrize(
    ("option", "value"), [("train_images", 39), ("train_images", -1), ("test_images", 19)]
)
def test_too_few_images(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')}: {value} .*at least"):
        load_small(tmp_path / "cache", **{option: value})
    assert not (tmp_path / "cache").exists()


def test_labels_only_writes_nothing(tmp_path: Path) -> None:
    dry, whole = load_small(tmp_path / "a", labels_only=True), load_small(tmp_path / "b")
    assert not (tmp_path / "a").exists()
    np.testing.assert_array_equal(dry.labels, whole.labels)
    assert dry.images.shape == whole.images.shape
    assert not dry.images.any()
    assert dry.image_key == ""


def test_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_small(tmp_path)
    monkeypatch.setattr(synthetic, "render", None)  # drawing again would fail
    np.testing.assert_array_equal(load_small(tmp_path).images, first.images)
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.image_key}.npy"]


def _flip(data: bytes) -> bytes:
    return data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-100],
    "one bit": _flip,
    "other file": lambda data: b"not an array at all",
    "other shape": lambda data: data.replace(b"(90, 16, 16, 3)", b"(90, 16, 48, 1)"),
    "checksum": lambda data: data[:-1] + bytes([data[-1] ^ 255]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_noticed_and_rebuilt(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = load_small(tmp_path)
    images = np.array(first.images)
    path = tmp_path / f"{first.image_key}.npy"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load_small(tmp_path).images, images)
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cache-dir"):
        load_small(tmp_path / "file" / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type
) -> None:
    def broken(labels: np.ndarray, **options: object):
        yield np.zeros((3, 16, 16, 3), np.uint8)
        raise error

    monkeypatch.setattr(synthetic, "render", broken)
    with pytest.raises(raised):
        load_small(tmp_path / "deep" / "cache")
    assert not (tmp_path / "deep").exists()


# Contact sheet


@pytest.fixture(scope="module")
def contact_sheet():
    path = ROOT / "scripts" / "contact_sheet.py"
    spec = importlib.util.spec_from_file_location("contact_sheet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contact_sheet_shows_every_class_once(contact_sheet, labels) -> None:
    rows = contact_sheet.choose(labels[0], 32, seed=1)
    assert len(set(rows)) == 32
    assert labels[0][rows[:20]].any(0).all()
    assert (labels[0][rows[:20]].sum(1) == 1).all()
    assert len(contact_sheet.choose(labels[0][:5], 32, seed=1)) == 5


def test_contact_sheet_is_a_small_picture(contact_sheet, tmp_path: Path, capsys) -> None:
    output = tmp_path / "sheet.png"
    options = ["--train-images", "40", "--image-size", "32", "--rows", "2", "--columns", "3"]
    folder = ["--cache-dir", str(tmp_path / "cache"), "--output", str(output)]
    assert contact_sheet.main([*options, *folder]) == 0
    with Image.open(output) as picture_file:
        assert picture_file.width > picture_file.height > 100
    assert contact_sheet.main(["--dataset", "sinthetic", *folder]) == 2
    assert capsys.readouterr().err.count("\n") == 1
