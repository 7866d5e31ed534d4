"""How each data set comes to its folder: what may be downloaded, and the steps where a person must.

URLs stand here only for what is open to everybody. The archives of ISIC are the ones its challenge
page links to; it publishes no checksums. Those of MedMNIST and their MD5 come from its package.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils_.datasets.fetch.archives import Pick
from utils_.datasets.fetch.dicom import IchConverter
from utils_.datasets.fetch.download import Source
from utils_.datasets.medmnist import SETS, SIZES, file_name
from utils_.errors import UserError
from utils_.files import atomic_path

ISIC_URL = "https://isic-challenge-data.s3.amazonaws.com/"
IMAGE = r"([^/]+\.(?:png|jpe?g|tiff?|bmp))"
CSV_LAYOUT = (
    Pick(r"((?:train|val|test)_data|groups)\.csv", r"\1.csv"),
    Pick(rf"images/(?:images/)?{IMAGE}", r"images/\1"),
)
PACKAGE = "MedMNIST needs its package for the addresses and checksums: pip install medmnist"


@dataclass(frozen=True)
class Recipe:
    """One data set.

    Attributes:
        licence: what may be done with it.
        steps: what a person does, one step a line; of data that are downloaded, how to do it by
            hand.
        rules: which files of the archives go where.
        sources: what is downloaded; empty where registration is needed.
        finish: turns what the archives hold into the expected layout.
    """

    licence: str
    steps: tuple[str, ...]
    rules: tuple[Pick, ...]
    sources: tuple[Source, ...] = ()
    finish: Callable[[Path], None] = lambda folder: None


def recipe_of(name: str, *, data_dir: Path, size: int | None) -> Recipe:
    """Return the recipe of a data set.

    Args:
        name: a data set of files, or a set of MedMNIST.
        data_dir: its folder, where a conversion that is broken off keeps what it knows.
        size: pixels of the images, of MedMNIST alone.

    Raises:
        UserError: nothing to prepare under this name, or no such size.
    """
    if size is not None and name not in SETS:
        raise UserError(f"--size {size}: only the sets of MedMNIST come in several sizes; omit it")
    if name in SETS:
        return _medmnist(name, size or 64)
    if name == "ich":
        return _ich(data_dir)
    if name not in RECIPES:
        raise UserError(f"{name}: there is nothing to prepare; see data/README.md, section {name}")
    return RECIPES[name]


def _medmnist(name: str, size: int) -> Recipe:
    if size not in SIZES:
        raise UserError(f"--size {size}: MedMNIST has {', '.join(map(str, SIZES))}")
    file = file_name(name, size)
    try:
        from medmnist import INFO
    except ImportError:
        sources: tuple[Source, ...] = ()
    else:
        suffix = "" if size == SIZES[0] else f"_{size}"
        url, md5 = INFO[name][f"url{suffix}"], INFO[name][f"MD5{suffix}"]
        sources = (Source(url, file, checksum=f"md5:{md5}"),)
    steps = (
        PACKAGE + ", then run this again; or",
        f"open https://medmnist.com, download {file} and put it into data/medmnist/",
    )
    licence = "CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0"
    return Recipe(licence, steps, (Pick(file.replace(".", r"\."), file),), sources)


def _ich(data_dir: Path) -> Recipe:
    converter = IchConverter(data_dir / ".patients.csv")
    return Recipe(
        licence="the rules of the Kaggle competition; research use",
        steps=(
            "accept the rules at https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection",
            "kaggle competitions download -c rsna-intracranial-hemorrhage-detection (181 GB)",
            "pip install pydicom",
        ),
        rules=(
            Pick(r"(stage_[12]_train)\.csv", r"\1.csv"),
            Pick(r"stage_[12]_train(?:_images)?/(ID_[0-9a-z]+)\.dcm", r"images/\1.png", converter),
        ),
        finish=converter.write_groups,
    )


def _finish_ham10000(folder: Path) -> None:
    """Write HAM10000_metadata.csv from the files of the ISIC 2018 challenge, if it is not there."""
    target, work = folder / "HAM10000_metadata.csv", folder / ".isic2018"
    parts = [work / "truth.csv", work / "lesions.csv"]
    if not all(path.exists() for path in parts):
        return
    if not target.exists():
        truth, lesions = (_rows(path) for path in parts)
        lesion_of = {row["image"]: row["lesion_id"] for row in lesions}
        rows = [(lesion_of.get(row["image"], ""), row["image"], _diagnosis(row)) for row in truth]
        _write_rows(target, ("lesion_id", "image_id", "dx"), rows)
    for path in parts:
        path.unlink()
    work.rmdir()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "image" not in rows[0]:
        raise UserError(f"{path}: not the table of the ISIC 2018 challenge; fetch it again")
    return rows


def _diagnosis(row: dict[str, str]) -> str:
    found = [name for name, cell in row.items() if name != "image" and float(cell) == 1]
    if len(found) != 1:
        raise UserError(
            f"image {row['image']}: {len(found)} diagnoses in the table of ISIC 2018; "
            "fetch it again"
        )
    return found[0].lower()


def _write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([header, *rows])


RECIPES: dict[str, Recipe] = {
    "mured": Recipe(
        licence="CC BY 4.0 as listed on its page",
        steps=(
            'open https://data.mendeley.com/datasets/pc4mb3h8hz and press "Download all"',
            "unpack it only if it holds another archive than .zip",
        ),
        rules=CSV_LAYOUT,
    ),
    "odir": Recipe(
        licence="the terms of the competition",
        steps=(
            "register at https://odir2019.grand-challenge.org/dataset/ and download it",
            "write the tables by eye as described in data/README.md, section odir",
            "pack images/, train_data.csv, test_data.csv and groups.csv, or put them in place",
        ),
        rules=CSV_LAYOUT,
    ),
    "isic": Recipe(
        licence="CC BY-NC 4.0",
        steps=("take the three training files of https://challenge.isic-archive.com/data/#2019",),
        rules=(
            Pick(
                r"(ISIC_2019_Training_(?:GroundTruth|Metadata))\.csv",
                r"\1.csv",
            ),
            Pick(r"ISIC_2019_Training_Input/([^/]+\.jpg)", r"ISIC_2019_Training_Input/\1"),
        ),
        sources=(
            Source(
                f"{ISIC_URL}2019/ISIC_2019_Training_GroundTruth.csv",
                "ISIC_2019_Training_GroundTruth.csv",
            ),
            Source(
                f"{ISIC_URL}2019/ISIC_2019_Training_Metadata.csv",
                "ISIC_2019_Training_Metadata.csv",
            ),
            Source(
                f"{ISIC_URL}2019/ISIC_2019_Training_Input.zip",
                "ISIC_2019_Training_Input.zip",
            ),
        ),
    ),
    "ham10000": Recipe(
        licence="CC BY-NC 4.0",
        steps=(
            "open https://doi.org/10.7910/DVN/DBW86T (its metadata also name the four sources)",
            "download HAM10000_metadata and both HAM10000_images_part archives",
        ),
        rules=(
            Pick(r"HAM10000_metadata(?:\.csv)?", "HAM10000_metadata.csv"),
            Pick(r"HAM10000_images_part_[12]/(ISIC_[0-9]+\.jpg)", r"images/\1"),
            Pick(r"ISIC2018_Task3_Training_Input/(ISIC_[0-9]+\.jpg)", r"images/\1"),
            Pick(r"ISIC2018_Task3_Training_GroundTruth\.csv", ".isic2018/truth.csv"),
            Pick(r"ISIC2018_Task3_Training_LesionGroupings\.csv", ".isic2018/lesions.csv"),
            Pick(r"(ISIC_[0-9]{7}\.jpg)", r"images/\1"),
        ),
        sources=tuple(
            Source(f"{ISIC_URL}2018/{file}", file)
            for file in (
                "ISIC2018_Task3_Training_LesionGroupings.csv",
                "ISIC2018_Task3_Training_GroundTruth.zip",
                "ISIC2018_Task3_Training_Input.zip",
            )
        ),
        finish=_finish_ham10000,
    ),
    "rfmid": Recipe(
        licence="CC BY 4.0 as listed on its page",
        steps=(
            "register at https://ieee-dataport.org/open-access/"
            "retinal-fundus-multi-disease-image-dataset-rfmid",
            "download the training, evaluation and test archives",
        ),
        rules=(
            Pick(
                r"(?:[abc]\. ?)?RFMiD_(Training|Validation|Testing)_Labels?\.csv",
                r"RFMiD_\1_Labels.csv",
            ),
            Pick(rf"(?:Training|a\. Training Set)/{IMAGE}", r"train/\1"),
            Pick(rf"(?:Validation|b\. Validation Set)/{IMAGE}", r"val/\1"),
            Pick(rf"(?:Test|c\. Testing Set)/{IMAGE}", r"test/\1"),
        ),
    ),
    "brset": Recipe(
        licence="PhysioNet Credentialed Health Data License 1.5.0; access must be granted",
        steps=(
            "get credentialed at https://physionet.org and sign the agreement at "
            "https://physionet.org/content/brazilian-ophthalmological/",
            "download the .zip file there (or wget -r with your name and password)",
        ),
        rules=(
            Pick(r"labels(?:_brset)?\.csv", "labels_brset.csv"),
            Pick(r"fundus_photos/(img[0-9]+\.jpg)", r"fundus_photos/\1"),
        ),
    ),
    "chestxray14": Recipe(
        licence="free to use; the NIH asks to be named as the source",
        steps=(
            "open https://nihcc.app.box.com/v/ChestXray-NIHCC",
            "download images/images_001.tar.gz to images_012.tar.gz (42 GB), "
            "Data_Entry_2017_v2020.csv, train_val_list.txt and test_list.txt",
        ),
        rules=(
            Pick(r"(Data_Entry_2017(?:_v2020)?\.csv)", r"\1"),
            Pick(r"((?:train_val|test)_list\.txt)", r"\1"),
            Pick(r"([0-9]{8}_[0-9]{3}\.png)", r"images/\1"),
        ),
    ),
}
