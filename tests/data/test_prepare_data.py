"""Archives that mean harm, and whole preparations from them or from a local server."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_datasets_medmnist import make_arrays
from test_datasets_official import CHEST, RFMID, brset_table, write_chest
from tiny import ROOT, load
from web_server import Site

from scripts import prepare_data
from utils_ import datasets
from utils_.datasets.fetch import archives, dicom, recipes
from utils_.datasets.fetch.archives import Pick, extract
from utils_.datasets.fetch.download import Source, fetch
from utils_.errors import UserError

DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def site():
    with Site() as site:
        yield site


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---- archives


def make_zip(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


PNGS = (Pick(r"([^/]+\.png)", r"images/\1"),)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_only_wanted_files_come_out(tmp_path, make):
    files = {"x/1.png": b"one", "x/y/2.PNG": b"two", "x/read.me": b"no", "x/._1.png": b"mac"}
    path = make(tmp_path / "a.zip", files | {"__MACOSX/x/3.png": b"mac"})
    assert extract(path, tmp_path / "out", PNGS) == ["images/1.png", "images/2.PNG"]
    assert (tmp_path / "out/images/1.png").read_bytes() == b"one"
    assert names(tmp_path / "out") == ["images", "images/1.png", "images/2.PNG"]


BAD_NAMES = ["../1.png", "x/../../1.png", "/1.png", "C:/1.png", "..\\1.png", "x\\..\\1.png"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_lead_out_are_refused(tmp_path, make, name):
    path = make(tmp_path / "a.zip", {"good.png": b"one", name: b"bad"})
    with pytest.raises(UserError, match="leads out of the folder; refused"):
        extract(path, tmp_path / "out", PNGS)
    left = names(tmp_path / "out")
    assert "1.png" not in " ".join(names(tmp_path)) and not [n for n in left if "tmp" in n]
    if make is make_zip:
        assert left == []  # all names are looked at before the first file


def test_links_are_refused(tmp_path):
    entry = zipfile.ZipInfo("1.png")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link)
    for path in (tmp_path / "a.zip", tmp_path / "a.tar"):
        with pytest.raises(UserError, match=r"is a link.*refused"):
            extract(path, tmp_path / "out", PNGS)


def test_damage_is_noticed_and_what_is_whole_is_kept(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": b"one" * 1000, "2.png": DATA[:5000]})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.getinfo("2.png").header_offset + 2500] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match="a damaged archive"):
        extract(path, tmp_path / "out", PNGS)
    assert names(tmp_path / "out") == ["images", "images/1.png"]
    for cut in (10, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="not a whole"):
            extract(path, tmp_path / "out", PNGS)
    whole = make_tar(tmp_path / "a.tar.gz", {"1.png": DATA}).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged|not a whole"):
        extract(tmp_path / "a.tar.gz", tmp_path / "other", PNGS)
    assert not list((tmp_path / "other").rglob("*.png"))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_repeated_call_keeps_what_is_there(tmp_path, make):
    path = make(tmp_path / "a.zip", {"1.png": b"one", "2.png": b"two"})
    extract(path, tmp_path / "out", PNGS)
    kept = tmp_path / "out/images/1.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out/images/2.png").write_bytes(b"cut o")
    extract(path, tmp_path / "out", PNGS)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "out/images/2.png").read_bytes() == b"two"


def test_same_length_but_other_bytes_are_replaced(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": b"one"})
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/1.png").write_bytes(b"two")
    extract(path, tmp_path / "out", PNGS)
    assert (tmp_path / "out/images/1.png").read_bytes() == b"one"


def test_archives_in_archives(tmp_path):
    inner = make_zip(tmp_path / "i.zip", {"p/1.png": b"one"}).read_bytes()
    bad = make_zip(tmp_path / "b.zip", {"../1.png": b"one"}).read_bytes()
    path = make_zip(tmp_path / "a.zip", {"part.zip": inner, "2.png": b"two"})
    assert extract(path, tmp_path / "out", PNGS) == ["images/1.png", "images/2.png"]
    assert names(tmp_path / "out") == ["images", "images/1.png", "images/2.png"]
    with pytest.raises(UserError, match="leads out"):
        extract(make_zip(tmp_path / "a.zip", {"part.zip": bad}), tmp_path / "other", PNGS)
    assert names(tmp_path / "other") == []


def test_an_encrypted_archive_is_one_line(tmp_path):
    """As some registries send them; unpacked by hand it can be read from a folder."""
    path = make_zip(tmp_path / "a.zip", {"1.png": b"one"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        extract(path, tmp_path / "out", PNGS)


def test_two_files_for_one_place(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x/1.png": b"one", "y/1.png": b"two"})
    with pytest.raises(UserError, match=r"'x/1.png' and 'y/1.png' are both images/1.png"):
        extract(path, tmp_path / "out", PNGS)


def test_space_for_the_files_is_looked_at_first(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"1.png": b"0" * 3_000_000, "no.txt": b"0" * 9_000_000})
    usage = types.SimpleNamespace(free=archives.SPARE_BYTES + 2_999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"3.0 MB needed"):
        extract(path, tmp_path / "out", PNGS)
    assert names(tmp_path / "out") == []


def test_encrypted_and_absent_archives(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": b"one"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        extract(path, tmp_path / "out", PNGS)
    with pytest.raises(UserError, match="no such file"):
        extract(tmp_path / "nowhere.zip", tmp_path / "out", PNGS)
    with pytest.raises(UserError, match=str(tmp_path)):
        extract(tmp_path, tmp_path / "out", PNGS)


# ---- whole data sets


def picture(level: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (level, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def prepare(*arguments: object) -> int:
    return prepare_data.main([*map(str, arguments), "--quiet"])


MURED_HEADER = "ID," + ",".join(datasets.csv_layout.MURED_CLASSES) + "\n"
ARCHIVES = {
    "mured": {
        "images/images/a.png": picture(),
        "images/images/b.tif": picture(kind="TIFF"),
        "train_data.csv": MURED_HEADER + "a" + ",0" * 20 + "\n",
        "val_data.csv": MURED_HEADER + "b" + ",0" * 20 + "\n",
    },
    "rfmid": {f"Training_Set/Training/{n}.png": picture(n) for n in (1, 2, 3)}
    | {"Evaluation_Set/Evaluation_Set/Validation/1.png": picture()}
    | {f"A/1. Original Images/c. Testing Set/{n}.png": picture() for n in (1, 2)}
    | {
        "A/2. Groundtruths/a. RFMiD_Training_Labels.csv": RFMID["RFMiD_Training_Labels"],
        "Evaluation_Set/RFMiD_Validation_Labels.csv": RFMID["RFMiD_Validation_Labels"],
        "Test_Set/RFMiD_Testing_Labels.csv": RFMID["RFMiD_Testing_Labels"],
    },
    "brset": {
        "1.0.1/labels_brset.csv": brset_table(("img00001", "1", "x", "scar")),
        "1.0.1/fundus_photos/img00001.jpg": picture(kind="JPEG"),
    },
    "ham10000": {
        "HAM10000_metadata": "lesion_id,image_id,dx\nL,ISIC_0000001,nv\nL,ISIC_0000002,df\n",
        "HAM10000_images_part_1/ISIC_0000001.jpg": picture(kind="JPEG"),
        "ISIC_0000002.jpg": picture(kind="JPEG"),
    },
    "odir": {
        "x/images/a.jpg": picture(kind="JPEG"),
        "x/train_data.csv": "f,N,D,G,C,A,H,M,O\na,1,0,0,0,0,0,0,0\n",
        "x/groups.csv": "f,patient_id\na,1\n",
    },
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_by_hand(tmp_path, capsys, name):
    path, folder = make_zip(tmp_path / "a.zip", ARCHIVES[name]), tmp_path / "data"
    assert prepare(name, "--data-dir", folder, "--from-zip", path) == 0
    out = capsys.readouterr().out
    assert f"check_data.py {name}" in out and "images" in out and "licence:" in out
    assert path.exists() and not [n for n in names(folder) if n.startswith(".")]
    loaded = load(name, data_dir=folder, image_size=8, quiet=True)
    assert len(loaded.files) == len(set(loaded.files)) >= 1
    assert prepare(name, "--data-dir", folder) == 0
    assert f"{name}: complete" in capsys.readouterr().out


def test_chestxray14_from_parts_and_tables(tmp_path):
    rows = [("0000000" + name[:1] + "_00" + name[2:], *rest) for name, *rest in CHEST]
    parts = [
        make_tar(tmp_path / f"images_00{i}.tar.gz", {f"images/{row[0]}": picture(i)})
        for i, row in enumerate(rows)
    ]
    write_chest(tmp_path, *rows, train_val_list="00000001_000.png\n00000001_001.png\n")
    write_chest(tmp_path, *rows, test_list="00000002_000.png\n")
    tables = ["Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"]
    given = [*parts, *(tmp_path / name for name in tables)]
    folder = tmp_path / "data"
    assert prepare("chestxray14", "--data-dir", folder, "--from-zip", *given) == 0
    assert len(load("chestxray14", data_dir=folder, image_size=8).files) == 3


@pytest.fixture
def open_recipes(site, monkeypatch):
    """ISIC, HAM10000 and MedMNIST as the local server has them."""
    monkeypatch.setattr(recipes, "ISIC_URL", site.url + "/")
    for name in ("isic", "ham10000"):
        old = recipes.RECIPES[name]
        moved = tuple(Source(f"{site.url}/{source.name}", source.name) for source in old.sources)
        new = types.SimpleNamespace(**vars(old) | {"sources": moved})
        monkeypatch.setitem(recipes.RECIPES, name, new)
    monkeypatch.setattr(
        prepare_data, "fetch", lambda source, folder, **o: fetch(source, folder, pause=0, **o)
    )
    return site


def serve(site: Site, tmp_path: Path, **archives: dict | str | bytes) -> None:
    for name, content in archives.items():
        if isinstance(content, dict):
            content = make_zip(tmp_path / "served", content).read_bytes()
        site.files["/" + name] = content.encode() if isinstance(content, str) else content


ISIC_HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
ISIC = {
    "ISIC_2019_Training_GroundTruth.csv": ISIC_HEADER + "I1,1,0,0,0,0,0,0,0,0\n",
    "ISIC_2019_Training_Metadata.csv": "image,lesion_id\nI1,L\n",
    "ISIC_2019_Training_Input.zip": {"ISIC_2019_Training_Input/I1.jpg": picture(kind="JPEG")},
}


def test_isic_is_downloaded_unpacked_and_cleaned_up(open_recipes, tmp_path, capsys):
    serve(open_recipes, tmp_path, **ISIC)
    open_recipes.faults = ["break", "ok", "500", "break"]
    folder = tmp_path / "data"
    assert prepare("isic", "--data-dir", folder) == 0
    assert "sha256" in capsys.readouterr().out
    assert names(folder) == [
        "ISIC_2019_Training_GroundTruth.csv",
        "ISIC_2019_Training_Input",
        "ISIC_2019_Training_Input/I1.jpg",
        "ISIC_2019_Training_Metadata.csv",
    ]
    open_recipes.asked.clear()
    assert prepare("isic", "--data-dir", folder) == 0 and not open_recipes.asked


def test_archives_are_kept_on_request_and_when_something_lacks(open_recipes, tmp_path, capsys):
    serve(open_recipes, tmp_path, **ISIC)
    table = ISIC["ISIC_2019_Training_GroundTruth.csv"]
    serve(
        open_recipes,
        tmp_path,
        **{
            "ISIC_2019_Training_GroundTruth.csv": table
            + table[len(ISIC_HEADER) :].replace("1", "2", 1)
        },
    )
    folder = tmp_path / "data"
    assert prepare("isic", "--data-dir", folder) == 2
    assert "1 of 2 images are absent, first I2.jpg" in capsys.readouterr().err
    assert len(names(folder / ".downloads")) == 3
    open_recipes.asked.clear()
    extra = make_zip(tmp_path / "b.zip", {"ISIC_2019_Training_Input/I2.jpg": picture(kind="JPEG")})
    assert prepare("isic", "--data-dir", folder, "--from-zip", extra) == 0
    assert not open_recipes.asked


def test_ham10000_from_the_challenge(open_recipes, tmp_path):
    serve(
        open_recipes,
        tmp_path,
        **{
            "ISIC2018_Task3_Training_LesionGroupings.csv": "image,lesion_id,confirmed\n"
            "ISIC_0000002,L1,histo\nISIC_0000001,L1,\n",
            "ISIC2018_Task3_Training_GroundTruth.zip": {
                "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": (
                    "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
                    "ISIC_0000001,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_0000002,0,0,0,1,0,0,0\n"
                ),
            },
            "ISIC2018_Task3_Training_Input.zip": {
                f"ISIC2018_Task3_Training_Input/ISIC_000000{n}.jpg": picture(kind="JPEG")
                for n in (1, 2)
            },
        },
    )
    folder = tmp_path / "data"
    assert prepare("ham10000", "--data-dir", folder) == 0
    data = load("ham10000", data_dir=folder, image_size=8)
    assert data.files == ("ISIC_0000001", "ISIC_0000002")
    assert data.labels.argmax(1).tolist() == [1, 3] and data.groups[0] == data.groups[1]
    assert [name for name in names(folder) if not name.startswith(".cache")] == [
        "HAM10000_metadata.csv",
        "images",
        "images/ISIC_0000001.jpg",
        "images/ISIC_0000002.jpg",
    ]


def medmnist_package(monkeypatch, site: Site, data: bytes, md5: str | None = None) -> None:
    site.files["/bloodmnist_64.npz"] = data
    info = {
        "url_64": site.url + "/bloodmnist_64.npz?download=1",
        "MD5_64": md5 or hashlib.md5(data).hexdigest(),
    }
    site.files["/bloodmnist_64.npz?download=1"] = data
    package = types.SimpleNamespace(INFO={"bloodmnist": info})
    monkeypatch.setitem(sys.modules, "medmnist", package)


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **make_arrays("bloodmnist", size=64))
    return buffer.getvalue()


def test_medmnist_through_the_package(open_recipes, tmp_path, monkeypatch, capsys):
    medmnist_package(monkeypatch, open_recipes, npz_bytes())
    open_recipes.faults = ["break"]
    assert prepare("bloodmnist", "--data-dir", tmp_path, "--size", 64) == 0
    assert names(tmp_path) == ["bloodmnist_64.npz"]
    assert "10 images, 8 classes" in capsys.readouterr().out


def test_medmnist_with_a_wrong_checksum(open_recipes, tmp_path, monkeypatch, capsys):
    medmnist_package(monkeypatch, open_recipes, npz_bytes(), md5="00")
    assert prepare("bloodmnist", "--data-dir", tmp_path, "--size", 64) == 2
    assert "where 00 is expected" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npz"))


def test_medmnist_without_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    assert prepare("bloodmnist", "--data-dir", tmp_path / "d") == 2
    assert "pip install medmnist" in capsys.readouterr().err and names(tmp_path) == []
    (tmp_path / "bloodmnist_64.npz").write_bytes(npz_bytes())
    file = tmp_path / "bloodmnist_64.npz"
    assert prepare("bloodmnist", "--data-dir", tmp_path / "d", "--from-zip", file) == 0
    assert names(tmp_path / "d") == ["bloodmnist_64.npz"]


def test_addresses_of_the_package_are_used():
    package = pytest.importorskip("medmnist", reason="the optional package is absent")
    for name in datasets.SETS:
        for size in datasets.medmnist.SIZES:
            (source,) = recipes.recipe_of(name, data_dir=Path(), size=size).sources
            assert source.name in source.url and len(source.checksum) == len("md5:") + 32
    assert package.INFO["chestmnist"]["MD5"] in str(recipes._medmnist("chestmnist", 28))


# ---- ICH


def test_windows():
    image = dicom.window(np.array([[-1000, 0, 40, 80, 3000]], np.float32))
    assert image.dtype == np.uint8 and image.shape == (1, 5, 3)
    assert image[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # brain: 0 to 80
    assert image[0, :, 1].tolist() == [0, 26, 76, 128, 255]  # subdural: -20 to 180
    assert image[0, 0, 2] == 0 and image[0, 4, 2] == 255  # bone: -800 to 2000


class FakeSlice:
    RescaleSlope, RescaleIntercept, PatientID = "1", "-1024", "ID_p"

    def __init__(self, data: bytes) -> None:
        if data == b"broken":
            raise ValueError("no pixels")
        self.pixel_array = np.full((6, 6), 1064, np.int16)


@pytest.fixture
def fake_pydicom(monkeypatch):
    package = types.SimpleNamespace(dcmread=lambda file: FakeSlice(file.read()))
    monkeypatch.setitem(sys.modules, "pydicom", package)


LONG = "ID,Label\n" + "".join(
    f"ID_{image}_{name},0\n" for image in "ab" for name in datasets.ich.COLUMNS
)


def test_ich_is_converted_with_patients(fake_pydicom, tmp_path, caplog):
    slices = {f"rsna/stage_2_train/ID_{name}.dcm": b"slice" for name in "ab"}
    files = {"rsna/stage_2_train.csv": LONG, "rsna/stage_2_test/ID_z.dcm": b"not wanted"} | slices
    path, folder = make_zip(tmp_path / "a.zip", files), tmp_path / "data"
    assert prepare("ich", "--data-dir", folder, "--from-zip", path) == 0
    data = load("ich", data_dir=folder, image_size=8, quiet=True)
    assert data.files == ("ID_a", "ID_b") and data.groups[0] == data.groups[1]
    assert abs(int(data.images[0, 4, 4, 0]) - 128) <= 1
    groups = (folder / "groups.csv").read_text()
    # Repeated, after a broken-off run: nothing is converted twice, no patient is lost.
    fresh = dicom.IchConverter(folder / ".patients.csv")
    assert prepare("ich", "--data-dir", folder, "--from-zip", path) == 0
    assert (folder / "groups.csv").read_text() == groups and fresh.notes.exists()


def test_ich_slice_that_cannot_be_read_is_left_out(fake_pydicom, tmp_path, capsys, caplog):
    files = {"stage_2_train.csv": LONG, "stage_2_train/ID_a.dcm": b"broken"}
    files["stage_2_train/ID_b.dcm"] = b"slice"
    path = make_zip(tmp_path / "a.zip", files)
    assert prepare("ich", "--data-dir", tmp_path / "data", "--from-zip", path) == 2
    assert "1 of 2 images are absent, first ID_a.png" in capsys.readouterr().err
    assert "left out, not a readable DICOM slice" in caplog.text


def test_ich_needs_pydicom(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    path = make_zip(tmp_path / "a.zip", {"stage_2_train/ID_a.dcm": b"slice"})
    assert prepare("ich", "--data-dir", tmp_path / "data", "--from-zip", path) == 2
    assert "pip install pydicom" in capsys.readouterr().err
    assert names(tmp_path / "data") == ["images"]


def test_real_dicom(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the optional package is absent")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    slice_ = pydicom.dataset.FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.Rows = slice_.Columns = 4
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit, slice_.PixelRepresentation, slice_.SamplesPerPixel = 15, 1, 1
    slice_.PhotometricInterpretation, slice_.PatientID = "MONOCHROME2", "ID_p"
    slice_.RescaleSlope, slice_.RescaleIntercept = "1", "-1024"
    slice_.PixelData = np.full((4, 4), 1064, np.int16).tobytes()
    buffer = io.BytesIO()
    slice_.save_as(buffer, enforce_file_format=True)
    png = dicom.IchConverter(tmp_path / "notes")("s/ID_a.dcm", buffer.getvalue())
    assert np.asarray(Image.open(io.BytesIO(png)))[0, 0, 0] == 128
    assert (tmp_path / "notes").read_text().strip() == "ID_a,ID_p"


# ---- command line


@pytest.mark.parametrize("name", ["mured", "odir", "rfmid", "brset", "ich", "chestxray14"])
def test_steps_where_a_person_must(tmp_path, capsys, name):
    assert prepare(name, "--data-dir", tmp_path / "d") == 2
    message = capsys.readouterr().err
    assert "1. " in message and "https://" in message and "--from-zip" in message
    assert "licence:" in message and f"section {name}" in message
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["rfmidd"], "did you mean 'rfmid'?"),
        (["synthetic"], "nothing to prepare"),
        (["isic", "--size", "64"], "--size 64: only the sets of MedMNIST"),
        (["bloodmnist", "--size", "63"], "--size 63: MedMNIST has 28, 64, 128, 224"),
        (["isic", "--nonsense"], "--nonsense"),
        ([], "NAME"),
        (["mured", "--from-zip", "nowhere.zip"], "nowhere.zip: there is no such file"),
    ],
)
def test_bad_command_lines(tmp_path, capsys, arguments, fragment):
    place = ["--data-dir", tmp_path / "d"] if arguments else []
    assert prepare(*arguments, *place) == 2
    message = capsys.readouterr().err
    assert fragment in message and message.count("\n") == 1


def test_archive_of_something_else(tmp_path, capsys):
    path = make_zip(tmp_path / "a.zip", {"cat.gif": b""})
    assert prepare("rfmid", "--data-dir", tmp_path / "d", "--from-zip", path) == 2
    assert "holds nothing of rfmid" in capsys.readouterr().err


def test_runs_as_a_script(tmp_path):
    script = [sys.executable, str(ROOT / "scripts/prepare_data.py")]
    done = subprocess.run(
        [*script, "isic", "--size", "3"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("prepare_data: --size 3")
    assert names(tmp_path) == []
