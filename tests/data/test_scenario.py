"""The whole simulation: invariants, leak guard, saving, damage, tables, real label files."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SHARED, needs_shared

from src.config import Config
from utils_ import scenario as module
from utils_.datasets.base import PART_NAMES, TEST, TRAIN, UNASSIGNED, VAL, ImageDataset
from utils_.errors import UserError
from utils_.missing import MISSING_TYPES
from utils_.noise import CLIENT_RATES, NOISE_TYPES
from utils_.scenario import Scenario, ScenarioSettings, build_scenario
from utils_.scenario_tables import assignment_table, client_table
from utils_.splits import SPLITS
from utils_.truth import reference

SETTINGS = {
    "clients": 4,
    "split": "iid",
    "alpha": 0.5,
    "noise": 0.4,
    "noise_type": "paper",
    "missing": 0.5,
    "missing_type": "classes",
    "val_share": 0.1,
    "test_share": 0.2,
    "data_seed": 1,
    "folder": None,
}


def tiny(images: int = 200, classes: int = 6, *, seed: int = 0, blank: float = 0) -> ImageDataset:
    """Labels, patients and sites of a small dataset; the pixels play no role."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, classes)) < 0.25).astype(np.float32)
    labels[rng.random(labels.shape) < blank] = np.nan
    return from_labels(labels, groups=rng.integers(0, images // 2 + 1, images))


def from_labels(
    labels: np.ndarray, *, groups: np.ndarray | None = None, part: np.ndarray | None = None
) -> ImageDataset:
    images, classes = labels.shape
    sites = None if groups is None else np.array(["a", "b", "c", "d"])[groups % 4]
    return ImageDataset(
        name="tiny",
        images=np.zeros((images, 1, 1, 3), np.uint8),
        labels=labels.astype(np.float32),
        classes=tuple(f"class_{c}" for c in range(classes)),
        files=tuple(f"{i}.png" for i in range(images)),
        part=np.full(images, UNASSIGNED, np.uint8) if part is None else part,
        groups=groups,
        sites=sites,
        image_key="pixels",
    )


def table_of(scenario: Scenario, dataset: ImageDataset, *, noise: bool = True) -> pd.DataFrame:
    """The client table, against the files' labels where noise is simulated."""
    return client_table(scenario, dataset, truth=reference(dataset, scenario, noise=noise))


def build(dataset: ImageDataset, **changes: object) -> Scenario:
    settings = SETTINGS | changes
    folder = settings.pop("folder")
    wanted = dataclasses.replace(Config(), **settings).part(ScenarioSettings)
    return build_scenario(dataset, wanted, folder=folder)


def equal(first: Scenario, second: Scenario) -> bool:
    return first.key == second.key and all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name == "noisy")
        and getattr(first, name).dtype == getattr(second, name).dtype
        for name in ("part", "client", "noisy", "annotated", "assumed")
    )


@settings(max_examples=200, deadline=None)
@given(
    images=st.integers(1, 60),
    classes=st.integers(1, 6),
    seed=st.integers(0, 999),
    blank=st.sampled_from([0, 0.3, 1.0]),
    changes=st.fixed_dictionaries(
        {
            "clients": st.integers(1, 8),
            "split": st.sampled_from(sorted(SPLITS)),
            "alpha": st.sampled_from([0.01, 0.5, 100.0]),
            "noise": st.sampled_from([0, 0.4, 1.0]),
            "noise_type": st.sampled_from(sorted(NOISE_TYPES)),
            "missing": st.sampled_from([0, 0.3, 0.5, 0.9, 1, 2, 5]),
            "missing_type": st.sampled_from(sorted(MISSING_TYPES)),
            "noise_clients": st.sampled_from(sorted(CLIENT_RATES)),
            "noise_low": st.sampled_from([0, 0.2]),
            "shards": st.integers(1, 3),
            "phi": st.sampled_from([0.01, 0.7]),
            "val_share": st.sampled_from([0, 0.1]),
        }
    ),
)
def test_any_settings_give_a_sound_scenario_or_a_user_error(images, classes, seed, blank, changes):
    dataset = tiny(images, classes, seed=seed, blank=blank)
    try:
        scenario = build(dataset, **changes)
    except UserError as error:
        assert "\n" not in str(error)
        return
    train, labels = scenario.part == TRAIN, dataset.labels
    known = ~np.isnan(labels)
    assert ((scenario.client >= 0) == train).all()
    assert sorted(set(scenario.client[train])) == list(range(changes["clients"]))
    rows = np.concatenate([scenario.rows(k) for k in range(changes["clients"])])
    assert sorted(rows) == list(np.flatnonzero(train))
    assert (np.isnan(scenario.noisy) == ~known).all()
    assert np.array_equal(scenario.noisy[~train], labels[~train], equal_nan=True)
    assert (scenario.annotated[~train] == known[~train]).all()
    assert not (scenario.annotated & ~known).any()
    assert (np.isnan(scenario.observed) == ~scenario.annotated).all()
    if blank == 0:
        assert scenario.annotated[train].any(axis=0).all()
    for group in np.unique(dataset.groups):
        inside = dataset.groups == group
        assert len(set(zip(scenario.part[inside], scenario.client[inside], strict=True))) == 1


