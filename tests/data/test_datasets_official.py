"""Tiny files in the official layouts of RFMiD, BRSET, HAM10000, ICH and ChestX-ray14."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from test_datasets import SHARED, error_of, labels_of, needs_shared, write_images
from tiny import load

from utils_.datasets import READERS, brset, chestxray14, ham10000, ich, rfmid
from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL


def write(folder: Path, **files: str) -> Path:
    """Write text files; ``__`` in a name stands for ``/``, and all end in .csv or .txt."""
    for stem, text in files.items():
        suffix = ".txt" if stem.endswith("list") else ".csv"
        path = folder / (stem.replace("__", "/") + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


# ---- RFMiD


def rfmid_table(*rows: tuple[str, int, str], bom: bool = True) -> str:
    """A label file: number, Disease_Risk and the one disease of each image, '' for none."""
    text = "ID,Disease_Risk," + ",".join(rfmid.CLASSES) + "\n"
    for number, risk, disease in rows:
        cells = ["1" if cls == disease else "0" for cls in rfmid.CLASSES]
        text += ",".join([number, str(risk), *cells]) + "\n"
    return ("\ufeff" if bom else "") + text


RFMID = {
    "RFMiD_Training_Labels": rfmid_table(("1", 1, "DR"), ("2", 0, ""), ("3", 1, "DR")),
    "RFMiD_Validation_Labels": rfmid_table(("1", 1, "MH"), bom=False),
    "RFMiD_Testing_Labels": rfmid_table(("1", 1, "CL"), ("2", 1, "MH")),
}


def write_rfmid(folder: Path, **changed: str) -> Path:
    write(folder, **(RFMID | changed))
    write_images(folder / "train", "1.png", "2.png", "3.png")
    write_images(folder / "val", "1.png")
    write_images(folder / "test", "1.png", "2.png")
    return folder


def test_rfmid_three_files_that_count_from_one(tmp_path, caplog):
    data = load("rfmid", data_dir=write_rfmid(tmp_path), image_size=8)
    assert data.files == ("train/1", "train/2", "train/3", "val/1", "test/1", "test/2")
    assert data.part.tolist() == [TRAIN, TRAIN, TRAIN, VAL, TEST, TEST]
    assert data.classes == rfmid.CLASSES and len(data.classes) == 45
    found = [[data.classes[c] for c in np.flatnonzero(row)] for row in data.labels]
    assert found == [["DR"], [], ["DR"], ["MH"], ["CL"], ["MH"]]
    assert data.images[:, 0, 0, 0].tolist() == [0, 10, 20, 0, 0, 10]
    assert "contradicts" not in caplog.text


@pytest.mark.parametrize("wrap", ["", "Training_Set/", "Evaluation_Set/", "Test_Set/"])
def test_rfmid_layout_of_the_archives(tmp_path, wrap):
    wraps = ("Training_Set", "Evaluation_Set", "Test_Set")
    # Some copies wrap each folder in one of the same name; any mixture of both is found.
    roots = [root + "/" + (root if wrap == root + "/" else "") for root in wraps]
    for root, (stem, text), images in zip(
        roots, RFMID.items(), ("Training", "Validation", "Test"), strict=True
    ):
        write(tmp_path / root, **{stem: text})
        write_images(tmp_path / root / images, "1.png", "2.png", "3.png")
    data = load("rfmid", data_dir=tmp_path, image_size=8)
    assert data.files[:4] == ("train/1", "train/2", "train/3", "val/1")


def test_minimum_count_filter_says_what_is_left(tmp_path, caplog):
    folder = write_rfmid(tmp_path)
    with caplog.at_level("INFO", logger="fednml"):
        data = labels_of("rfmid", folder, min_positives=2)
    assert data.classes == ("DR",) and len(data.files) == 6
    assert "rfmid: 1 of 45 classes have at least 2 positive images: DR" in caplog.text
    # MH has two, but in the parts that are not learnt from.
    message = error_of("rfmid", folder, min_positives=3, labels_only=True)
    assert "--min-positives 3" in message and "DR, has 2" in message


@needs_shared
@pytest.mark.parametrize(("minimum", "left"), [(0, 45), (1, 43), (12, 22)])
def test_real_rfmid(tmp_path, minimum, left):
    for path in (SHARED / "data/rfmid").iterdir():
        (tmp_path / path.name).symlink_to(path)
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
    data = labels_of("rfmid", tmp_path, min_positives=minimum)
    assert [(data.part == part).sum() for part in (TRAIN, VAL, TEST)] == [1920, 640, 640]
    assert len(data.classes) == left
    train = (data.labels[data.part == TRAIN] == 1).sum(axis=0)
    assert train[data.classes.index("DR")] == 376 and train[data.classes.index("MH")] == 317


BAD_RFMID = {
    "cell": ({"RFMiD_Testing_Labels": rfmid_table(("1", 2, "")).replace("2,0", "0,7")}, "'7'"),
    "class": (
        {"RFMiD_Testing_Labels": rfmid_table(("1", 1, "DR")).replace("ARMD", "AMD")},
        "'AMD' is no class of RFMiD, did you mean 'ARMD'?",
    ),
    "short": ({"RFMiD_Validation_Labels": "ID,DR\n1,0\n"}, "the columns ARMD, MH"),
    "twice": ({"RFMiD_Testing_Labels": rfmid_table(("1", 0, ""), ("1", 0, ""))}, "already listed"),
    "image": ({"RFMiD_Testing_Labels": rfmid_table(("9", 0, ""))}, "1 of 5 images cannot be used"),
}


@pytest.mark.parametrize("case", BAD_RFMID)
def test_bad_rfmid(tmp_path, case):
    files, fragment = BAD_RFMID[case]
    assert fragment in error_of("rfmid", write_rfmid(tmp_path, **files))


def test_rfmid_needs_all_parts_and_reports_a_wrong_risk(tmp_path, caplog):
    folder = write_rfmid(tmp_path, RFMiD_Testing_Labels=rfmid_table(("1", 0, "CL")))
    labels_of("rfmid", folder)
    assert "Disease_Risk contradicts the diseases of 1 images" in caplog.text
    (folder / "RFMiD_Validation_Labels.csv").unlink()
    assert "RFMiD_Validation_Labels.csv is absent" in error_of("rfmid", folder)


# ---- BRSET


def brset_table(*rows: tuple[str, str, str, str]) -> str:
    """Image, patient, camera, finding."""
    text = "image_id,patient_id,camera,patient_age," + ",".join(brset.CLASSES) + ",quality\n"
    for image, patient, camera, finding in rows:
        cells = ["1" if cls == finding else "0" for cls in brset.CLASSES]
        text += ",".join([image, patient, camera, "48,", *cells, "Adequate"]).replace("48,,", "48,")
        text += "\n"
    return text


def test_brset_groups_patients_and_leaves_out_rows_without_image(tmp_path, caplog):
    table = brset_table(
        ("img00001", "7", "Canon CR", "drusens"),
        ("img04414", "7", "Canon CR", "scar"),
        ("img06900", "9", "Canon CR", "scar"),
        ("img00002", "7", "NIKON NF5050", ""),
        ("img00003", "8", "Canon CR", "other"),
    )
    write(tmp_path, labels_brset=table)
    write_images(tmp_path / "fundus_photos", "img00001.jpg", "img00002.jpg", "img00003.jpg")
    data = load("brset", data_dir=tmp_path, image_size=8)
    assert data.files == ("img00001", "img00002", "img00003")
    assert data.classes == brset.CLASSES and len(data.classes) == 13
    assert [row.argmax() for row in data.labels[[0, 2]]] == [7, 12] and not data.labels[1].any()
    assert data.groups[0] == data.groups[1] != data.groups[2]
    assert data.sites.tolist() == ["Canon CR", "NIKON NF5050", "Canon CR"]
    assert data.part.tolist() == [UNASSIGNED] * 3
    assert "left out 2 rows that the release has no image for" in caplog.text


def test_brset_other_missing_images_are_an_error(tmp_path):
    write(tmp_path, labels=brset_table(("img00001", "1", "", ""), ("img00002", "1", "", "scar")))
    write_images(tmp_path / "images", "img00001.jpg")
    assert "1 of 2 images cannot be used: images/img00002 (missing)" in error_of("brset", tmp_path)
    assert load("brset", data_dir=tmp_path, image_size=8, skip_bad_images=True).files == (
        "img00001",
    )


BAD_BRSET = {
    "no patient": (brset_table(("a", "1", "", "")).replace("patient_id", "patient"), "patient_id"),
    "no class": (brset_table(("a", "1", "", "")).replace("drusens", "drusen"), "'drusens'"),
    "cell": (brset_table(("a", "1", "", "amd")).replace("1,0", "yes,0"), "'yes'"),
    "twice": (brset_table(("a", "1", "", ""), ("a", "1", "", "")), "already listed"),
    "only rows without image": (brset_table(("img06900", "1", "", "")), "none of its images"),
}


@pytest.mark.parametrize("case", BAD_BRSET)
def test_bad_brset(tmp_path, case):
    table, fragment = BAD_BRSET[case]
    write_images(tmp_path / "fundus_photos", "a.jpg")
    assert fragment in error_of("brset", write(tmp_path, labels_brset=table))


# ---- HAM10000

HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"


def test_ham10000_is_one_hot_and_groups_lesions(tmp_path, caplog):
    rows = "L1,I1,bkl,histo,80.0,male,scalp,a\nL2,I2,NV,,,,,b\nL1,I3,vasc,,,,,a\nL3,I4,,,,,,b\n"
    write(tmp_path, HAM10000_metadata=HAM_HEADER + ",dataset\n" + rows)
    write_images(tmp_path / "HAM10000_images_part_1", "I1.jpg", "I4.jpg")
    write_images(tmp_path / "ham10000_images_part_2", "I3.jpg", "I2.jpg")
    data = load("ham10000", data_dir=tmp_path, image_size=8)
    assert data.classes == ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    assert data.labels[:3].argmax(1).tolist() == [4, 1, 6] and (data.labels[:3].sum(1) == 1).all()
    assert np.isnan(data.labels[3]).all()
    assert data.groups[0] == data.groups[2] and len(set(data.groups.tolist())) == 3
    assert data.sites.tolist() == ["a", "b", "a", "b"]
    assert abs(int(data.images[3, 0, 0, 0]) - 10) < 4  # I4 is the second image of its folder
    assert "no image shows MEL, BCC, AKIEC, DF" in caplog.text


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ("L1,I1,nvv,,,,\n", "line 2, column 'dx': 'nvv' is no diagnosis of HAM10000, did you mean"),
        ("L1,I1,nv,,,,\nL1,I1,nv,,,,\n", "line 3: image 'images/I1.jpg' is already listed"),
        ("L1,I2,nv,,,,\n", "1 of 1 images cannot be used"),
    ],
)
def test_bad_ham10000(tmp_path, rows, fragment):
    write_images(tmp_path / "images", "I1.jpg")
    write(tmp_path, HAM10000_metadata=f"{HAM_HEADER}\n{rows}")
    assert fragment in error_of("ham10000", tmp_path)


# ---- ICH


def long_rows(image: str, *subtypes: str, leave_out: str = "") -> str:
    shown = {*subtypes, *(["any"] if subtypes else [])}
    names = [name for name in ich.COLUMNS if name != leave_out]
    return "".join(f"ID_{image}_{name},{int(name in shown)}\n" for name in names)


def test_ich_long_to_wide(tmp_path, caplog):
    rows = long_rows("b", "subdural", "epidural") + long_rows("a") + "\n\n"
    rows += long_rows("a") + long_rows("c", "subdural", leave_out="epidural")
    write(tmp_path, stage_2_train="ID,Label\n" + rows)
    write_images(tmp_path / "images", "ID_a.png", "ID_b.png", "ID_c.png")
    write(tmp_path, groups="f,patient_id\nID_b,p\nID_a,p\nID_c,q\n")
    data = load("ich", data_dir=tmp_path, image_size=8)
    assert data.files == ("ID_b", "ID_a", "ID_c") and data.classes == ich.CLASSES
    expected = [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [np.nan, 0, 0, 0, 1]]
    np.testing.assert_array_equal(data.labels, np.float32(expected))
    assert data.groups[0] == data.groups[1] != data.groups[2]
    assert "contradicts" not in caplog.text


def test_ich_any_is_compared(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    write(
        tmp_path, stage_1_train="ID,Label\n" + long_rows("a", "subdural").replace("any,1", "any,0")
    )
    labels_of("ich", tmp_path)
    assert "'any' contradicts the subtypes of 1 images" in caplog.text


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("image,Label\n", "line 1: expected the columns ID,Label"),
        ("ID,Label\n", "only a header"),
        ("", "line 1"),
        ("ID,Label\nID_a_epidural,1\n\nID_a_epidural,0\n", "line 2: a later row gives another"),
        ("ID,Label\nID_a_epidural,2\n", "line 2: 'ID_a_epidural,2' is not IMAGE_SUBTYPE,LABEL"),
        ("ID,Label\nID_a_lobar,1\n", "'ID_a_lobar,1'"),
        ("ID,Label\nepidural,1\n", "'epidural,1'"),
        ("ID,Label\nID_a_epidural\n", "'ID_a_epidural'"),
        ('ID,Label\n"ID_a_epidural,1\n', "cannot be read"),
    ],
)
def test_bad_ich(tmp_path, text, fragment):
    (tmp_path / "images").mkdir()
    assert fragment in error_of("ich", write(tmp_path, stage_2_train=text))


def test_ich_reads_a_long_file_fast(tmp_path):
    text = "".join(long_rows(f"{number:06x}", "subdural") for number in range(20_000))
    (tmp_path / "stage_2_train.csv").write_text("ID,Label\n" + text)
    begin = time.perf_counter()
    names, labels = ich.read_long(tmp_path / "stage_2_train.csv")
    assert time.perf_counter() - begin < 5  # 0.2 s; the official file is 38 times as long
    assert len(names) == 20_000 and labels[:, -1].all() and not labels[:, :-1].any()


# ---- ChestX-ray14

# As published in 2017: two names with a comma in them, unquoted, and a comma at the end.
CHEST_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
CHEST_ROW = "{},{},0,{},058Y,M,PA,2682,2749,0.143,0.143,\n"


def write_chest(folder: Path, *rows: tuple[str, str, str], **lists: str) -> Path:
    table = CHEST_2017 + "".join(CHEST_ROW.format(*row) for row in rows)
    return write(folder, Data_Entry_2017=table, **lists)


CHEST = (("1_0.png", "Hernia|Mass", "1"), ("1_1.png", "No Finding", "1"), ("2_0.png", "", "2"))


@pytest.mark.parametrize("folders", [("images", "images"), ("images_001/images", "images_012")])
def test_chestxray14_official_lists(tmp_path, caplog, folders):
    lists = {"train_val_list": "1_0.png\n1_1.png\n9_9.png\n", "test_list": "2_0.png\n"}
    write_chest(tmp_path, *CHEST, **lists)
    write_images(tmp_path / folders[0], "1_0.png", "2_0.png")
    write_images(tmp_path / folders[1], "1_1.png")
    data = load("chestxray14", data_dir=tmp_path, image_size=8)
    assert data.files == ("1_0.png", "1_1.png", "2_0.png")
    assert [data.classes[c] for c in np.flatnonzero(data.labels[0] == 1)] == ["Mass", "Hernia"]
    assert not data.labels[1].any() and np.isnan(data.labels[2]).all()
    assert data.part.tolist() == [TRAIN, TRAIN, TEST] and data.groups.tolist() == [0, 0, 1]
    assert "more than one of" not in caplog.text


def test_chestxray14_class_orders(tmp_path):
    write_chest(tmp_path, *CHEST)
    (tmp_path / "images").mkdir()
    official, sorted_ = (
        labels_of("chestxray14", tmp_path, class_order=order)
        for order in ("official", "alphabetical")
    )
    assert official.classes == chestxray14.CLASSES and official.classes[-1] == "Hernia"
    assert official.classes[2] == "Effusion" and sorted_.classes[2] == "Consolidation"
    assert sorted_.classes == tuple(sorted(chestxray14.CLASSES))
    for column, name in enumerate(sorted_.classes):
        other = official.labels[:, official.classes.index(name)]
        np.testing.assert_array_equal(sorted_.labels[:, column], other)
    assert "did you mean 'official'?" in error_of("chestxray14", tmp_path, class_order="offical")


def test_chestxray14_without_lists_is_unassigned(tmp_path, caplog):
    write_chest(tmp_path, *CHEST)
    (tmp_path / "images").mkdir()
    assert labels_of("chestxray14", tmp_path).part.tolist() == [UNASSIGNED] * 3
    assert "no train_val_list.txt or test_list.txt" in caplog.text


def test_chestxray14_reports_patients_in_both_lists(tmp_path, caplog):
    write_chest(tmp_path, *CHEST, train_val_list="1_0.png\n2_0.png", test_list="1_1.png")
    (tmp_path / "images").mkdir()
    labels_of("chestxray14", tmp_path)
    assert "1 patients have images in more than one" in caplog.text


BAD_CHEST = {
    "finding": (
        ("a", "Mas|Edema", "1"),
        {},
        "line 2, column 'Finding Labels': 'Mas' is no finding",
    ),
    "both": (("a", "No Finding|Mass", "1"), {}, "'No Finding' beside findings"),
    "one list": (("a", "Mass", "1"), {"test_list": "a\n"}, "only test_list.txt is there"),
    "in both": (("a", "Mass", "1"), {"test_list": "a\n", "train_val_list": "a\n"}, "in both lists"),
    "in none": (("a", "Mass", "1"), {"test_list": "b", "train_val_list": "c"}, "in neither list"),
}


@pytest.mark.parametrize("case", BAD_CHEST)
def test_bad_chestxray14(tmp_path, case):
    row, lists, fragment = BAD_CHEST[case]
    write_images(tmp_path / "images", "a.png")
    assert fragment in error_of("chestxray14", write_chest(tmp_path, row, **lists))


# ---- all of them


def test_dry_run_opens_no_image(tmp_path):
    write_chest(tmp_path, *CHEST)
    (tmp_path / "images").mkdir()
    for name, _, _ in CHEST:
        (tmp_path / "images" / name).write_bytes(b"not an image")
        (tmp_path / "images" / name).chmod(0)
    data = labels_of("chestxray14", tmp_path)
    assert data.image_key == "" and data.images.shape == (3, 64, 64, 3)
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("name", ["rfmid", "brset", "ham10000", "ich", "chestxray14"])
def test_readers_name_every_file_once(tmp_path, name):
    if name == "rfmid":
        write_rfmid(tmp_path)
    elif name == "brset":
        write(tmp_path, labels_brset=brset_table(("a", "1", "", ""), ("b", "1", "", "")))
        (tmp_path / "fundus_photos").mkdir()
    elif name == "ham10000":
        write(tmp_path, HAM10000_metadata=f"{HAM_HEADER}\nL1,I1,nv,,,,\nL1,I2,nv,,,,\n")
        (tmp_path / "images").mkdir()
    elif name == "ich":
        write(tmp_path, stage_2_train="ID,Label\n" + long_rows("a") + long_rows("b"))
        (tmp_path / "images").mkdir()
    else:
        write_chest(tmp_path, *CHEST)
        (tmp_path / "images").mkdir()
    listing = READERS[name](tmp_path)
    assert len(listing.files) == len(listing.names) == len(set(listing.files)) > 1
    assert listing.labels.dtype == np.float32 and len(listing.part) == len(listing.files)


def test_ham10000_folders_of_any_case(tmp_path):
    assert ham10000.FOLDERS[0] == "images"  # prepared data win over the parts of an archive
    write(tmp_path, HAM10000_metadata=f"{HAM_HEADER}\nL1,I1,nv,,,,\n")
    write_images(tmp_path / "HAM10000_images_part_1", "I1.jpg")
    write_images(tmp_path / "images", "I1.jpg")
    assert READERS["ham10000"](tmp_path).files == ["images/I1.jpg"]
