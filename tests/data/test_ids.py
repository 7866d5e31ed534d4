"""Ids: what stands for none, in every loader; ids of sites; groups too large to be one patient."""

from __future__ import annotations

from pathlib import Path

import hospital
import numpy as np
import pytest
import tiny

from utils_.datasets.label_files.ids import is_missing, name_sites, number_groups
from utils_.errors import UserError
from utils_.splits import Deal, assign_clients, cut_parts

# What pandas, R, SPSS, Excel, DICOM anonymisers and people write; the first row is the issue's.
MISSING = (
    *("nan", "NA", "N/A", "None", "null", "-1", "unknown", "?", ".", ""),
    *("NaN", "<NA>", "#N/A", "#NULL!", "n.a.", "NULL", " Unknown ", "UNK", "-999", "-1.0", "NaT"),
    *("ANONYMOUS", "Anonymized", "REMOVED", "unbekannt", "desconhecido", "-", "\u2013", "\uff1f"),
)
PRESENT = ("0", "1", "-2", "nano", "n", "NAR-7", "P-1", "x", "noname", "A?", "1.0", "unknown1")


@pytest.mark.parametrize("text", MISSING)
def test_missing_ids(text: str) -> None:
    assert is_missing(text)


@pytest.mark.parametrize("text", PRESENT)
def test_ids_that_only_look_missing(text: str) -> None:
    assert not is_missing(text)


def test_plain_ids_are_numbered_as_ever() -> None:
    ids = ["p3", "p1", "p2", "p1", "", "p3"]
    assert number_groups(ids, what="id").tolist() == [3, 1, 2, 1, 4, 3]
    sites = np.array(["n", "s", "s", "s", "n", "n"])  # no id is at two sites
    assert number_groups(ids, what="id", sites=sites).tolist() == [3, 1, 2, 1, 4, 3]


def test_missing_ids_are_each_their_own() -> None:
    groups = number_groups([*MISSING, "a", "a"], what="id")
    assert len(set(groups.tolist())) == len(MISSING) + 1 and groups[-1] == groups[-2]


def test_missing_sites_are_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert name_sites(["north", *MISSING]).tolist() == ["north"] + ["unknown"] * len(MISSING)
    assert f"{len(MISSING)} of {len(MISSING) + 1} images have no site" in caplog.text


def test_sites_that_differ_in_case_are_named(caplog: pytest.LogCaptureFixture) -> None:
    name_sites(["North", "north", "St. Mary", "south"])
    assert "'North' and 'north' count as two" in caplog.text and "south" not in caplog.text


# ---- in every loader: of four images the first two have no id, the last two one id

TWO_MISSING = ("nan", "Unknown", "7", "7")


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def lines(header: str, rows: list[str]) -> str:
    return "\n".join([header, *rows]) + "\n"


def csv_groups(folder: Path) -> None:
    write(folder, "train_data.csv", lines("f,A", [f"{i}.png,{i % 2}" for i in range(4)]))
    write(folder, "images/none.txt", "")
    rows = [f"{i},{p}" for i, p in enumerate(TWO_MISSING)]
    write(
        folder,
        "groups.csv",
        lines("f,patient_id", [f"{r.split(',')[0]}.png,{r.split(',')[1]}" for r in rows]),
    )


def isic(folder: Path) -> None:
    truth = [f"I{i},0,1,0,0,0,0,0,0,0" for i in range(4)]
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    write(folder, "ISIC_2019_Training_GroundTruth.csv", lines(header, truth))
    rows = [f"I{i},{p}" for i, p in enumerate(TWO_MISSING)]
    write(folder, "ISIC_2019_Training_Metadata.csv", lines("image,lesion_id", rows))
    write(folder, "ISIC_2019_Training_Input/none.txt", "")


def ham10000(folder: Path) -> None:
    rows = [f"{p},I{i},nv" for i, p in enumerate(TWO_MISSING)]
    write(folder, "HAM10000_metadata.csv", lines("lesion_id,image_id,dx", rows))
    write(folder, "images/none.txt", "")


def ham10000_blank(folder: Path) -> None:
    """A blank first column, which holds the lesion here, was taken for a missing file name."""
    ham10000(folder)
    rows = [f"{p},I{i},nv" for i, p in enumerate(("", "", "7", "7"))]
    write(folder, "HAM10000_metadata.csv", lines("lesion_id,image_id,dx", rows))


def brset(folder: Path) -> None:
    from utils_.datasets.brset import CLASSES

    rows = [f"img{i},{p}," + ",".join("0" * len(CLASSES)) for i, p in enumerate(TWO_MISSING)]
    write(folder, "labels_brset.csv", lines("image_id,patient_id," + ",".join(CLASSES), rows))
    write(folder, "fundus_photos/none.txt", "")


def chestxray14(folder: Path) -> None:
    rows = [f"{i}.png,No Finding,{p}" for i, p in enumerate(TWO_MISSING)]
    write(folder, "Data_Entry_2017.csv", lines("Image Index,Finding Labels,Patient ID", rows))
    write(folder, "images/none.txt", "")


def ich(folder: Path) -> None:
    write(folder, "stage_2_train.csv", lines("ID,Label", [f"ID_{i}_epidural,0" for i in range(4)]))
    write(folder, "images/none.txt", "")
    rows = [f"ID_{i}.png,{p}" for i, p in enumerate(TWO_MISSING)]
    write(folder, "groups.csv", lines("image,patient_id", rows))