@pytest.mark.parametrize(
    ("split", "missing_type"),
    [("iid", "classes"), ("site", "classes"), ("quantity", "cells"), ("iid", "images")],
)
def test_without_noise_hidden_labels_reach_nothing(split, missing_type):
    """Flip, permute or blank every hidden label: what training may see keeps its bits."""
    dataset = tiny(400, 8, blank=0.1)
    settings_ = {"noise": 0.0, "split": split, "missing_type": missing_type}
    first = build(dataset, **settings_)
    hidden = (first.part == TRAIN)[:, None] & ~first.annotated & ~np.isnan(dataset.labels)
    assert hidden.sum() > 500
    rng = np.random.default_rng(0)
    for values in (1 - dataset.labels[hidden], rng.permutation(dataset.labels[hidden]), np.nan):
        labels = dataset.labels.copy()
        labels[hidden] = values
        second = build(dataclasses.replace(dataset, labels=labels), **settings_)
        for name in ("part", "client", "annotated", "observed"):
            assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_more_noise_and_more_missing_only_add():
    dataset = tiny(500, 10)
    low, high = build(dataset, noise=0.2, missing=2), build(dataset, noise=0.6, missing=5)
    changed = low.noisy != dataset.labels
    assert (high.noisy[changed] == low.noisy[changed]).all()
    assert (low.annotated | ~high.annotated).all()
    assert (low.client == high.client).all()


def test_arrays_are_read_only():
    scenario = build(tiny())
    for array in (scenario.part, scenario.client, scenario.noisy, scenario.annotated):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# --- saving


def test_saved_once_and_reloaded_to_the_same_bits(tmp_path, monkeypatch):
    dataset = tiny(blank=0.1)
    built = build(dataset, folder=tmp_path / "splits")
    assert [path.name for path in (tmp_path / "splits").iterdir()] == [f"{built.key}.npz"]
    assert equal(built, build(dataset))
    monkeypatch.setattr(module, "_build", lambda *_, **__: pytest.fail("built again"))
    assert equal(built, build(dataset, folder=tmp_path / "splits"))


def test_without_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tiny())
    assert not any(tmp_path.iterdir())


def other_inputs() -> dict[str, ImageDataset]:
    dataset = tiny()
    labels, part = dataset.labels.copy(), dataset.part.copy()
    labels[3, 2], part[5] = 1 - labels[3, 2], TRAIN
    return {
        "labels": dataclasses.replace(dataset, labels=labels),
        "part": dataclasses.replace(dataset, part=part),
        "groups": dataclasses.replace(dataset, groups=dataset.groups[::-1].copy()),
        "no groups": dataclasses.replace(dataset, groups=None),
        "sites": dataclasses.replace(dataset, sites=dataset.sites[::-1].copy()),
        "files": dataclasses.replace(dataset, files=dataset.files[::-1]),
        "images": dataclasses.replace(dataset, image_key="other"),
        "names": dataclasses.replace(dataset, classes=tuple("abcdef")),
    }


def test_the_key_covers_every_input():
    changes = {
        "clients": 3,
        "split": "dirichlet",
        "alpha": 0.4,
        "noise": 0.3,
        "noise_type": "flip",
        "missing": 2,
        "val_share": 0.2,
        "test_share": 0.3,
        "data_seed": 2,
        "shards": 3,
        "phi": 0.5,
        "missing_type": "cells",
        "noise_clients": "linear",
        "noise_low": 0.1,
        "noisy_share": 0.3,
        "assume_negative": True,
    }
    keys = [build(tiny()).key, *(build(tiny(), **{k: v}).key for k, v in changes.items())]
    keys += [build(dataset).key for dataset in other_inputs().values()]
    assert len(set(keys)) == len(keys)
    assert build(tiny()).key == keys[0]


def test_the_key_does_not_depend_on_numpy_scalars():
    typed = build(tiny(), clients=np.int64(4), noise=np.float64(0.4), data_seed=np.int64(1))
    assert equal(typed, build(tiny()))


