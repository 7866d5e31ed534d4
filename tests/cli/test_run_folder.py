"""A run's folder stands for its settings, label files and weights, and says so when one changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image

from scripts.sweep_code.plan import Planned, of_other_images, plan, set_aside
from src.config import OPTIONS, resolve

Change = Callable[[Path], object]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_csv_dataset(tmp_path / "data")


def options(data: Path, **settings: object) -> list[str]:
    """One short run; what a sweep would be given, without what its grid sets."""
    small = {"rounds": 1, "warmup_rounds": 0} | settings
    return [*tiny.command(data, data.parent / "save", method="fedavg", **small)]


def planned(data: Path, **settings: object) -> Planned:
    """The run as a sweep would plan it."""
    # Sites of groups.csv would have to be as many as there are clients.
    words = [w for w in options(data, **{"split": "iid"} | settings) if w != "--quiet"]
    (run,) = plan([words])
    return run


def folder_of(data: Path, **settings: object) -> Path:
    """Where a sweep would look for the run."""
    return planned(data, **settings).folder


def rewrite(name: str, change: Callable[[str], str]) -> Change:
    """Change the text of a file."""

    def write(data: Path) -> None:
        path = data / name
        path.write_bytes(change(path.read_text()).encode())

    return write


def swap_lines(text: str) -> str:
    head, first, second, *rest = text.splitlines()
    return "\n".join([head, second, first, *rest]) + "\n"


def first_cell(text: str) -> str:
    """The first label of line 2 is turned around."""
    head, first, rest = text.split("\n", 2)
    cells = first.split(",")
    cells[1] = str(1 - int(cells[1].strip()))
    return "\n".join([head, ",".join(cells), rest])


def add_groups(data: Path) -> None:
    names = [row[0] for row in tiny.read_table(data / "train_data.csv")[1:]]
    rows = [[name, f"p{number // 2}"] for number, name in enumerate(names)]
    tiny.write_table(data / "groups.csv", [["ID", "patient_id"], *rows])


def join_sites(data: Path) -> None:
    names = [row[0] for row in tiny.read_table(data / "train_data.csv")[1:]]
    rows = [[name, f"p{number}", f"site{number % 2}"] for number, name in enumerate(names)]
    tiny.write_table(data / "groups.csv", [["ID", "patient_id", "site"], *rows])


def move_last_row(data: Path) -> None:
    """The last test image is one of training now."""
    train, test = (data / f"{part}_data.csv" for part in ("train", "test"))
    *kept, last = test.read_text().splitlines()
    train.write_text(train.read_text().rstrip("\n") + f"\n{last}\n")
    test.write_text("\n".join(kept) + "\n")


def hold_out(data: Path) -> None:
    """The last ten training images are a validation part of their own."""
    head, *rows = tiny.read_table(data / "train_data.csv")
    tiny.write_table(data / "train_data.csv", [head, *rows[:-10]])
    tiny.write_table(data / "val_data.csv", [head, *rows[-10:]])


def change_in_place(data: Path) -> None:
    """Size and date of the file stay as they were."""
    path = data / "train_data.csv"
    before, text = path.stat(), path.read_bytes()
    place = text.index(b",1") + 1
    path.write_bytes(text[:place] + b"0" + text[place + 1 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def add_class(data: Path) -> None:
    for part in ("train", "test"):
        head, *rows = tiny.read_table(data / f"{part}_data.csv")
        added = [[*row, str(number % 2)] for number, row in enumerate(rows)]
        tiny.write_table(data / f"{part}_data.csv", [[*head, "glaucoma"], *added])


# ---- names

OTHER_LABELS: dict[str, Change] = {
    "a training label": rewrite("train_data.csv", first_cell),
    "a test label": rewrite("test_data.csv", first_cell),
    "a label taken back": rewrite("train_data.csv", lambda text: text.replace(",1", ",", 1)),
    "a class renamed": lambda data: [  # MIMIC-CXR's "Pleural Effusion" is "Effusion" elsewhere
        rewrite(f"{part}_data.csv", lambda text: text.replace("class1", "Effusion"))(data)
        for part in ("train", "test")
    ],
    "an image left out": rewrite("train_data.csv", lambda t: t[: t.rindex("image")]),
    "images in another order": rewrite("train_data.csv", swap_lines),
    "patients named": add_groups,  # PadChest's ids came in a second release
    "sites named": join_sites,
    # What other programs took for what they had: data that came later (lambkin#95), another part
    # held out (nkululeko#406), files judged by their dates (Ramble#1331), more of the same set
    # (autolabel#581), and a second opinion beside the first (VinDr-CXR's consensus).
    "an image moved to training": move_last_row,
    "a part held out": hold_out,
    "a label, at the same size and date": change_in_place,
    "a class added": add_class,
    "labels verified": lambda data: shutil.copy(data / "train_data.csv", data / "true_data.csv"),
}
SAME_LABELS: dict[str, Change] = {
    "line ends of Windows": rewrite("train_data.csv", lambda text: text.replace("\n", "\r\n")),
    "a byte order mark": rewrite("train_data.csv", lambda text: "\ufeff" + text),
    "quoted names": rewrite("train_data.csv", lambda t: t.replace("image0.png", '"image0.png"')),
    "a later date": lambda data: (data / "train_data.csv").touch(),
    "a file beside": lambda data: (data / "notes.csv").write_text("what,who\n"),
}


@pytest.mark.parametrize("name", OTHER_LABELS)
def test_other_labels_are_another_run(name: str, data: Path) -> None:
    before = folder_of(data)
    OTHER_LABELS[name](data)
    assert folder_of(data) != before


@pytest.mark.parametrize("name", SAME_LABELS)
def test_the_same_labels_are_the_same_run(name: str, data: Path) -> None:
    before = folder_of(data)
    SAME_LABELS[name](data)
    assert folder_of(data) == before


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    from src.models import build_module

    return build_module("small", classes=4, weights="none", seed=seed).state_dict()


def test_other_weights_are_another_run(data: Path) -> None:
    path = data.parent / "start.pt"
    torch.save(weights_of(1), path)
    before = folder_of(data, weights=path)
    assert folder_of(data, weights=path) == before
    torch.save(weights_of(2), path)
    assert folder_of(data, weights=path) != before


def test_another_split_file_is_another_run(data: Path) -> None:
    path = data.parent / "split.csv"
    names = [r[0] for p in ("train", "test") for r in tiny.read_table(data / f"{p}_data.csv")[1:]]
    rows = [
        [n, "train" if i < 48 else "test", i % 3 if i < 48 else ""] for i, n in enumerate(names)
    ]
    tiny.write_table(path, [["image", "split", "client"], *rows])
    before = folder_of(data, split_file=path)
    rows[0][2], rows[1][2] = rows[1][2], rows[0][2]
    tiny.write_table(path, [["image", "split", "client"], *rows])
    assert folder_of(data, split_file=path) != before


def test_synthetic_runs_keep_their_names() -> None:
    """A setting that is added later leaves the hash as it was: option(..., later=True)."""
    assert resolve({}).run_name() == "synthetic-fednml-noise0.4-missing0.4-seed1-21c1a83966"
    given = {"method": "fedavg", "noise": 0.2, "missing": 0.5, "seed": 3, "rounds": 20}
    assert resolve(given).run_name() == "synthetic-fedavg-noise0.2-missing0.5-seed3-5e13903b33"


@pytest.mark.parametrize("name", ["min_positives", "split_file", "loss_param"])
def test_the_default_of_a_later_setting_leaves_the_hash(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the setting had been added now."""
    rules = OPTIONS[name].metadata
    before = resolve({}).canonical_hash()
    monkeypatch.setattr(OPTIONS[name], "metadata", {**rules, "later": True})
    added = resolve({}).canonical_hash()
    assert added != before  # here it did count before
    monkeypatch.setattr(OPTIONS[name], "metadata", {**rules, "result": False})
    assert added == resolve({}).canonical_hash()  # as if there were no such setting


