"""What a refusal advises works: each row is refused, and then each of its advices is followed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import tiny

from scripts import check_data
from src import job
from src.config import OPTIONS, resolve
from src.methods import method_class, method_names
from src.methods.base import parse_params
from src.methods.fednml import PUBLISHED, FedNML
from src.option import flag
from src.server import NoReportLeft
from src.supervision import LOSSES, build_loss
from utils_.datasets.listing import preparing
from utils_.errors import UserError
from utils_.finished_runs import collect

Options = dict[str, Any]
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Advice:
    """One refusal.

    Attributes:
        given: options that are refused.
        said: what the refusal must say, in this order.
        followed: changes of the options, each of which must be enough.
        spoilt: what is done to the data first; None: on synthetic data.
        mended: what is done to them as advised, after which the options are fine as they are.
    """

    given: Options
    said: Sequence[str]
    followed: Sequence[Options] = ()
    spoilt: Change | None = None
    mended: Change | None = None


# ---- ways to spoil and to mend


def nothing(data: Path) -> None:
    """The files are fine."""


def names(data: Path, *parts: str) -> list[str]:
    return [row[0] for part in parts for row in tiny.read_table(data / f"{part}_data.csv")[1:]]


def patients(ids: Callable[[int], str], *parts: str) -> Change:
    """Write groups.csv with an id for each image of these parts."""

    def write(data: Path) -> None:
        rows = [[name, ids(number)] for number, name in enumerate(names(data, *parts))]
        tiny.write_table(data / "groups.csv", [["ID", "patient_id"], *rows])

    return write


def without_test_file(data: Path) -> None:
    """All of one patient, and nothing that fixes the test part."""
    (data / "test_data.csv").unlink()
    patients(lambda number: "P1", "train")(data)


def validation_of_the_same_patients(data: Path) -> None:
    """The fault of a split by image: each patient has one eye in each file."""
    (data / "test_data.csv").unlink()
    head, *rows = tiny.read_table(data / "train_data.csv")
    tiny.write_table(data / "train_data.csv", [head, *rows[::2]])
    tiny.write_table(data / "val_data.csv", [head, *rows[1::2]])
    both = [[row[0], f"P{number // 2}"] for number, row in enumerate(rows)]
    tiny.write_table(data / "groups.csv", [["ID", "patient_id"], *both])


def split_file(*clients: int) -> Change:
    """A split of the training images among clients of these numbers."""

    def write(data: Path) -> None:
        train, test = names(data, "train"), names(data, "test")
        rows = [[name, "train", clients[i % len(clients)]] for i, name in enumerate(train)]
        rows += [[name, "test", ""] for name in test]
        tiny.write_table(data / "split.csv", [["image", "split", "client"], *rows])

    return write


KRUM, NAN = {"aggregator": "krum"}, {"attack": "nan", "clients": 4}
IMAGES = {"missing_type": "images"}

TABLE: dict[str, Advice] = {
    "weights that the small model lacks": Advice(
        {"weights": "imagenet"},
        ("use a larger --model such as resnet18", "or --weights none"),
        ({"model": "resnet18"}, {"weights": "none"}),
    ),
    "more attackers than clients": Advice(
        NAN | {"attackers": 5},
        ("there are 4 clients only; give fewer attackers or more --clients",),
        ({"attackers": 3}, {"clients": 6}),
    ),
    "trimmed to nothing": Advice(
        NAN | {"attackers": 2, "aggregator": "trimmed"},
        ("let 5 --clients report", "at most 1 --attackers"),
        ({"clients": 5}, {"attackers": 1}),
    ),
    "krum of four": Advice(
        NAN | KRUM | {"attackers": 1},
        ("let 5 --clients report", "at most 0 as --attackers", "such as median"),
        ({"clients": 5}, {"attackers": 0}, {"aggregator": "median"}),
    ),
    "krum told by its parameter": Advice(  # --attackers would change nothing
        KRUM | {"clients": 6, "aggregator_param": {"assumed_attackers": 3}},
        ("let 9 --clients report", "at most 1 as --aggregator-param assumed_attackers"),
        ({"clients": 9}, {"aggregator_param": {"assumed_attackers": 1}}),
    ),
    "krum of two": Advice(  # no number of attackers would do
        KRUM | {"clients": 2},
        ("let 3 --clients report, or take another rule such as median",),
        ({"clients": 3}, {"aggregator": "median"}),
    ),
    "multikrum keeps too many": Advice(
        {"aggregator": "multikrum", "clients": 6, "aggregator_param": {"keep": 9}},
        ("5 reports are left; give at most that",),
        ({"aggregator_param": {"keep": 5}},),
    ),
    "a class left to nobody": Advice(
        {"missing": 19, "clients": 4},
        ("use --missing 15 or less, or --clients 20 or more",),
        ({"missing": 15}, {"clients": 20}),
    ),
    "a class left to nobody by the only site": Advice(
        {"missing": 1, "clients": 1},
        ("use --missing 0, or --clients 2 or more",),
        ({"missing": 0}, {"clients": 2}),
    ),
    "more hidden than there are images": Advice(
        IMAGES | {"missing": 50},
        ("give a lower count or a share such as 0.5",),
        ({"missing": 2}, {"missing": 0.5}),
    ),
    "a share of all classes": Advice(
        {"missing": 1.0},
        ("a share below 1.0 or a whole count",),
        ({"missing": 0.5}, {"missing": 1}),
    ),
    "more clients than images": Advice(
        {"clients": 39}, ("use --clients 34 or fewer",), ({"clients": 34}, {"clients": 20})
    ),
    "more shards than images": Advice(
        {"split": "shards", "shards": 20, "clients": 4},
        ("use --shards 8 or fewer clients",),
        ({"shards": 8}, {"clients": 1}),
    ),
    "the lowest rate above the highest": Advice(
        {"noise_clients": "linear", "noise_low": 0.5, "noise": 0.2},
        ("give a rate from 0 to 0.2",),
        ({"noise_low": 0.2}, {"noise_low": 0}),
    ),
    "a split file and another split": Advice(
        {"split_file": "split.csv", "split": "phi", "clients": 2},
        ("leave out one of them",),
        ({"split_file": None}, {"split": "iid"}),
        spoilt=split_file(0, 1),
    ),
    "fewer clients in the split file": Advice(
        {"split_file": "split.csv", "clients": 4},
        ("the highest client is 2, which makes 3, not 4; use --clients 3",),
        ({"clients": 3},),
        spoilt=split_file(0, 1, 2),
    ),
    "clients numbered from 1": Advice(  # as R does it
        {"split_file": "split.csv", "clients": 3},
        ("the highest client is 3, and client 0 has no image; number the clients from 0",),
        spoilt=split_file(1, 2, 3),
        mended=split_file(0, 1, 2),
    ),
    "a client left out of the split file": Advice(
        {"split_file": "split.csv", "clients": 2},
        ("the highest client is 2, and client 1 has no image",),
        spoilt=split_file(0, 2),
        mended=split_file(0, 1),
    ),
    "one patient": Advice(  # EyePACS and APTOS have no patient column: people fill in the site
        {},
        (
            "--val-share 0.15",
            "the 48 images are of one patient",
            "check the ids",
            "or use --val-share 0",
        ),
        ({"val_share": 0, "clients": 1},),
        spoilt=patients(lambda number: "P1", "train"),
        mended=patients(lambda number: f"P{number // 2}", "train"),
    ),
    "one patient without validation": Advice(  # use --clients 1 alone was the advice
        {"val_share": 0, "clients": 3},
        (
            "the 1 patients or lesions (of 48 images)",
            "check the ids of the patients",
            "--clients 1",
        ),
        ({"clients": 1},),
        spoilt=patients(lambda number: "P1", "train"),
        mended=patients(lambda number: f"P{number // 2}", "train"),
    ),
    "one patient and no test file": Advice(  # --test-share 0, once advised, is refused
        {},
        ("--test-share 0.2", "the 48 images are of one patient", "check the ids of the patients"),
        spoilt=without_test_file,
        mended=patients(lambda number: f"P{number // 2}", "train"),
    ),
    "patients of training validated too": Advice(  # lower shares, once advised, change nothing
        {},
        ("no training image is left: the files put each one, or another of its patient", "ids"),
        spoilt=validation_of_the_same_patients,
        mended=patients(lambda number: f"P{number}", "train", "val"),
    ),
    "no class with so many positives": Advice(
        {"min_positives": 1000},
        ("give at most that",),
        ({"min_positives": 3},),
        spoilt=nothing,
    ),
    "label files for synthetic": Advice(  # --dataset forgotten: it trained on drawn images
        {"dataset": "synthetic"},
        ("holds test_data.csv, and --dataset synthetic reads no file", "add --dataset csv"),
        ({"dataset": "csv"}, {"data_dir": None}),
        spoilt=nothing,
    ),
}


def command(data: Path | None, options: Options) -> list[str]:
    """A dry run: it checks all that a run checks before the images."""
    small = {"train_images": 40, "test_images": 20, "save_dir": "save", "cache_dir": "cache"}
    base: Options = {"dataset": "synthetic"} | small
    if data is not None:
        base = {"dataset": "csv", "data_dir": data, "clients": 2} | small
    settings = tiny.SETTINGS | {"method": "fedavg"} | base | options
    param = settings.pop("aggregator_param", {})
    words = [f"{flag(name)}={value}" for name, value in settings.items() if value is not None]
    return [*words, *(f"--aggregator-param={k}={v}" for k, v in param.items()), "--dry-run"]


@pytest.mark.parametrize("name", TABLE)
def test_the_advice_works(
    name: str,
    csv_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    row = TABLE[name]
    data = None
    if row.spoilt:
        data = shutil.copytree(csv_data, tmp_path / "data")
        row.spoilt(data)
    monkeypatch.chdir(data or tmp_path)
    assert tiny.call_main(command(data, row.given)) == 2
    text = capfd.readouterr().err
    places = [text.find(words) for words in row.said]
    assert -1 not in places and places == sorted(places), text
    assert row.followed or row.mended
    for change in row.followed:
        assert tiny.call_main(command(data, row.given | change)) == 0, capfd.readouterr().err
    if row.mended:
        row.mended(data)
        assert tiny.call_main(command(data, row.given)) == 0, capfd.readouterr().err


# ---- ranges: both ends that a message names are accepted, as they are written there


def ends(text: str) -> list[str]:
    """The numbers of "give a number from A to B"."""
    return text.rpartition("give a number from ")[2].removesuffix(" or more").split(" to ")


@pytest.mark.parametrize("name", [n for n, f in OPTIONS.items() if f.metadata["low"] is not None])
def test_both_ends_of_a_range_are_accepted(name: str) -> None:
    for wrong in ("-1e9", "1e99"):
        parse = OPTIONS[name].metadata["parse"]
        wrong = wrong if parse is float else str(int(float(wrong)))
        try:
            resolve({name: wrong})
        except UserError as error:
            for end in ends(str(error)):
                OPTIONS[name].metadata["parse"](end)
                try:
                    resolve({name: end})
                except UserError as clash:  # two settings may clash, but this one is in range
                    assert "out of range; give a number" not in str(clash)


def test_both_ends_of_each_parameter_are_accepted() -> None:
    for owner in [*map(method_class, method_names()), *LOSSES.values()]:
        for entry in fields(owner.Params):
            low, high = entry.metadata.get("range", (0, 0))
            if entry.type == "bool" or low == high:
                continue
            with pytest.raises(UserError) as caught:
                parse_params(owner, {entry.name: high * 2 + 1e9})
            published = owner is FedNML and entry.name in PUBLISHED  # refused without it
            beside = {"published": True} if published else {}
            for end in ends(str(caught.value)):
                parse_params(owner, beside | {entry.name: end})


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001"])
def test_a_parameter_is_a_number_however_it_is_written(text: str) -> None:
    """YAML takes 1e-3 for a word; the refusal said to give a number, which it was."""
    assert parse_params(method_class("fedprox"), {"mu": text}).mu == 0.001
    assert build_loss("focal", {"gamma": "2e0"}).params.gamma == 2


# ---- others


@pytest.mark.parametrize("name", ["pathmnist", "ham10000", "ich"])
def test_what_is_fetched_goes_where_it_is_looked_for(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    with pytest.raises(UserError) as caught:
        tiny.load(name, data_dir=folder)
    assert f"run python scripts/prepare_data.py {name} --data-dir '{folder}'" in str(caught.value)
    assert (
        preparing(name, Path("here"))
        == f"run python scripts/prepare_data.py {name} --data-dir here"
    )


def test_fewer_workers_read_images_with_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that ran out of memory said to try --workers 1, which changed nothing."""
    asked: list[int] = []
    monkeypatch.setattr(job, "processor_count", lambda: 8)
    monkeypatch.setattr(job.datasets, "load", lambda name, options: asked.append(options.workers))
    for workers in ("auto", "1", "3", "64"):
        job.load_dataset(resolve({"workers": workers}), quiet=True)
    assert asked == [8, 1, 3, 8]