def test_damage_is_noticed_and_repaired(tmp_path, caplog):
    """Cut the file anywhere or change any byte: the scenario stays the same."""
    dataset = tiny(30, 3, blank=0.1)
    good = build(dataset, folder=tmp_path)
    path = tmp_path / f"{good.key}.npz"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in rng.integers(0, len(whole), 40)]
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    for content in [*damaged, b"", b"PK\x03\x04", b"\x93NUMPY"]:
        path.write_bytes(content)
        assert equal(build(dataset, folder=tmp_path), good)
    with caplog.at_level(logging.WARNING, logger="fednml"):
        path.write_bytes(whole[:100])
        build(dataset, folder=tmp_path)
    assert "damaged and will be rebuilt" in caplog.text
    again = build(dataset, folder=tmp_path)
    assert equal(again, good)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_damaged_header_cannot_ask_for_all_memory(tmp_path):
    good = build(tiny(), folder=tmp_path)
    path = tmp_path / f"{good.key}.npz"
    whole, header = path.read_bytes(), b"(200, 6), }            "
    assert header in whole
    path.write_bytes(whole.replace(header, b"(2000000000000, 6), }  "))
    assert equal(build(tiny(), folder=tmp_path), good)


def test_a_file_of_other_settings_or_shape_is_not_taken(tmp_path):
    good = build(tiny(), folder=tmp_path)
    path = tmp_path / f"{good.key}.npz"
    other = build(tiny(), noise=0.1, folder=tmp_path)
    path.write_bytes((tmp_path / f"{other.key}.npz").read_bytes())
    assert equal(build(tiny(), folder=tmp_path), good)
    arrays = {name: getattr(good, name)[:-1] for name in ("part", "client", "noisy", "annotated")}
    np.savez(path, key=np.array(good.key), **arrays)
    assert equal(build(tiny(), folder=tmp_path), good)
    np.savez(path, key=np.array(good.key))
    assert equal(build(tiny(), folder=tmp_path), good)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*--save-dir"):
        build(tiny(), folder=tmp_path / "file" / "splits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 500}, "--clients 500"),
        ({"split": "idd"}, "did you mean 'iid'"),
        ({"noise": 1.1}, "--noise 1.1"),
        ({"missing": 6}, "--missing 6"),
        ({"missing": 5, "clients": 2}, "--missing 3 or less, or --clients 6 or more"),
        ({"val_share": -1}, "--val-share -1"),
    ],
)
def test_errors_name_the_option_and_leave_no_file(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build(tiny(), **changes, folder=tmp_path / "splits")
    assert not any(tmp_path.iterdir())


def test_classes_that_nobody_annotates_are_reported(caplog):
    dataset = tiny()
    dataset.labels[:, [1, 4]] = np.nan
    with caplog.at_level(logging.WARNING, logger="fednml"):
        scenario = build(dataset)
    assert "no client annotates class_1, class_4" in caplog.text
    assert "annotated" not in table_of(scenario, dataset)["annotated"].iloc[0]
    with_all = tiny()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fednml"):
        build(with_all)
    assert not caplog.text


# --- assumed negatives


@pytest.mark.parametrize("missing_type", sorted(MISSING_TYPES))
def test_missing_training_cells_are_assumed_to_be_negative(missing_type):
    dataset = tiny(300, 6, blank=0.1)
    plain = build(dataset, missing_type=missing_type)
    scenario = build(dataset, missing_type=missing_type, assume_negative=True)
    train = scenario.part == TRAIN
    assert not plain.assumed.any()
    assert plain.noisy[~plain.annotated & train[:, None]].any()  # what was hidden is gone
    assert scenario.annotated[train].all()
    assert (scenario.assumed == (~plain.annotated & train[:, None])).all()
    assert (scenario.observed[scenario.assumed] == 0).all()
    assert (scenario.noisy[scenario.assumed] == 0).all()
    given = plain.annotated & train[:, None]
    assert (scenario.observed[given] == plain.observed[given]).all()
    for part in (VAL, TEST):
        rows = scenario.part == part
        assert rows.any()
        assert (scenario.annotated[rows] == ~np.isnan(dataset.labels[rows])).all()
        assert np.array_equal(scenario.observed[rows], dataset.labels[rows], equal_nan=True)


def test_assumed_negatives_are_saved_and_read_only(tmp_path):
    dataset = tiny(blank=0.1)
    built = build(dataset, assume_negative=True, folder=tmp_path)
    again = build(dataset, assume_negative=True, folder=tmp_path)
    assert equal(built, again)
    assert again.assumed.any()
    with pytest.raises(ValueError, match="read-only"):
        again.assumed[0] = False


def test_client_table_shows_what_is_assumed():
    dataset = tiny(300, 5, blank=0.1)
    plain = table_of(build(dataset, missing=2, noise=0.0), dataset)
    scenario = build(dataset, missing=2, noise=0.0, assume_negative=True)
    table = table_of(scenario, dataset)
    assert (plain["assumed"] == 0).all()
    assert (table["missing_cells"] == 0).all()
    assert table["assumed"].to_numpy() == pytest.approx(plain["missing_cells"])
    assert (table["annotated"] == plain["annotated"]).all()
    for k, row in table.iterrows():
        true = dataset.labels[scenario.rows(k)]
        read, known = scenario.observed[scenario.rows(k)], ~np.isnan(true)
        assert row["noise_cells"] == pytest.approx((read != true)[known].mean())
        assert row["omission"] == pytest.approx((read == 0)[true == 1].mean())
        assert row["omission"] > 0.2
        assert row["commission"] == 0


def warned(caplog, dataset: ImageDataset, **changes: object) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fednml"):
        build(dataset, noise=0.0, **changes)
    return [record.getMessage() for record in caplog.records]


def test_classes_with_labels_of_one_kind_are_named(caplog):
    dataset = tiny(200, 4)
    advice = "; --assume-negative takes missing cells for negatives"
    for missing_type in ("positive_only", "single_positive"):
        options = {"missing": 1.0, "missing_type": missing_type}
        names = "class_0, class_1, class_2, class_3"
        assert warned(caplog, dataset, **options) == [
            f"no site has an annotated negative of {names}{advice}"
        ]
        assert warned(caplog, dataset, **options, assume_negative=True) == []
    assert warned(caplog, dataset, missing=0.5, missing_type="positive_only") == []


def test_each_class_is_in_one_warning(caplog):
    dataset = tiny(200, 5)
    dataset.labels[:, 0] = np.nan
    dataset.labels[:, 1] = 0
    dataset.labels[:, 2] = 1
    assert warned(caplog, dataset, missing=0) == [
        "no client annotates class_0: blank in the files where it is not hidden",
        "no site has an annotated negative of class_2, or positive of class_1",
    ]  # no advice: class_2 has no missing cell that could be assumed
    assert warned(caplog, dataset, missing=0, assume_negative=True) == [
        "no site has an annotated negative of class_2, or positive of class_0, class_1"
    ]


# --- tables


def test_client_table_against_a_loop_over_cells():
    dataset = tiny(300, 5, blank=0.1)
    scenario = build(dataset, missing=2)
    table = table_of(scenario, dataset)
    assert list(table["client"]) == [0, 1, 2, 3]
    for k, row in table.iterrows():
        samples = wrong = seen = cells = 0
        names = set()
        for i in scenario.rows(k):
            wrong_here = 0
            for c in range(5):
                cells += 1
                if scenario.annotated[i, c]:
                    seen += 1
                    names.add(dataset.classes[c])
                    wrong_here += scenario.observed[i, c] != dataset.labels[i, c]
            samples += wrong_here > 0
            wrong += wrong_here
        assert row["images"] == len(scenario.rows(k))
        assert row["annotated"] == ";".join(sorted(names))
        assert row["annotated_classes"] == len(names) == 3
        assert row["noise_samples"] == pytest.approx(samples / row["images"])
        assert row["noise_cells"] == pytest.approx(wrong / seen)
        assert row["missing_cells"] == pytest.approx(1 - seen / cells)
        assert 0 < row["noise_cells"] < row["noise_samples"] <= 0.4


def test_client_table_tells_omissions_from_commissions():
    dataset = tiny(3000, 5)
    keywords = {"missing": 2, "noise_clients": "linear", "noise_low": 0.1, "noise": 0.7}
    omitted = table_of(build(dataset, noise_type="omission", **keywords), dataset)
    assert omitted["omission"].to_numpy() == pytest.approx([0.1, 0.3, 0.5, 0.7], abs=0.12)
    assert (omitted["commission"] == 0).all()
    added = table_of(build(dataset, noise_type="commission", **keywords), dataset)
    assert added["commission"].is_monotonic_increasing
    assert (added["omission"] == 0).all()


def test_instance_noise_reads_the_pixels_unless_it_is_a_dry_run():
    dataset, rng = tiny(400, 5), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (400, 8, 8, 3)).astype(np.uint8)
    one, other = (
        build(dataclasses.replace(dataset, images=images), noise_type="instance")
        for images in (pixels, pixels[::-1])
    )
    assert not np.array_equal(one.noisy, other.noisy)
    one, other = (
        build(dataclasses.replace(dataset, images=images, image_key=""), noise_type="instance")
        for images in (pixels, np.broadcast_to(np.uint8(0), pixels.shape))
    )
    assert np.array_equal(one.noisy, other.noisy)
    assert (one.noisy != dataset.labels).any()


