"""Forms of label files: names in one column, one-hot, -1, several rows, names not in front."""

from __future__ import annotations

import logging
from pathlib import Path

import hospital
import numpy as np
import pytest
import tiny

from utils_.datasets.base import TEST, UNASSIGNED
from utils_.errors import UserError

# ---- one column that names classes

NAMED: dict[str, tuple[str, dict[str, str], tuple[str, ...], list]] = {
    # NIH ChestX-ray14
    "NIH": (
        "Image Index,Finding Labels,Patient Age\na,Mass|Nodule,58\nb,No Finding,60\nc,Nodule,61\n",
        {},
        ("Mass", "Nodule"),
        [[1, 1], [0, 0], [0, 1]],
    ),
    # HAM10000: the image stands in the second column
    "HAM10000": (
        "lesion_id,image_id,dx,age,sex\nL1,a,nv,20,male\nL2,b,mel,30,female\nL3,c,,40,male\n",
        {},
        ("mel", "nv"),
        [[0, 1], [1, 0], [None, None]],
    ),
    # APTOS 2019, EyePACS: a grade
    "APTOS": (
        "id_code,diagnosis\na,0\nb,2\nc,10\nd,2\n",
        {"label_format": "single"},
        ("diagnosis 0", "diagnosis 2", "diagnosis 10"),
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]],
    ),
    "grades of pandas": (
        "image,level\na,0.0\nb,\nc,1.0\n",
        {"label_format": "single"},
        ("level 0", "level 1"),
        [[1, 0], [None, None], [0, 1]],
    ),
    # Messidor-2 has two columns of grades
    "one of two": (
        "image_id,adjudicated_dr_grade,adjudicated_dme\na,0,0\nb,3,1\nc,,\n",
        {"label_format": "single", "ignore_columns": "adjudicated_dme"},
        ("adjudicated_dr_grade 0", "adjudicated_dr_grade 3"),
        [[1, 0], [0, 1], [None, None]],
    ),
    # PadChest: a list as Python prints it
    "PadChest": (
        "ImageID,Labels\na,\"['cardiomegaly', 'normal']\"\nb,['normal']\nc,\n",
        {"label_format": "pipe"},
        ("cardiomegaly", "normal"),
        [[1, 1], [0, 1], [None, None]],
    ),
    # covid-chestxray: classes within classes, "todo" and unknown
    "covid-chestxray": (
        "patientid,finding,filename\n1,Pneumonia/Viral,a.png\n1,No Finding,b.png\n2,?,c.png\n",
        {},
        ("Pneumonia/Viral",),
        [[1], [0], [None]],
    ),
    "classes of them": (
        "image,finding\na,x|y\nb,z\nc,y\n",
        {"classes": "z,x"},
        ("x", "z"),
        [[1, 0], [0, 1], [0, 0]],
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_column_of_names(tmp_path: Path, case: str) -> None:
    text, options, classes, labels = NAMED[case]
    data = hospital.read(hospital.make_folder(tmp_path, train_data=text), **options)
    assert data.classes == classes and hospital.same(data.labels, labels)
    assert [name.removesuffix(".png") for name in data.files] == list("abcd")[: len(labels)]


def test_names_are_those_of_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = hospital.make_folder(
        tmp_path, train_data="f,dx,site\na,nv,n\n", test_data="f,dx,age\nb,mel,3\n"
    )
    with caplog.at_level(logging.INFO):
        data = hospital.read(folder)
    assert data.classes == ("mel", "nv") and data.part.tolist() == [0, TEST]
    assert "as with --label-format single" in caplog.text
    assert "names in column 'dx', which 0 rows leave blank; not read: site" in caplog.text


GRADES = "image,level\n" + "".join(
    f"{name},{grade}\n" for name, grade in zip("abcdefgh", "01201204", strict=True)
)
UNCLEAR: dict[str, tuple[str, dict[str, str], str]] = {
    "grades": (GRADES, {}, "'level' holds grades or codes"),
    "two columns of names": (
        "image,finding,dx\na,x,y\nb,z,y\n",
        {"label_format": "single"},
        "any of 'finding', 'dx' may be it",
    ),
    "names under an unknown header": ("image,what\na,nv\nb,mel\nc,nv\n", {}, "'what' holds text"),
    "findings under one": ("image,what\na,x|y\nb,x\nc,y\n", {}, "'what' holds text"),
    "names beside properties": (
        "image,what,sex,age\na,nv,m,20\nb,mel,f,30\nc,nv,f,40\n",
        {},
        "'what' holds text",
    ),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_the_advice_for_names_works(tmp_path: Path, case: str) -> None:
    text, options, told = UNCLEAR[case]
    folder = hospital.make_folder(tmp_path, train_data=text)
    with pytest.raises(UserError, match=told) as caught:
        hospital.read(folder, **options)
    advised = hospital.advised(str(caught.value))
    assert hospital.read(folder, **(options | advised)).labels.sum() > 0


WRONG_NAMES: dict[str, tuple[str, str, str]] = {
    "spelt in two ways": ("NV,nv,mel", "'NV' and 'nv'; write one", "nv,nv,mel"),
    "joined": ("a;b,a,b", "joins several findings; write | .* --label-format pipe", "a|b,a,b"),
    "joined by a slash": ("a/b,a,b", "joins several findings", "a|b,a,b"),
    "none": ("none,a,b", "line 2, .*'none' may mean .* write No Finding", "No Finding,a,b"),
    "nothing beside": ("No Finding|a,a|b,b", "beside findings; keep one", "a,a|b,b"),
    "nothing at all": ("No Finding,No Finding,", "names no class", "No Finding,a,"),
}


@pytest.mark.parametrize("case", WRONG_NAMES)
def test_wrong_names_are_refused_and_the_advice_works(tmp_path: Path, case: str) -> None:
    cells, told, mended = WRONG_NAMES[case]

    def write(names: str) -> Path:
        rows = zip("abc", names.split(","), strict=True)
        return hospital.make_folder(tmp_path, train_data=hospital.table("image,dx", rows))

    with pytest.raises(UserError, match=told):
        hospital.read(write(cells))
    assert hospital.read(write(mended)).labels.size


def test_free_text_is_no_class(tmp_path: Path) -> None:
    names = [f"i{n}" for n in range(30)]
    rows = [(name, f"seen in week {n}") for n, name in enumerate(names)]
    folder = hospital.make_folder(
        tmp_path, images=names, train_data=hospital.table("image,label", rows)
    )
    with pytest.raises(UserError, match="30 different texts, such as 'seen in week 0'"):
        hospital.read(folder)


def test_one_hot(tmp_path: Path) -> None:
    folder = hospital.make_folder(tmp_path, train_data="image,MEL,NV\na,1.0,0.0\nb,0,1\nc,,\n")
    assert hospital.same(
        hospital.read(folder, label_format="onehot").labels, [[1, 0], [0, 1], [None] * 2]
    )
    hospital.make_folder(tmp_path, train_data="image,MEL,NV\na,1,0\nb,1,1\nc,0,0\n")
    with pytest.raises(
        UserError, match="line 3: not exactly one class is 1, and so in 2 rows"
    ) as caught:
        hospital.read(folder, label_format="onehot")
    assert hospital.read(folder, **hospital.advised(str(caught.value))).labels.sum() == 3


# ---- uncertain

CHEXPERT = "Path,Edema,Mass\na,1.0,-1.0\nb,-1,\nc,,0\nd,0,1\n"
MEANT = {
    "blank": [[1, None], [None, None], [None, 0], [0, 1]],
    "positive": [[1, 1], [1, None], [None, 0], [0, 1]],
    "negative": [[1, 0], [0, None], [None, 0], [0, 1]],
    "soft": [[1, None], [None, None], [None, 0], [0, 1]],
}


@pytest.mark.parametrize("meaning", MEANT)
def test_what_uncertain_means(tmp_path: Path, meaning: str) -> None:
    data = hospital.read(hospital.make_folder(tmp_path, train_data=CHEXPERT), uncertain=meaning)
    assert hospital.same(data.labels, MEANT[meaning])
    if meaning == "soft":
        assert data.uncertain.tolist() == [[False, True], [True, False], [False] * 2, [False] * 2]
    else:
        assert data.uncertain is None


def test_uncertain_is_asked_for(tmp_path: Path) -> None:
    folder = hospital.make_folder(tmp_path, train_data=CHEXPERT)
    with pytest.raises(
        UserError, match=r"line 2, column 'Mass': -1, .*2 cells in 2 columns"
    ) as caught:
        hospital.read(folder)
    advised = hospital.advised(str(caught.value))
    assert advised == {"uncertain": "blank"} and hospital.read(folder, **advised).labels.size


def test_both_are_asked_for_in_one_message(tmp_path: Path) -> None:
    rows = [row + "," + age for row, age in zip(CHEXPERT.split(), ["Age", *"5678"], strict=True)]
    folder = hospital.make_folder(tmp_path, train_data="\n".join(rows))
    with pytest.raises(UserError, match="'Age' holds grades or codes") as caught:
        hospital.read(folder)
    advised = hospital.advised(str(caught.value))
    del advised["classes"]
    assert hospital.same(hospital.read(folder, **advised).labels, MEANT["blank"])


# ---- several rows an image

ROWS = "image,rad_id,A,B\na,R1,1,0\na,R2,0,\na,R3,0,\nb,R1,1,1\nb,R2,0,\nc,R1,,1\n"
COMBINED = {
    "any": [[1, 0], [1, 1], [None, 1]],
    "majority": [[0, 0], [None, 1], [None, 1]],
    "first": [[1, 0], [1, 1], [None, 1]],
}


@pytest.mark.parametrize("combine", COMBINED)
def test_rows_of_readers_become_one(
    tmp_path: Path, combine: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hospital.make_folder(tmp_path, train_data=ROWS, groups="f,patient_id\na,1\nb,1\nc,2\n")
    with caplog.at_level(logging.INFO):
        data = hospital.read(folder, combine=combine, ignore_columns="rad_id")
    assert data.files == ("a", "b", "c") and hospital.same(data.labels, COMBINED[combine])
    assert data.groups[0] == data.groups[1] and data.part.tolist() == [UNASSIGNED] * 3
    assert "6 rows of 3 images" in caplog.text
    assert ("1 cells are a tie" in caplog.text) == (combine == "majority")


FORMS = {
    # VinBigData: a row for each box of each reader
    "box": (
        "image_id,class_name,rad_id,x_min\na,Mass,R1,3\na,Edema,R2,4\nb,No finding,R1,\n",
        {},
        "box",
    ),
    "reader": ("image,reader,A\na,x,1\na,y,0\nb,x,1\n", {"ignore_columns": "reader"}, "reader"),
    # MIMIC-CXR: studies of several images; NIH: follow-ups
    "study": (
        "image,study_id,A\na,s5,1\na,s6,1\nb,s7,0\n",
        {"ignore_columns": "study_id"},
        "study",
    ),
    "no form": ("image,A\na,1\na.png,1\nb,0\n", {}, "labels agree, and 1 of 2 images"),
    "three ways to spell it": ("image,A\na,1\na.PNG,0\na.png,1\nb,0\n", {}, "lines 2, 3, 4: image"),
    "differ": ("image,A\na,1\nb,0\na,0\n", {}, "lines 2, 4.*labels differ"),
}


@pytest.mark.parametrize("case", FORMS)
def test_several_rows_are_told_by_their_form_and_the_advice_works(
    tmp_path: Path, case: str
) -> None:
    text, options, told = FORMS[case]
    folder = hospital.make_folder(tmp_path, train_data=text)
    with pytest.raises(UserError, match=told) as caught:
        hospital.read(folder, **options)
    advised = hospital.advised(str(caught.value))
    assert advised == {"combine": "any"}
    assert len(hospital.read(folder, **options, **advised).files) == 2


def test_boxes_become_labels_of_the_image(tmp_path: Path) -> None:
    text, _, _ = FORMS["box"]
    data = hospital.read(hospital.make_folder(tmp_path, train_data=text), combine="any")
    assert data.classes == ("Edema", "Mass") and hospital.same(data.labels, [[1, 1], [0, 0]])


def test_an_image_in_two_files_is_refused_whatever_is_combined(tmp_path: Path) -> None:
    folder = hospital.make_folder(tmp_path, train_data="f,A\na,1\na,0\n", test_data="f,A\na,1\n")
    with pytest.raises(
        UserError, match=r"test_data.csv, line 2: .*train_data.csv, line 2.*one part"
    ):
        hospital.read(folder, combine="any")


def test_an_uncertain_cell_stays_so_where_no_row_knows_better(tmp_path: Path) -> None:
    text = "f,A,B\na,-1,-1\na,1,\nb,0,0\n"
    folder = hospital.make_folder(tmp_path, train_data=text)
    data = hospital.read(folder, combine="any", uncertain="soft")
    assert hospital.same(data.labels, [[1, None], [0, 0]])
    assert data.uncertain.tolist() == [[False, True], [False, False]]


# ---- the column of image names

BEHIND = {
    "index of pandas": (",image,A\n0,a,1\n1,b,0\n2,c,1\n", {"ignore_columns": "Unnamed: 0"}),
    "by its contents": ("pid,scan,A\n7,a.png,1\n8,b.png,0\n9,c.png,1\n", {"ignore_columns": "pid"}),
    "last": ("A,B,picture\n1,0,a\n0,1,b\n1,1,c\n", {}),
    "patients that are no images": (
        "id,file,A\np1,a,1\np1,b,0\np2,c,1\n",
        {"ignore_columns": "id"},
    ),
    "blank ids before it": ("id,file,A\n,a,1\n,b,0\np2,c,1\n", {"ignore_columns": "id"}),
}


@pytest.mark.parametrize("case", BEHIND)
def test_image_names_need_not_stand_in_front(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, options = BEHIND[case]
    folder = hospital.make_folder(tmp_path, train_data=text)
    if options:
        with pytest.raises(UserError) as caught:
            hospital.read(folder)
        assert hospital.advised(str(caught.value))["ignore_columns"] == options["ignore_columns"]
    with caplog.at_level(logging.INFO):
        data = hospital.read(folder, **options)
    assert [name[0] for name in data.files] == list("abc")
    assert data.labels[:, 0].tolist() == [1, 0, 1]
    assert "names the images" in caplog.text


def test_an_index_that_names_images_too(tmp_path: Path) -> None:
    """Images 0.png to 2.png, and an index from 0: the first column holds."""
    folder = hospital.make_folder(
        tmp_path, images="012", train_data="nr,A,B\n0,1,0\n1,0,1\n2,1,1\n"
    )
    assert hospital.read(folder).files == ("0", "1", "2")


def test_a_blank_name_is_located(tmp_path: Path) -> None:
    folder = hospital.make_folder(tmp_path, train_data="x,file,A\n1,a,1\n2,,0\n3,c,1\n4,d,1\n")
    with pytest.raises(UserError, match="line 3: no file name in column 'file'"):
        hospital.read(folder, ignore_columns="x")


def test_what_is_read_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [(name, n % 2, (n // 2) % 2, "m" if n % 3 else "f") for n, name in enumerate("abcdefgh")]
    text = hospital.table("image,A,B,sex", rows)
    turned = hospital.table("image,A,B,sex", rows[::-1])
    first = hospital.read(
        hospital.make_folder(tmp_path / "1", train_data=text), ignore_columns="sex"
    )
    second = hospital.read(
        hospital.make_folder(tmp_path / "2", train_data=turned), ignore_columns="sex"
    )
    np.testing.assert_array_equal(first.labels, second.labels[::-1])


def test_the_names_beside_columns_of_words_are_offered(tmp_path: Path) -> None:
    """covid-chestxray has a column of findings, and Y and N for survival and the like."""
    text = "finding,survival,filename\nCOVID,Y,a.png\nSARS,N,b.png\nCOVID,,c.png\n"
    folder = hospital.make_folder(tmp_path, train_data=text)
    with pytest.raises(UserError, match="for the names in 'finding' add --label-format single"):
        hospital.read(folder)
    assert hospital.read(folder, label_format="single").classes == ("COVID", "SARS")
    assert hospital.read(folder, ignore_columns="finding").classes == ("survival",)


def test_data_sets_of_this_layout_have_the_same_forms(tmp_path: Path) -> None:
    rows = ["a,1,0,0,0,0,0,0,0", "b,-1,0,0,0,0,0,0,1", "b,0,0,0,0,0,0,0,1"]
    text = "\n".join(["image,N,D,G,C,A,H,M,O", *rows]) + "\n"
    folder = hospital.make_folder(tmp_path, train_data=text)
    options: dict[str, str] = {}
    for _ in range(2):  # each advice followed, one after the other
        with pytest.raises(UserError) as caught:
            tiny.load("odir", data_dir=folder, labels_only=True, **options)
        options |= hospital.advised(str(caught.value))
    data = tiny.load("odir", data_dir=folder, labels_only=True, **options)
    assert set(options) == {"uncertain", "combine"} and data.labels[:, 0].tolist() == [1, 0]