def test_a_diverged_run_is_not_said_to_go_on() -> None:
    """A resume keeps --lr, so that it would end in the same round."""
    error, folder = NoReportLeft("round 3"), Path("save/runs/x")
    said = job._remedy(error, folder, resolve({"lr": 10}))
    assert said == "a resume would end alike: start a new run with a smaller --lr than 10"
    attacked = job._remedy(error, folder, resolve({"attack": "nan", "attackers": 3}))
    assert "start a new run with fewer --attackers, or a --fraction of 1" in attacked
    other = job._remedy(ValueError("x"), folder, resolve({}))
    assert "once the cause is mended, --resume save/runs/x goes on" in other


def test_the_doctor_s_picture_goes_elsewhere(
    csv_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """In a folder that cannot be written it said "[Errno 13] Permission denied"."""
    (tmp_path / "file").write_text("in the way")
    words = ["csv", "--data-dir", str(csv_data), "--image-size", "16", "--cache-dir", str(tmp_path)]
    sheet = tmp_path / "file" / "sheet.png"
    assert check_data.main([*words, "--sheet", str(sheet)]) == 2
    said = capfd.readouterr().err
    assert f"--sheet {sheet}: " in said and "name another place" in said
    assert check_data.main([*words, "--sheet", str(tmp_path / "sheet.png")]) in (0, 1)
    assert (tmp_path / "sheet.png").exists()


def test_no_run_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or train one with python src/main_fednml\.py"):
        collect(tmp_path / "runs")