def test_client_table_without_flaws_or_labels():
    dataset = tiny()
    table = table_of(build(dataset, noise=0.0, missing=0), dataset)
    assert (table[["noise_samples", "noise_cells", "missing_cells"]] == 0).all(axis=None)
    dataset.labels[:] = np.nan
    blank = table_of(build(dataset, missing=0), dataset)
    assert blank[["noise_cells", "omission", "commission"]].isna().all(axis=None)
    assert (blank["annotated"] == "").all()
    assert (blank["missing_cells"] == 1).all()


def test_assignment_table_as_csv():
    dataset = tiny()
    scenario = build(dataset)
    text = assignment_table(scenario, dataset).to_csv(index=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["image", "split", "client"]
    assert [row["image"] for row in rows] == list(dataset.files)
    for row, part, client in zip(rows, scenario.part, scenario.client, strict=True):
        assert row["split"] == PART_NAMES[part]
        assert row["client"] == (str(client) if part == TRAIN else "")


# --- size and real files


@pytest.mark.parametrize("split", sorted(set(SPLITS) - {"site"}))
def test_large_sets_take_seconds(split):
    labels = np.random.default_rng(0).random((100_000, 20)) < 0.1
    dataset = from_labels(labels, groups=np.arange(100_000) // 2)
    start = time.perf_counter()
    scenario = build(dataset, split=split, alpha=0.01, clients=100)
    assert np.bincount(scenario.client[scenario.client >= 0], minlength=100).min() >= 10
    assert time.perf_counter() - start < 10  # 0.3 s on an idle core


@needs_shared
@pytest.mark.parametrize("noise_type", ["paper", "symmetric", "flip"])
def test_odir_label_files(noise_type):
    folder = SHARED / "data" / "odir"
    tables = [pd.read_csv(folder / f"{name}_data.csv") for name in ("train", "test")]
    table = pd.concat(tables, ignore_index=True)
    patients = pd.read_csv(folder / "groups.csv").set_index("Image Index")["patient_id"]
    groups = patients[table["Image Index"]].to_numpy()
    part = np.repeat([TRAIN, TEST], [len(table) for table in tables]).astype(np.uint8)
    dataset = from_labels(table.iloc[:, 1:].to_numpy(), groups=groups, part=part)
    scenario = build(dataset, split="dirichlet", noise_type=noise_type)
    rates = table_of(scenario, dataset)
    assert (scenario.part == TEST).sum() == len(tables[1])
    assert abs((scenario.part == VAL).sum() - 0.1 * len(tables[0])) <= 2
    holders = pd.DataFrame({"group": groups, "client": scenario.client, "part": scenario.part})
    assert (holders.groupby("group").nunique() == 1).all(axis=None)
    assert (rates["annotated_classes"] == 4).all()
    train = scenario.part == TRAIN
    wrong = (scenario.noisy != dataset.labels)[train].any(axis=1).mean()
    assert 0.3 < wrong < 0.7


@needs_shared
def test_isic_centres_as_clients():
    folder = SHARED / "data" / "isic"
    truth = pd.read_csv(folder / "ISIC_2019_Training_GroundTruth.csv").iloc[:, 1:-1]
    about = pd.read_csv(folder / "ISIC_2019_Training_Metadata.csv")
    lesions = np.unique(about["lesion_id"].to_numpy(dtype=str), return_inverse=True)[1].reshape(-1)
    dataset = dataclasses.replace(
        from_labels(truth.to_numpy(), groups=lesions), sites=about["center"].to_numpy(dtype=str)
    )
    scenario = build(dataset, split="site")
    table = table_of(scenario, dataset)
    assert about["center"].nunique() == len(table) == 4
    train = scenario.part == TRAIN
    centres = np.array(sorted(about["center"].unique()))
    elsewhere = centres[scenario.client[train]] != about["center"][train]
    assert elsewhere.sum() <= 8  # lesions photographed at two centres stay whole
    assert pd.Series(scenario.client).groupby(lesions).nunique().max() == 1
    assert (scenario.noisy.sum(axis=1) == 1).all()  # one diagnosis an image, before and after
    with pytest.raises(UserError, match="use --clients 4"):
        build(dataset, split="site", clients=6)
