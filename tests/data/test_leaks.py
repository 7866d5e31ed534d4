"""The same pixels twice: what a run refuses, what it keeps together, and what is no harm."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import needs_shared

from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.datasets.cache.facts import same_pixels
from utils_.datasets.copies import settle_copies
from utils_.errors import UserError
from utils_.splits import cut_parts

HEADER = "image,red,dark"
ROWS = {name: f"{number % 2},{number // 2 % 2}" for number, name in enumerate("abcdefgh")}


def write_data(folder: Path, *, copies: dict[str, str], **files: str) -> Path:
    """Eight different images; ``copies`` says which is a copy of which other."""
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 20, 20, 3), dtype=np.uint8)
    for name, image in zip(ROWS, pixels, strict=True):
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
    for copy, original in copies.items():
        shutil.copy(folder / "images" / f"{original}.png", folder / "images" / f"{copy}.png")
    for stem, text in files.items():
        (folder / f"{stem}.csv").write_text(text)
    return folder


def table(names: str, **changed: str) -> str:
    """A label file of some images, in the order of their letters; ``changed`` gives other cells."""
    return "\n".join([HEADER, *(f"{name}.png,{(ROWS | changed)[name]}" for name in names)]) + "\n"


def load(folder: Path, **options):
    return tiny.load("csv", data_dir=folder, image_size=16, **options)


def error_of(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Each: copies, files, what the one line says, and the deed that it advises.
LEAKS = {
    "train and test": (
        {"f": "b"},
        {"train_data": table("abcd"), "test_data": table("efgh", f=ROWS["b"])},
        ("are in several parts", "b.png=f.png", "keep each image in one part"),
        ("test_data", table("egh")),
    ),
    "train and val": (  # as a val file cut from train without removing it there
        {"f": "b"},
        {
            "train_data": table("abcd"),
            "val_data": table("ef", f=ROWS["b"]),
            "test_data": table("gh"),
        },
        ("are in several parts", "b.png=f.png"),
        ("val_data", table("e")),
    ),
    "two labels": (
        {"c": "a"},
        {"train_data": table("abcdefgh")},
        ("are labelled differently", "a.png=c.png", "keep the row whose labels are right"),
        ("train_data", table("abdefgh")),
    ),
    "two labels of one patient": (  # Fitzpatrick17k and DermaMNIST: repeated images that disagree
        {"c": "a"},
        {"train_data": table("abcdefgh"), "groups": "image,patient_id\na,p\nc,p\n"},
        ("are labelled differently",),
        ("train_data", table("abdefgh")),
    ),
    "three copies": (
        {"e": "a", "g": "a"},
        {"train_data": table("abcd"), "test_data": table("efgh", e=ROWS["a"], g=ROWS["a"])},
        ("1 sets", "a.png=e.png=g.png"),
        ("test_data", table("fh")),
    ),
    "two sites": (  # a patient who was moved brings the images along
        {"e": "a"},
        {
            "train_data": table("abcdefgh", e=ROWS["a"]),
            "groups": "image,patient_id,site\n"
            + "".join(f"{name},{name},{'north' if name < 'e' else 'south'}\n" for name in ROWS),
        },
        ("belong to several sites", "a.png=e.png", "keep one of each"),
        ("train_data", table("abcdfgh")),
    ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_a_leak_stops_the_run_and_its_advice_works(tmp_path, caplog, case):
    copies, files, words, (stem, text) = LEAKS[case]
    folder = write_data(tmp_path / "data", copies=copies, **files)
    for _ in range(2):  # cold, then from the cache
        message = error_of(folder)
        assert all(word in message for word in words), message
    assert "--allow-duplicates" in message
    allowed = load(folder, allow_duplicates=True)
    assert words[0] in caplog.text  # still said
    assert len(allowed.files) == sum(
        len(t.splitlines()) - 1 for n, t in files.items() if "data" in n
    )
    (folder / f"{stem}.csv").write_text(text)
    assert len(load(folder).files) == len(allowed.files) - len(copies)


def test_a_mirror_image_is_no_copy(tmp_path):
    folder = write_data(tmp_path, copies={}, train_data=table("abcd"), test_data=table("efgh"))
    with Image.open(folder / "images/a.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "images/f.png")
    assert len(load(folder).files) == 8


def test_the_same_pixels_in_other_files_are_copies(tmp_path):
    """PNG, TIFF and BMP differ in every byte, the pixels do not."""
    folder = write_data(tmp_path, copies={}, train_data=table("abcd"))
    names = {"e": "tif", "f": "bmp"}
    for name, form in names.items():
        with Image.open(folder / "images/a.png") as image:
            image.save(folder / f"images/{name}.{form}")
        (folder / f"images/{name}.png").unlink()
    (folder / "test_data.csv").write_text(f"{HEADER}\ne,0,0\nf,0,0\ng,0,1\n")
    assert "a.png=e=f" in error_of(folder)


def test_copies_without_a_common_patient_are_kept_together(tmp_path, caplog):
    folder = write_data(
        tmp_path,
        copies={"e": "a", "g": "a", "h": "b"},
        train_data=table("abcdefgh", e=ROWS["a"], g=ROWS["a"], h=ROWS["b"]),
    )
    data = load(folder)
    assert "2 sets of images with the same pixels belong to no common patient" in caplog.text
    assert set(data.part.tolist()) == {UNASSIGNED}
    a, b, c, d, e, f, g, h = data.groups.tolist()
    assert a == e == g and b == h and len({a, b, c, d, f}) == 5
    for seed in range(40):  # whatever the draw, no split parts them
        part = cut_parts(data.part, data.groups, val_share=0.3, test_share=0.3, data_seed=seed)
        assert part[0] == part[4] == part[6] and part[1] == part[7]


def test_the_patients_of_copies_are_joined(tmp_path):
    """All images of both patients stay together, or a sister image would still leak."""
    groups = "image,patient_id\na,p\nb,p\nc,r\nd,r\ne,s\nf,s\ng,t\nh,t\n"
    folder = write_data(
        tmp_path, copies={"e": "a"}, train_data=table("abcdefgh", e=ROWS["a"]), groups=groups
    )
    p, also_p, r, _, s, also_s, t, _ = load(folder).groups.tolist()
    assert p == also_p == s == also_s and len({p, r, t}) == 3


HARMLESS = {
    "one patient": (
        {"train_data": table("abcdefgh", b=ROWS["a"]), "groups": "image,patient_id\na,p\nb,p\n"},
        {"b": "a"},
    ),
    "one fixed part": (  # nothing is cut any more
        {
            "train_data": table("abcd", b=ROWS["a"]),
            "val_data": table("ef"),
            "test_data": table("gh"),
        },
        {"b": "a"},
    ),
    "a blank cell contradicts nothing": (
        {"train_data": table("abcdefgh", b="0,"), "groups": "image,patient_id\na,p\nb,p\n"},
        {"b": "a"},
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_copies_change_nothing(tmp_path, caplog, case):
    files, copies = HARMLESS[case]
    caplog.set_level(logging.INFO, logger="fednml")
    data = load(write_data(tmp_path / "with", copies=copies, **files))
    assert "1 sets of images with the same pixels agree in part and labels" in caplog.text
    without = load(write_data(tmp_path / "without", copies={}, **files))
    for name in ("labels", "part", "groups"):
        np.testing.assert_array_equal(getattr(data, name), getattr(without, name))


def test_images_of_one_colour_are_named_but_no_copies(tmp_path, caplog):
    folder = write_data(tmp_path, copies={}, train_data=table("abcd"), test_data=table("efgh"))
    for name in ("a", "f"):
        Image.new("RGB", (20, 20)).save(folder / f"images/{name}.png")
    load(folder)
    assert "2 images are of a single colour: a.png, f.png" in caplog.text


def test_same_pixels_against_a_plain_rewrite():
    images = np.random.default_rng(1).integers(0, 2, (60, 1, 2, 3), dtype=np.uint8)
    sets, flat = same_pixels(images)
    equal = (images[:, None] == images[None]).all(axis=(2, 3, 4))
    plain = {tuple(np.flatnonzero(row).tolist()) for row in equal}
    one_colour = [row for row, (pixels,) in enumerate(images) if (pixels[0] == pixels[1]).all()]
    assert flat == one_colour
    assert {tuple(rows) for rows in sets} == {s for s in plain if len(s) > 1 and s[0] not in flat}


def test_a_cache_of_an_earlier_version_is_looked_over(tmp_path):
    folder = write_data(
        tmp_path,
        copies={"f": "b"},
        train_data=table("abcd"),
        test_data=table("efgh", f=ROWS["b"]),
    )
    load(folder, allow_duplicates=True)
    (array,) = (folder / ".cache").glob("*.npy")
    facts = array.with_suffix(".json")
    before = json.loads(facts.read_text())
    facts.write_text(json.dumps({name: before[name] for name in ("bytes", "crc32")}))
    changed = array.stat().st_mtime_ns
    assert "b.png=f.png" in error_of(folder)
    assert array.stat().st_mtime_ns == changed  # not decoded again
    assert json.loads(facts.read_text()) == before


def test_splits_by_image_are_said(tmp_path, caplog):
    folder = write_data(tmp_path, copies={}, train_data=table("abcd"))
    load(folder, labels_only=True)
    assert "no patients are known, so the split is by image" in caplog.text
    assert "groups.csv" in caplog.text
    caplog.clear()
    (folder / "groups.csv").write_text("image,patient_id\na,p\nb,p\nc,q\nd,r\n")  # as advised
    load(folder, labels_only=True)
    assert "by image" not in caplog.text


def test_fixed_parts_are_not_split_by_image(tmp_path, caplog):
    files = {"train_data": table("abcd"), "val_data": table("ef"), "test_data": table("gh")}
    data = load(write_data(tmp_path, copies={}, **files), labels_only=True)
    assert set(data.part.tolist()) == {TRAIN, VAL, TEST} and "by image" not in caplog.text


def test_the_program_stops_in_one_line_before_it_writes(tmp_path, capsys):
    copies, files, _, _ = LEAKS["train and test"]
    folder = write_data(tmp_path / "data", copies=copies, **files)
    options = tiny.command(folder, tmp_path / "save")
    assert tiny.call_main([*options, "--dry-run"]) == 0  # it opens no image
    capsys.readouterr()
    assert tiny.call_main(options) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "b.png=f.png" in err and "--allow-duplicates" in err
    assert not (tmp_path / "save" / "runs").exists()


@needs_shared
@pytest.mark.parametrize(("name", "sets"), [("odir", 0), ("isic", 2)])
def test_public_sets_go_on_working(tmp_path, caplog, name, sets):
    """ODIR has no copies; the two pairs of HAM10000 are each of one lesion, so they are fine."""
    folder = tiny.SHARED / "data" / name
    arrays = list((folder / ".cache").glob("*.npy"))  # only read: the folder is everybody's
    if not arrays:
        pytest.skip("no cache of decoded images")
    data = tiny.load(name, data_dir=folder, labels_only=True)
    copies, flat = same_pixels(np.load(arrays[0], mmap_mode="r"))
    assert len(copies) == sets and not flat
    assert settle_copies(data, copies, allow=False) is data and not caplog.text