LOADERS = {"csv": csv_groups, "isic": isic, "ham10000": ham10000, "brset": brset}
LOADERS |= {"chestxray14": chestxray14, "ich": ich, "ham10000 ": ham10000_blank}


@pytest.mark.parametrize("case", LOADERS)
def test_missing_ids_in_every_loader(tmp_path: Path, case: str) -> None:
    LOADERS[case](tmp_path)
    groups = tiny.load(case.strip(), data_dir=tmp_path, labels_only=True).groups
    assert groups[2] == groups[3] and len(set(groups.tolist())) == 3


# ---- ids of sites


def groups_of(folder: Path, rows: list[str], header: str = "f,patient_id,site") -> np.ndarray:
    names = [row.split(",")[0] for row in rows]
    labels = hospital.table("f,A", [(name, n % 2) for n, name in enumerate(names)])
    hospital.make_folder(folder, images=names, train_data=labels, groups=lines(header, rows))
    return hospital.read(folder).groups


def test_two_hospitals_that_both_count_from_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["a,1,north", "b,1,north", "c,1,south", "d,2,south", "e,2,north"]
    groups = groups_of(tmp_path, rows).tolist()
    assert groups[0] == groups[1] and len(set(groups)) == 4
    assert "patient_id '1' occurs at north and south (2 such ids" in caplog.text


def test_an_image_without_site_belongs_to_the_site_that_has_its_patient(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, ["a,1,north", "b,1,NA", "c,2,north", "d,2,south", "e,2,"]).tolist()
    assert groups[0] == groups[1]
    assert len(set(groups[2:])) == 3  # whose patient 2 the last one is, nobody knows


def test_missing_ids_at_several_sites_are_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(set(groups_of(tmp_path, ["a,nan,north", "b,nan,south"]).tolist())) == 2
    assert "occurs at" not in caplog.text


@pytest.mark.parametrize("header", ["f,Patient ID", "f,PatientID", "f,PATIENT-ID", "f,patient id"])
def test_the_name_of_the_column_may_be_spelt_otherwise(tmp_path: Path, header: str) -> None:
    groups = groups_of(tmp_path, ["a,1", "b,1", "c,2"], header).tolist()
    assert groups[0] == groups[1] != groups[2]


def test_sites_without_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert groups_of(tmp_path, ["a,north", "b,south"], "f,site") is None
    assert hospital.read(tmp_path).sites.tolist() == ["north", "south"]
    assert "the split may part one patient's images" in caplog.text


# Columns as in covid-chestxray, VinBigData and FLamby tables.
@pytest.mark.parametrize(("name", "meant"), [("subject", "patient_id"), ("Hospital", "site")])
def test_a_column_that_may_be_meant_is_named_and_renaming_works(
    tmp_path: Path, name: str, meant: str
) -> None:
    other = {"patient_id": "site", "site": "patient_id"}[meant]
    rows = ["a,1,2", "b,1,2"]
    with pytest.raises(UserError, match=f"column '{name}' is not read; call it '{meant}'"):
        groups_of(tmp_path, rows, f"f,{other},{name}")
    groups_of(tmp_path, rows, f"f,{other},{meant}")


def test_rows_of_one_image_in_groups_must_agree(tmp_path: Path) -> None:
    rows = ["a,1,north", "a,1,north", "b,2,north"]  # one row per reader, as in VinBigData
    hospital.make_folder(tmp_path, train_data="f,A\na,1\nb,0\n")
    write(tmp_path, "groups.csv", lines("f,patient_id,site", rows))
    assert len(set(hospital.read(tmp_path).groups.tolist())) == 2
    write(tmp_path, "groups.csv", lines("f,patient_id,site", [*rows, "b,1,north"]))
    with pytest.raises(UserError, match=r"groups.csv, line 5.*than in line 4; make the two"):
        hospital.read(tmp_path)


# ---- groups that are too large


def test_an_id_that_stands_for_many_is_named(caplog: pytest.LogCaptureFixture) -> None:
    # covid-chestxray gave all images of one article the patient 63.
    ids = ["63"] * 45 + [f"p{i}" for i in range(15)]
    number_groups(ids, what="patient_id")
    assert "of 60 images very many share a patient_id: '63' 45;" in caplog.text
    caplog.clear()
    number_groups([f"p{i // 3}" for i in range(60)], what="patient_id")
    assert not caplog.text


def test_a_part_far_from_what_was_asked_is_named(caplog: pytest.LogCaptureFixture) -> None:
    groups = np.array([0] * 59 + [1])
    cut_parts(np.full(60, 3, np.uint8), groups, val_share=0, test_share=0.2, data_seed=1)
    assert "--test-share 0.2: the test part has" in caplog.text
    caplog.clear()
    cut_parts(np.full(60, 3, np.uint8), np.arange(60), val_share=0.1, test_share=0.2, data_seed=1)
    assert not caplog.text


def test_clients_far_from_an_equal_share_are_named(caplog: pytest.LogCaptureFixture) -> None:
    groups, part = np.array([0] * 45 + list(range(1, 16))), np.zeros(60, np.uint8)
    deal = Deal(clients=3, data_seed=1, alpha=1, shards=1, phi=1)
    assign_clients(part, groups, np.zeros((60, 1)), None, split="iid", deal=deal)
    assert "shares are uneven: client 0 45, client 1 8, client 2 7 of 60" in caplog.text
    caplog.clear()
    assign_clients(part, np.arange(60), np.zeros((60, 1)), None, split="iid", deal=deal)
    assert not caplog.text
