"""Label files: what is read, in which order, and what every mistake says."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import ROOT, SHARED, load, needs_shared

from utils_.datasets import DATASETS
from utils_.datasets.base import TEST, TRAIN, UNASSIGNED, VAL
from utils_.datasets.csv_layout import MURED_CLASSES, read_layout
from utils_.datasets.isic import CLASSES as ISIC_CLASSES
from utils_.errors import UserError


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (12, 10), (10 * number, 40, 90)).save(folder / name)


def write_layout(folder: Path, **files: str) -> Path:
    """Make a folder with images a, b, c, d (.png) and the CSV files given by stem."""
    write_images(folder / "images", "a.png", "b.png", "c.png", "d.png")
    for stem, text in files.items():
        (folder / f"{stem}.csv").write_bytes(text.encode())
    return folder


def labels_of(name: str, folder: Path, **options):
    return load(name, data_dir=folder, labels_only=True, **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def error_of(name: str, folder: Path | None, **options) -> str:
    """Return the message of the UserError of a full load; nothing may be left behind."""
    before = tree(folder) if folder else {}
    with pytest.raises(UserError) as caught:
        load(name, data_dir=folder, **options)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message
    assert (tree(folder) if folder else {}) == before
    return message


CELL_TEXTS = {0.0: ["0", "0.0", " 0 ", "0.00"], 1.0: ["1", "1.0", " 1", '"1"'], None: ["", " "]}


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(
        st.lists(st.sampled_from(list(CELL_TEXTS)), min_size=3, max_size=3), min_size=4, max_size=4
    ),
    choice=st.integers(0, 11),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
    blank_lines=st.booleans(),
)
def test_cells_survive_any_spelling(tmp_path_factory, cells, choice, end, bom, blank_lines):
    rows = ["Image Index,A,B b,é"]
    for name, row in zip("abcd", cells, strict=True):
        texts = [CELL_TEXTS[cell][choice % len(CELL_TEXTS[cell])] for cell in row]
        rows.append(",".join([name, *texts]))
        if blank_lines:
            rows += ["", ",,,"]
    folder = tmp_path_factory.mktemp("csv")
    (folder / "images").mkdir()
    text = end.join(rows) + end
    (folder / "train_data.csv").write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    data = labels_of("csv", folder)
    expected = np.array([[np.nan if c is None else c for c in row] for row in cells], np.float32)
    np.testing.assert_array_equal(data.labels, expected)
    assert data.labels.dtype == np.float32
    assert data.classes == ("A", "B b", "é")
    assert data.files == tuple("abcd")


def test_order_is_train_val_test_as_in_the_files(tmp_path):
    folder = write_layout(
        tmp_path,
        train_data="f,X,Y\nd.png,1,0\na.png,,1\n",
        val_data="f,X,Y\nc,0,0\n",
        test_data="other header,X,Y\nb.png,1,1\n",
    )
    data = load("csv", data_dir=folder, image_size=8, quiet=True)
    assert data.files == ("d.png", "a.png", "c", "b.png")
    assert data.part.tolist() == [TRAIN, TRAIN, VAL, TEST]
    assert data.part.dtype == np.uint8
    np.testing.assert_array_equal(data.labels, np.float32([[1, 0], [np.nan, 1], [0, 0], [1, 1]]))
    # write_images gives image number i the red value 10 i.
    assert data.images[:, 4, 4, 0].tolist() == [30, 0, 20, 10]
    assert data.groups is None and data.sites is None


def test_without_test_file_train_is_unassigned(tmp_path):
    folder = write_layout(tmp_path, train_data="f,X\na,1\nb,0\n", val_data="f,X\nc,1\n")
    assert labels_of("csv", folder).part.tolist() == [UNASSIGNED, UNASSIGNED, VAL]


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("x", "x.png"),
        ("x", "x.PNG"),
        ("x.PNG", "x.png"),
        ("x.jpg", "x.JPG"),
        ("x.jpeg", "x.JPEG"),
        ("x", "x.tif"),
        ("x.tiff", "x.tiff"),
        ("x", "x.Bmp"),
        ("scan.2.v3", "scan.2.v3.png"),
        ("ward 1/x", "ward 1/x.png"),
        ("7", "7.png"),
    ],
)
def test_names_with_and_without_extension(tmp_path, listed, on_disk):
    path = tmp_path / "images" / on_disk
    path.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9), (200, 0, 0)).save(path)
    (tmp_path / "train_data.csv").write_text(f"f,X\n{listed},1\n")
    data = load("csv", data_dir=tmp_path, image_size=8)
    assert data.files == (listed,)
    assert abs(int(data.images[0, 0, 0, 0]) - 200) < 3


def test_exact_name_wins_over_a_namesake(tmp_path):
    write_images(tmp_path / "images", "x.png", "x.jpg")
    (tmp_path / "train_data.csv").write_text("f,X\nx.jpg,1\nx.png,0\n")
    assert read_layout("csv", tmp_path).files == ["x.jpg", "x.png"]


def test_groups_and_sites(tmp_path, caplog):
    folder = write_layout(
        tmp_path,
        train_data="f,X\na,1\nb,0\nc,1\n",
        test_data="f,X\nd,1\n",
        groups="file,age,patient_id,site\nb.PNG,4,p1,north\na,5,p1,south\nd,6,,\nz,1,p9,north\n",
    )
    data = labels_of("csv", folder)
    assert data.groups.dtype == np.int64
    # p1 is another patient in the south; c has no row and d a blank patient: each somebody else.
    assert len(set(data.groups.tolist())) == 4
    assert data.sites.tolist() == ["south", "north", "unknown", "unknown"]
    assert "2 of 4 images have no patient_id" in caplog.text
    assert "2 of 4 images have no site" in caplog.text


def test_straddling_patient_is_reported_and_left_alone(tmp_path, caplog):
    folder = write_layout(
        tmp_path,
        train_data="f,X\na,1\nb,0\n",
        test_data="f,X\nc,1\nd,1\n",
        groups="f,patient_id\na,p\nb,q\nc,p\nd,r\n",
    )
    data = labels_of("csv", folder)
    assert data.part.tolist() == [TRAIN, TRAIN, TEST, TEST]
    assert "1 patients have images in more than one" in caplog.text


def test_class_without_positive_is_reported_and_kept(tmp_path, caplog):
    folder = write_layout(tmp_path, train_data="f,X,Y,Z\na,1,0,\nb,0,0,\n")
    assert labels_of("csv", folder).classes == ("X", "Y", "Z")
    assert "no image shows Y, Z" in caplog.text


def test_labels_only_opens_and_writes_nothing(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "train_data.csv").write_text("f,X\nnot-there,1\n")
    before = tree(tmp_path)
    data = labels_of("csv", tmp_path, image_size=16)
    assert data.images.shape == (1, 16, 16, 3) and data.image_key == ""
    assert tree(tmp_path) == before


def test_labels_change_neither_key_nor_cache(tmp_path, monkeypatch):
    folder = write_layout(tmp_path, train_data="f,X\na,1\nb,0\n")
    first = load("csv", data_dir=folder, image_size=8)
    (folder / "train_data.csv").write_text("f,X,Y\na,,1\nb,1,1\n")
    monkeypatch.setattr(
        "utils_.datasets.cache.images.decode_files", None
    )  # decoding again would fail
    second = load("csv", data_dir=folder, image_size=8)
    assert first.image_key == second.image_key
    np.testing.assert_array_equal(first.images, second.images)
    assert second.classes == ("X", "Y")


def test_skipped_image_leaves_every_array_aligned(tmp_path, caplog):
    folder = write_layout(
        tmp_path,
        train_data="f,X\na,1\nb,0\nc,1\n",
        test_data="f,X\nd,0\n",
        groups="f,patient_id,site\na,p,s1\nb,q,s2\nc,r,s3\nd,t,s4\n",
    )
    (folder / "images" / "b.png").write_bytes(b"not an image")
    data = load("csv", data_dir=folder, image_size=8, skip_bad_images=True)
    assert data.files == ("a", "c", "d")
    assert data.labels[:, 0].tolist() == [1, 1, 0]
    assert data.part.tolist() == [TRAIN, TRAIN, TEST]
    assert data.sites.tolist() == ["s1", "s3", "s4"]
    assert len(data.groups) == 3
    assert data.images[:, 0, 0, 0].tolist() == [0, 20, 30]
    assert "left out 1 of 4 images: b.png (broken, or not a PNG" in caplog.text


@pytest.mark.parametrize("text", ["2", "yes", "none", "?", "-2", "01", "0.5", "1e0", "True", "x y"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_wrong_cell_is_located(tmp_path, text, part):
    good = {"train": "a", "val": "b", "test": "c"}
    files = {f"{p}_data": f"f,One,Two\n{name},1,0\n" for p, name in good.items()}
    files[f"{part}_data"] += f"\nd,,{text}\n"  # after a blank line: line 4 of the file
    message = error_of("csv", write_layout(tmp_path, **files))
    assert message.startswith(str(tmp_path / f"{part}_data.csv"))
    assert "line 4, column 'Two'" in message
    assert f"'{text}'" in message


def test_wrong_cells_are_counted(tmp_path):
    folder = write_layout(tmp_path, train_data="f,X,Y\na,1,7\nb,8,9\nc,1,0\nd,0,1\n")
    assert "line 2, column 'Y': '7' is not a label (and 2 more" in error_of("csv", folder)


OK = "f,X,Y\na,1,0\n"
BAD_FILES = {
    "listed twice": (
        {"train_data": "f,X\na,1\nb,1\na,0\n"},
        "lines 2, 4: image 'a.png' is already",
    ),
    "listed twice, spelt differently": ({"train_data": "f,X\na,1\na.PNG,1\n"}, "already listed"),
    "listed in two files": (
        {"train_data": OK, "test_data": "f,X,Y\nb,1,1\na.png,1,1\n"},
        "test_data.csv, line 3: image 'a.png' is already listed in train_data.csv, line 2",
    ),
    "class twice": ({"train_data": "f,X,X\na,1,0\n"}, "column 'X' appears more than once"),
    "class lacking": ({"train_data": OK, "test_data": "f,X\nb,1\n"}, "test_data.csv: its classes"),
    "class renamed": ({"train_data": OK, "val_data": "f,X,Z\nb,1,1\n"}, "lacks 'Y' and has 'Z'"),
    "empty": ({"train_data": ""}, "the file is empty"),
    "blank lines only": ({"train_data": "\n\n , \n"}, "the file is empty"),
    "header only": ({"train_data": "f,X\n"}, "only a header"),
    "empty test file": ({"train_data": OK, "test_data": ""}, "test_data.csv: the file is empty"),
    "no class": ({"train_data": "f\na\nb\n"}, "only one column"),
    "short row": ({"train_data": "f,X,Y\na,1,0\nb,1\n"}, "line 3: 2 cells where the header has 3"),
    "long row": ({"train_data": "f,X,Y\na,1,0,1\n"}, "line 2: 4 cells where the header has 3"),
    "nameless column": ({"train_data": "f,X,\na,1,0\n"}, "column 3 has no name"),
    "nameless image": ({"train_data": "f,X\n,1\n"}, "line 2: no file name"),
    "open quote": ({"train_data": 'f,X\n"a,1\nb,0\n'}, "not valid CSV"),
    "line break in a class": ({"train_data": 'f,"X\nY"\na,1\n'}, "no ';' or line break"),
    "NUL": ({"train_data": "f,X\na,\0\n"}, "train_data.csv, line 2"),
    "leaves the folder": ({"train_data": "f,X\n../secret,1\n"}, "name images inside"),
    "absolute name": ({"train_data": "f,X\n/etc/passwd,1\n"}, "name images inside"),
    "no patient_id": ({"train_data": OK, "groups": "f,patient\na,p\n"}, "call it 'patient_id'"),
    "groups twice": ({"train_data": OK, "groups": "f,patient_id\na,p\na.png,q\n"}, "groups.csv"),
    "groups of others": ({"train_data": OK, "groups": "f,patient_id\nz,p\n"}, "names none"),
    "groups empty": ({"train_data": OK, "groups": ""}, "groups.csv: the file is empty"),
    "missing image": ({"train_data": "f,X\nnope,1\na,0\n"}, "1 of 2 images cannot be used: nope"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    files, fragment = BAD_FILES[case]
    assert fragment in error_of("csv", write_layout(tmp_path, **files))


def test_bytes_that_are_not_utf8(tmp_path):
    folder = write_layout(tmp_path)
    (folder / "train_data.csv").write_bytes("f,X\na,1\nb\x81,1\n".encode("latin-1"))
    assert "train_data.csv, line 3: byte 0x81" in error_of("csv", folder)
    (folder / "train_data.csv").write_bytes("f,X\na,1\n".encode("utf-16-le"))
    assert "UTF-16 without its mark" in error_of("csv", folder)


def test_folder_in_place_of_a_file(tmp_path):
    folder = write_layout(tmp_path)
    (folder / "train_data.csv").mkdir()
    assert "train_data.csv: cannot be read" in error_of("csv", folder)


def test_two_files_fit_a_name_without_extension(tmp_path):
    folder = write_layout(tmp_path, train_data=OK)
    write_images(folder / "images", "a.jpg")
    assert "holds a.jpg and a.png" in error_of("csv", folder)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"synthetic"}))
def test_absent_data_say_what_to_do(tmp_path, name):
    message = error_of(name, tmp_path / "nowhere")
    for part in (
        "is absent; expected",
        "data/README.md",
        "--data-dir",
        "python src/main_fednml.py",
    ):
        assert part in message
    section = re.search(r"section (\w+)\)", message)[1]
    readme = (ROOT / "data/README.md").read_text()
    assert f"\n## {section}\n" in readme and f"| {name} |" in readme.replace("`", "").replace(
        f"[{name}](#{name})", name
    )


def test_csv_needs_a_folder():
    message = error_of("csv", None)
    assert "--data-dir" in message and "python src/main_fednml.py" in message


@pytest.mark.parametrize("labels_only", [True, False])
def test_synthetic_needs_no_file(tmp_path, labels_only):
    data = load(
        "synthetic",
        data_dir=tmp_path,
        image_size=16,
        data_seed=3,
        train_images=50,
        test_images=20,
        labels_only=labels_only,
    )
    assert data.images.shape == (70, 16, 16, 3) and data.classes == MURED_CLASSES
    assert np.bincount(data.part).tolist() == [50, 0, 20]
    assert bool(data.image_key) == bool(tree(tmp_path)) == (not labels_only)


def test_unknown_names_and_values(tmp_path):
    assert "did you mean 'mured'?" in error_of("murd", tmp_path)
    assert "did you mean 'pad'?" in error_of("csv", tmp_path, fit="pads")
    assert "--image-size" in error_of("csv", tmp_path, image_size=0)


def mured_file(*names: str, classes=MURED_CLASSES) -> str:
    cells = ",".join("1" if number == 0 else "0" for number in range(len(classes)))
    return "ID," + ",".join(classes) + "\n" + "".join(f"{name},{cells}\n" for name in names)


def test_mured_val_file_is_its_test_set(tmp_path):
    folder = write_layout(tmp_path, train_data=mured_file("a"), val_data=mured_file("b"))
    assert labels_of("mured", folder).part.tolist() == [TRAIN, TEST]
    (folder / "test_data.csv").write_text(mured_file("c"))
    data = labels_of("mured", folder)
    assert data.part.tolist() == [TRAIN, VAL, TEST] and data.classes == MURED_CLASSES


def test_mured_and_odir_know_their_classes(tmp_path):
    folder = write_layout(tmp_path, train_data=mured_file("a", classes=MURED_CLASSES[:-1]))
    assert "OTHER of mured are absent; for other classes use --dataset csv" in error_of(
        "mured", folder
    )
    renamed = ("DRR", *MURED_CLASSES[1:])
    (folder / "train_data.csv").write_text(mured_file("a", classes=renamed))
    assert "'DRR' is no class of mured, did you mean 'DR'?" in error_of("mured", folder)
    (folder / "train_data.csv").write_text("f,M,N,D,G,C,A,H,O\na,1,0,0,0,0,0,0,0\n")
    assert labels_of("odir", folder).classes == ("M", "N", "D", "G", "C", "A", "H", "O")


ISIC_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
NV = "0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0"


def write_isic(folder: Path, truth: str, metadata: str, *images: str) -> Path:
    write_images(folder / "ISIC_2019_Training_Input", *images)
    (folder / "ISIC_2019_Training_GroundTruth.csv").write_text(truth)
    (folder / "ISIC_2019_Training_Metadata.csv").write_text(metadata)
    return folder


def test_isic_official_layout(tmp_path, caplog):
    folder = write_isic(
        tmp_path,
        f"{ISIC_HEADER}\nI1,{NV}\nI2_downsampled,{NV}\nI3,{NV}\nI4,0,0,0,0,0,0,0,0,1\nI5,1,1,,,,,,,\n",
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "I5,,,L1,\nI1,1.0,trunk,L1,male\nI2,,,,\nI3,,,,\nI4,,,L7,\n",
        *("I1.jpg", "I2_downsampled.jpg", "I3_downsampled.jpg", "I4.jpg", "I5.JPG"),
    )
    data = load("isic", data_dir=folder, image_size=8)
    assert data.files == ("I1", "I2_downsampled", "I3", "I5")
    assert data.classes == ISIC_CLASSES and len(data.images) == 4
    assert data.labels[:3, 1].tolist() == [1, 1, 1]
    # A row that is not one-hot is taken as it is, blanks included.
    assert data.labels[3, :2].tolist() == [1, 1] and np.isnan(data.labels[3, 2:]).all()
    assert data.part.tolist() == [UNASSIGNED] * 4 and data.sites is None
    # I1 and I5 are one lesion; the two blank ones are two.
    assert data.groups[0] == data.groups[3] and len(set(data.groups.tolist())) == 3
    assert "left out 1 images of class UNK: I4" in caplog.text
    assert "no image shows BCC, AK, BKL, DF, VASC, SCC" in caplog.text


def test_isic_columns_in_any_order_and_without_unk(tmp_path):
    folder = write_isic(
        tmp_path,
        "image,SCC,MEL,NV,BCC,AK,BKL,DF,VASC\nI1,1,0,0,0,0,0,0,0\n",
        "image,center,lesion_id\nI1,vienna,L1\n",
        "I1.jpg",
    )
    data = labels_of("isic", folder)
    assert data.classes == ISIC_CLASSES and data.labels[0].tolist() == [0] * 7 + [1]
    assert data.sites.tolist() == ["vienna"]


META = "image,lesion_id\nI1,L1\n"
BAD_ISIC = {
    "two": (f"{ISIC_HEADER}\nI1,2,0,0,0,0,0,0,0,0\n", META, "line 2, column 'MEL': '2'"),
    "UNK text": (f"{ISIC_HEADER}\nI1,0,1,0,0,0,0,0,0,no\n", META, "column 'UNK': 'no'"),
    "only UNK": (f"{ISIC_HEADER}\nI1,0,0,0,0,0,0,0,0,1\n", META, "every image is UNK"),
    "no SCC": ("image,MEL,NV,BCC,AK,BKL,DF,VASC\nI1,0,1,0,0,0,0,0\n", META, "columns SCC are"),
    "AKIEC": (f"{ISIC_HEADER},AKIEC\nI1,{NV},0\n", META, "'AKIEC' is no class of ISIC 2019"),
    "no lesion_id": (f"{ISIC_HEADER}\nI1,{NV}\n", "image,lesion\nI1,L\n", "no column 'lesion_id'"),
    "other images": (f"{ISIC_HEADER}\nI1,{NV}\n", "image,lesion_id\nI2,L\n", "names none"),
    "twice": (f"{ISIC_HEADER}\nI1,{NV}\nI1_downsampled,{NV}\n", META, "already listed"),
    "metadata twice": (f"{ISIC_HEADER}\nI1,{NV}\n", META + "I1,L2\n", "Metadata.csv, line 3"),
    "missing": (f"{ISIC_HEADER}\nI2,{NV}\nI1,{NV}\n", META, "1 of 2 images cannot be used: I2.jpg"),
}


@pytest.mark.parametrize("case", BAD_ISIC)
def test_bad_isic(tmp_path, case):
    truth, metadata, fragment = BAD_ISIC[case]
    assert fragment in error_of("isic", write_isic(tmp_path, truth, metadata, "I1.jpg"))


@needs_shared
def test_real_isic(caplog):
    import pandas

    folder = SHARED / "data/isic"
    data = labels_of("isic", folder)
    truth = pandas.read_csv(folder / "ISIC_2019_Training_GroundTruth.csv")
    metadata = pandas.read_csv(folder / "ISIC_2019_Training_Metadata.csv").set_index("image")
    np.testing.assert_array_equal(data.labels, truth[list(ISIC_CLASSES)].to_numpy(np.float32))
    assert data.files == tuple(truth["image"])
    lesions = metadata.loc[truth["image"], "lesion_id"]
    np.testing.assert_array_equal(data.groups, np.unique(lesions, return_inverse=True)[1])
    assert len(data.labels) == 10_015 and len(set(data.groups.tolist())) == 7_470
    assert data.sites.tolist() == metadata.loc[truth["image"], "center"].tolist()
    assert (data.labels == 1).any() and not caplog.text  # every class has images, no id is blank


@needs_shared
def test_real_odir(caplog):
    data = labels_of("odir", SHARED / "data/odir")
    assert [(data.part == part).sum() for part in (TRAIN, VAL, TEST)] == [4_867, 0, 1_217]
    assert data.classes == ("N", "D", "G", "C", "A", "H", "M", "O")
    train = set(data.groups[data.part == TRAIN].tolist())
    assert not train & set(data.groups[data.part == TEST].tolist())
    assert not caplog.text  # neither straddling patients nor blanks


@needs_shared
def test_real_images_load(tmp_path):
    """Forty real images through the whole path, against Pillow's own fit."""
    source = SHARED / "data/odir"
    rows = (source / "train_data.csv").read_text().splitlines()[:41]
    (tmp_path / "images").mkdir()
    for row in rows[1:]:
        name = row.split(",")[0]
        shutil.copy(source / "images" / name, tmp_path / "images" / name)
    (tmp_path / "train_data.csv").write_text("\n".join(rows))
    logging.getLogger("fednml").setLevel(logging.ERROR)
    data = load("csv", data_dir=tmp_path, image_size=64)
    logging.getLogger("fednml").setLevel(logging.NOTSET)
    for image, name in zip(data.images, data.files, strict=True):
        with Image.open(tmp_path / "images" / name) as original:
            expected = original.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        # JPEG reduced while decoding differs a little from reducing afterwards.
        assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 2
