"""Names of images as other systems write them: the right file, or one line that helps."""

from __future__ import annotations

import logging
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from utils_.datasets.folder import ImageFolder
from utils_.errors import UserError

NFD, NFC = (unicodedata.normalize(form, "Fundusbild_Müller_ö.png") for form in ("NFD", "NFC"))


def folder_of(path: Path, *files: str) -> ImageFolder:
    """``my_data/images`` with these files, which are empty."""
    folder = path / "my_data" / "images"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return ImageFolder(folder)


# Each: files on the disk, the name in the CSV, the file that it means.
FOUND = {
    "dot": (["a.png"], "./a.png", "a.png"),
    "doubled slash": (["w/a.png"], "w//a.png", "w/a.png"),
    "dot inside": (["w/a.png"], "w/./a.png", "w/a.png"),
    "backslash": (["w/a.png"], "w\\a.png", "w/a.png"),
    "dot and backslash": (["w/a.png"], ".\\w\\a.png", "w/a.png"),
    "case of the name": (["IMG_01.png"], "img_01.png", "IMG_01.png"),
    "case of the folder": (["Ward/a.png"], "ward/a.png", "Ward/a.png"),
    "case of the extension": (["a.PNG"], "a.png", "a.PNG"),
    "macOS wrote, Excel lists": ([NFD], NFC, NFD),
    "Excel wrote, macOS lists": ([NFC], NFD, NFC),
    "umlaut without extension": ([NFD], NFC[:-4], NFD),
    "images in front": (["a.png"], "images/a.png", "a.png"),
    "slash in front": (["a.png"], "images//a.png", "a.png"),
    "as seen from a notebook": (["a.png"], "../images/a.png", "a.png"),
    "as seen from elsewhere": (["w/a.png"], "../my_data/images/w/a.png", "w/a.png"),
    "the data folder in front": (["a.png"], "my_data/a.png", "a.png"),
    "path of Linux": (["w/a.png"], "/home/x/my_data/images/w/a.png", "w/a.png"),
    "path of Windows": (["w/a.png"], "C:\\Users\\x\\images\\w\\a.png", "w/a.png"),
    "network drive": (["a.png"], "\\\\server\\share\\images\\a.png", "a.png"),
    "bare name in a subfolder": (["w/north/a.png"], "a.png", "w/north/a.png"),
    "bare name without extension": (["w/a.jpeg"], "a", "w/a.jpeg"),
    "space around a folder": (["w/a.png"], "w / a.png", "w/a.png"),
    "no-break space": (["a.png"], "a.png\u00a0", "a.png"),
    "zero-width space": (["a.png"], "\u200ba.png", "a.png"),
    "percent-encoded space": (["left eye.png"], "left%20eye.png", "left eye.png"),
    "percent-encoded umlaut": ([NFC], "Fundusbild_M%C3%BCller_%C3%B6.png", NFC),
    "a real percent sign": (["50%20.png"], "50%20.png", "50%20.png"),
    "converted afterwards": (["a.png"], "a.dcm", "a.png"),  # MIMIC-CXR lists .dcm, -JPG has .jpg
    "jpg for jpeg": (["a.jpeg"], "a.jpg", "a.jpeg"),
    "dots in the name": (["1.2.840.113619.png"], "1.2.840.113619", "1.2.840.113619.png"),
    "DICOM with a long ending": (["a.dicom"], "a", "a.dicom"),  # VinBigData
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_a_name_means(tmp_path, case):
    files, name, expected = FOUND[case]
    assert folder_of(tmp_path, *files).find(name) == expected


# Each: files on the disk, all names of a CSV, the files that they mean.
TOGETHER = {
    "CheXpert": (
        ["train/patient1/study1/view1.jpg", "valid/patient2/study1/view1.jpg"],
        [
            "CheXpert-v1.0-small/train/patient1/study1/view1.jpg",
            "CheXpert-v1.0-small/valid/patient2/study1/view1.jpg",
        ],
        ["train/patient1/study1/view1.jpg", "valid/patient2/study1/view1.jpg"],
    ),
    "Windows without images": (
        ["n/a.png", "s/b.png"],
        ["D:\\Studie 3\\n\\a.png", "D:\\Studie 3\\s\\b.png"],
        ["n/a.png", "s/b.png"],
    ),
    "Kaggle": (
        ["a.png", "b.png"],
        ["/kaggle/input/aptos2019/train/a.png", "/kaggle/input/aptos2019/train/b.png"],
        ["a.png", "b.png"],
    ),
    "addresses": (
        ["a.png", "b.png"],
        ["https://x.org/set/a.png", "https://x.org/set/b.png"],
        ["a.png", "b.png"],
    ),
    "paths and bare names": (
        ["n/a.png", "b.png", "c.png"],
        ["C:\\Export\\n\\a.png", "C:\\Export\\b.png", "c.png"],
        ["n/a.png", "b.png", "c.png"],
    ),
    "the first is missing": (["b.png", "c.png"], ["z/a.png", "z/b.png", "z/c.png"], None),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_folders_that_all_names_begin_with(tmp_path, caplog, case):
    files, names, expected = TOGETHER[case]
    caplog.set_level(logging.INFO, logger="fednml")
    found = folder_of(tmp_path, *files).place(names)
    assert found == (expected or ["z/a.png", "b.png", "c.png"])
    assert "are spelt otherwise in the label files than on the disk" in caplog.text


def test_a_folder_that_only_some_names_have_is_not_dropped(tmp_path):
    """ward/a.png is no other a.png: it is missing."""
    folder = folder_of(tmp_path, "a.png", "b.png", "other/c.png")
    assert folder.place(["ward/a.png", "b.png"]) == ["ward/a.png", "b.png"]
    assert folder.place(["other/a.png", "other/c.png"]) == ["other/a.png", "other/c.png"]


# Each: files on the disk, a name, words of the one line, and a name that it leads to.
REFUSED = {
    "two subfolders": (["n/a.png", "s/a.png"], "a.png", "n/a.png and s/a.png", "s/a.png"),
    "two extensions": (["w/a.png", "w/a.tif"], "W/a", "w/a.png and w/a.tif", "w/a.tif"),
    "two cases": (["A.png", "a.PNG"], "./x/../A.PNG", "not below", "A.png"),
    "twins by case": (["IMG.png", "img.png"], "Img.png", "IMG.png and img.png", "img.png"),
    "above": (["a.png"], "../../secret/a.png", "not below", "a.png"),
    "absolute": (["a.png"], "/etc/a.png", "not below", "a.png"),
    "drive": (["a.png"], "C:/pictures/a.png", "not below", "a.png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_or_outside_is_refused(tmp_path, case):
    files, name, words, better = REFUSED[case]
    folder = folder_of(tmp_path, *files)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        folder.find(name)
    assert "\n" not in str(caught.value)
    assert folder.find(better) == better


def test_what_is_no_image_is_not_found(tmp_path):
    folder = folder_of(tmp_path, "a.txt", ".hidden.png", "__MACOSX/._b.png", ".cache/c.png")
    assert [folder.find(name) for name in ("a", "hidden", "b", "c", "missing")] == [None] * 5


def write_data(path: Path, *names: str, listed: str) -> Path:
    (path / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        (path / "images" / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / name)
    (path / "train_data.csv").write_text("image,c\n" + listed, encoding="utf-8")
    return path


@pytest.mark.parametrize("again", ["./a.png", "images/a.png", "A.png", "a.jpg", "x\\..\\a.png"])
def test_one_file_spelt_two_ways_is_one_image(tmp_path, again):
    path = write_data(tmp_path, "a.png", "b.png", listed=f"a.png,0\nb.png,1\n{again},1\n")
    with pytest.raises(UserError) as caught:
        tiny.load("csv", data_dir=path, labels_only=True)
    assert "lines 2, 4" in str(caught.value) or "not below" in str(caught.value)


def test_spellings_of_groups_and_labels_need_not_agree(tmp_path):
    listed = "images/a.png,0\nimages\\b.png,1\nc,1\n"
    path = write_data(tmp_path, "a.png", "w/b.png", "c.PNG", listed=listed)
    (path / "groups.csv").write_text("image,patient_id\nA.png,p\n./w/b.png,q\nc.png,p\n")
    data = tiny.load("csv", data_dir=path, image_size=16)
    assert data.groups[0] == data.groups[2] != data.groups[1]
    assert data.files == ("images/a.png", "images\\b.png", "c")


def test_missing_images_come_with_the_nearest_name(tmp_path):
    """Excel strips the zeros in front of 0001: the line shows how the file is called."""
    path = write_data(tmp_path, "0001.png", "0002.png", listed="1.png,0\n0002.png,1\n")
    with pytest.raises(UserError) as caught:
        tiny.load("csv", data_dir=path, image_size=16)
    message = str(caught.value)
    assert "1 of 2 images" in message and "1.png (missing)" in message and "\n" not in message
    nearest = re.search(r"holds '(.*?)'", message)[1]
    (path / "train_data.csv").write_text(f"image,c\n{nearest},0\n0002.png,1\n")
    assert len(tiny.load("csv", data_dir=path, image_size=16).files) == 2


def test_advice_for_missing_images_is_offered_only_where_it_helps(tmp_path):
    path = write_data(tmp_path / "some", "a.png", "b.png", listed="a.png,0\nb.png,0\nz.png,1\n")
    with pytest.raises(UserError, match="--skip-bad-images"):
        tiny.load("csv", data_dir=path, image_size=16)
    assert len(tiny.load("csv", data_dir=path, image_size=16, skip_bad_images=True).files) == 2
    path = write_data(tmp_path / "all", "a.png", listed="y.png,0\nz.png,1\n")
    with pytest.raises(
        UserError, match=r"correct the names in the label files \(.*a\.png"
    ) as error:
        tiny.load("csv", data_dir=path, image_size=16)
    assert "--skip" not in str(error.value)