# ---- a finished command, repeated


def main(arguments: list[str], capfd: pytest.CaptureFixture) -> tuple[int, str, str]:
    capfd.readouterr()
    code = tiny.call_main(arguments)
    return code, *capfd.readouterr()


def test_a_finished_command_shows_its_result_again(
    data: Path, capfd: pytest.CaptureFixture
) -> None:
    for more in ({}, {"name": "mine"}):
        first = main(options(data, **more), capfd)
        assert first[0] == 0, first[2]
        before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
        code, out, err = main(options(data, **more), capfd)
        assert (code, err) == (0, "")
        assert out.split("\n\n")[0] == first[1].split("\n\n")[0]
        assert "already finished: " in out
        assert before == {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}


def repaint(data: Path) -> None:
    """Another image under the same name and of the same size in bytes and pixels."""
    path = data / "images" / "image0.png"
    pixels = np.asarray(Image.open(path))[::-1]
    Image.fromarray(pixels).save(path)


CHANGED: dict[str, tuple[Change, str]] = {
    "labels": (OTHER_LABELS["a training label"], "the labels are not those of this run"),
    "images": (repaint, "the images are not those of this run"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_named_run_of_other_data_is_not_shown(
    name: str, data: Path, capfd: pytest.CaptureFixture
) -> None:
    change, said = CHANGED[name]
    assert main(options(data, name="mine"), capfd)[0] == 0
    change(data)
    code, out, err = main(options(data, name="mine"), capfd)
    assert (code, out) == (2, "")
    assert said in err and "choose another --name" in err
    assert main(options(data, name="other"), capfd)[0] == 0


@pytest.mark.parametrize("name", CHANGED)
def test_a_run_is_not_resumed_on_other_data(
    name: str, data: Path, capfd: pytest.CaptureFixture
) -> None:
    change, _ = CHANGED[name]
    assert main(options(data, name="mine"), capfd)[0] == 0
    folder = data.parent / "save" / "runs" / "mine"
    (folder / "DONE").unlink()
    change(data)
    code, _, err = main(["--resume", str(folder), "--quiet"], capfd)
    assert code == 2
    assert f"the {name} are not those the run began with" in err
    change(data)  # both turn it back
    assert main(["--resume", str(folder), "--quiet"], capfd)[0] == 0


def test_a_run_of_an_earlier_version(data: Path, capfd: pytest.CaptureFixture) -> None:
    """It noted one digest of settings and one of the scenario: enough to go on, not to be shown."""
    assert main(options(data, name="mine"), capfd)[0] == 0
    folder = data.parent / "save" / "runs" / "mine"
    table = json.loads((folder / "env.json").read_text())
    made = table.pop("made_from")
    table["identity"] = f"{made['settings']}-{made['scenario']}"
    (folder / "env.json").write_text(json.dumps(table))
    code, _, err = main(options(data, name="mine"), capfd)
    assert code == 2 and "the labels and images are not those of this run" in err
    (folder / "DONE").unlink()
    OTHER_LABELS["a training label"](data)
    code, _, err = main(["--resume", str(folder), "--quiet"], capfd)
    assert code == 2 and "the data, split, noise or masks are not those" in err
    OTHER_LABELS["a training label"](data)
    assert main(["--resume", str(folder), "--quiet"], capfd)[0] == 0


def test_a_resume_takes_the_same_settings_again(data: Path, capfd: pytest.CaptureFixture) -> None:
    """Who adds --resume to the command of the run has changed nothing."""
    command = options(data, name="mine")
    assert main(command, capfd)[0] == 0
    folder = data.parent / "save" / "runs" / "mine"
    (folder / "DONE").unlink()
    assert main([*command, "--resume", str(folder)], capfd)[0] == 0
    (folder / "DONE").unlink()
    code, _, err = main([*command, "--resume", str(folder), "--lr", "0.1"], capfd)
    assert code == 2 and "--lr: the run began with 0.001" in err
    anew = [*options(data, name="anew"), "--lr", "0.1"]  # as advised, without --resume
    assert main(anew, capfd)[0] == 0


# ---- sweeps


@pytest.mark.parametrize("given", [{"dataset": "odir"}, {"dataset": "isic"}, {}, {"missing": 0}])
def test_settings_read_back_are_the_same_run(given: dict[str, object]) -> None:
    """Without --noise, a run on files could not be resumed: 0 came back as 0.0."""
    config = resolve(given)
    there = resolve(yaml.safe_load(config.to_yaml()))
    assert there.canonical_hash() == config.canonical_hash()
    assert repr(there) == repr(config)  # the key of the scenario is made from these, too
    if "dataset" in given:
        assert resolve(given | {"noise": 0}).canonical_hash() == config.canonical_hash()


def test_a_sweep_runs_anew_what_has_other_labels(data: Path, capfd: pytest.CaptureFixture) -> None:
    assert f"runs/{folder_of(data).name}\n" in main([*options(data), "--dry-run"], capfd)[1]
    assert main(options(data), capfd)[0] == 0
    folder = folder_of(data)
    assert (folder / "DONE").exists()
    recorded = json.loads((folder / "env.json").read_text())["made_from"]
    assert set(recorded) == {"settings", "labels", "images", "scenario"}
    OTHER_LABELS["a training label"](data)
    assert not folder_of(data).exists()
    OTHER_LABELS["a training label"](data)
    assert folder_of(data) == folder
    assert of_other_images([planned(data)]) == []
    repaint(data)
    (stale,) = of_other_images([planned(data)])
    assert stale.folder == folder
    assert set_aside(stale) == folder.parents[1] / "stale" / folder.name
    assert not folder.exists() and of_other_images([planned(data)]) == []
