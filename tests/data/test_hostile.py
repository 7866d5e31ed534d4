"""Hostile input: what it names, draws, holds or says is refused or does nothing."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import struct
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from scripts import fuzz
from src.checkpoint import DAMAGED, read_sealed
from src.command_line import read_yaml
from utils_.datasets.cache.decode import problem_of
from utils_.datasets.cache.picture import Picture, to_rgb
from utils_.errors import UserError
from utils_.reporting.records import read_record
from utils_.spreadsheet import FORMULA, as_was, harmless

FORMULAS = ('=HYPERLINK("http://x")', "@SUM(1)", "+1+cmd|' /C calc'!A0", "-1+1", "'=1")


def png(
    place: Path, width: int, height: int, *, kind: int = 0, bits: int = 8, tail: bytes = b""
) -> str:
    """A file of zeros that is small however many pixels it claims; the path."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    samples = {0: 1, 2: 3, 3: 1, 6: 4}[kind]
    row = bytes(1 + width * samples * bits // 8)
    packed = zlib.compressobj(1)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head) + tail + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    place.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return str(place)


def problem(path: str) -> str:
    return problem_of(path, image_size=16, fit="crop", pixel_range="full")


# ---- images


def claiming(path: Path, height: int, *, kind: int = 0) -> str:
    """A file whose head claims more rows than there are."""
    data = bytearray(Path(png(path, 30_000, 1, kind=kind)).read_bytes())
    data[20:24] = struct.pack(">I", height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return str(path)


def test_images_of_30000_pixels(tmp_path: Path) -> None:
    """Read where memory allows, else refused by the head alone, before a pixel is decoded."""
    begun = time.perf_counter()
    assert problem(png(tmp_path / "wide.png", 30_000, 30)) == ""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, name in ((2, "RGB"), (6, "RGBA")):
        told = problem(claiming(tmp_path / "large.png", 5_900, kind=kind))
        assert told.startswith(f"177 million pixels of {name} take") and "scale it down" in told
    assert "decompression bomb" in problem(claiming(tmp_path / "square.png", 30_000))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, "kB"
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("pixel_range", ["full", "10,1000"])
def test_deep_values_are_the_same_in_blocks(
    pixel_range: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40) * 27
    whole = np.asarray(to_rgb(Picture(Image.fromarray(values)), pixel_range))
    for block in (1, 130, 2400):
        monkeypatch.setattr("utils_.datasets.cache.pixel_range.BLOCK", block)
        found = np.asarray(to_rgb(Picture(Image.fromarray(values)), pixel_range))
        assert np.array_equal(found, whole)


@pytest.mark.parametrize("name", ["images/image3.png", "train_data.csv"])
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_never_ends_is_refused(
    kind: str, name: str, tmp_path: Path, csv_data: Path, capsys: pytest.CaptureFixture
) -> None:
    """A link to such a thing comes with a folder that somebody has packed."""
    data = shutil.copytree(csv_data, tmp_path / "data")
    (data / name).unlink()
    if kind == "device":
        (data / name).symlink_to("/dev/zero")
    else:
        os.mkfifo(data / name)
    assert tiny.call_main(tiny.command(data, tmp_path / "save", cache_dir=tmp_path / "c")) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert Path(name).name in err and "is a device or a pipe" in err


def test_a_link_out_of_the_data_folder_shows_nothing_but_pixels(
    tmp_path: Path, csv_data: Path, capsys: pytest.CaptureFixture
) -> None:
    """Links are the user's own way to keep images elsewhere; what is no image is refused."""
    data = shutil.copytree(csv_data, tmp_path / "data")
    secret = tmp_path / "secret.txt"
    secret.write_text("the password")
    (data / "images" / "image3.png").unlink()
    (data / "images" / "image3.png").symlink_to(secret)
    assert tiny.call_main(tiny.command(data, tmp_path / "save", cache_dir=tmp_path / "c")) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "image3.png" in err and "password" not in err


# ---- sheets


def test_no_table_of_a_run_holds_a_formula_and_all_are_read_back(
    tmp_path: Path, csv_data: Path
) -> None:
    data = shutil.copytree(csv_data, tmp_path / "data")
    new = {f"image{n}.png": f"{text}.png".replace("/", "") for n, text in enumerate(FORMULAS)}
    for old, name in new.items():
        (data / "images" / old).rename(data / "images" / name)
    names = []
    for part in ("train_data.csv", "test_data.csv"):
        table = tiny.read_table(data / part)
        table[0][1] = FORMULAS[0]
        rows = [[new.get(row[0], row[0]), *row[1:]] for row in table]
        names += [row[0] for row in rows[1:]]
        tiny.write_table(data / part, rows)
    sites = [[name, f"@site{n % 3}"] for n, name in enumerate(names)]
    tiny.write_table(data / "groups.csv", [["image", "site"], *sites])
    settings: dict[str, Any] = {"method": "fedavg", "rounds": 1, "warmup_rounds": 0}
    assert tiny.call_main(tiny.command(data, tmp_path, name="one", split="site", **settings)) == 0
    run = tmp_path / "runs" / "one"
    for path in run.glob("*.csv"):
        for row in tiny.read_table(path):
            bad = [cell for cell in row if cell.startswith(FORMULA[:-1]) and not _number(cell)]
            assert bad == [], path.name
    record = read_record(run)
    assert sorted(record.site_names) == ["@site0", "@site1", "@site2"]
    assert record.trained[FORMULAS[0]]
    settings |= {"split_file": run / "assignments.csv", "name": "two"}
    assert tiny.call_main(tiny.command(data, tmp_path, **settings)) == 0
    again = (tmp_path / "runs/two/assignments.csv").read_bytes()
    assert again == (run / "assignments.csv").read_bytes()


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", [*FORMULAS, "'", "''=", "a", "", "'a", "\t=1"])
def test_the_apostrophe_can_be_taken_off_again(text: str) -> None:
    assert as_was(harmless(text)) == text


# ---- code


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.place,)


def test_a_pickle_as_checkpoint_or_model_runs_nothing(tmp_path: Path) -> None:
    place = tmp_path / "made"
    for name, content in (
        ("round-000001.safetensors", pickle.dumps(Evil(place))),
        ("best.safetensors", b""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        if not content:
            torch.save({"state_dict": Evil(place)}, path)
        with pytest.raises(DAMAGED):
            read_sealed(path)
    assert not place.exists()


TAGS = ("!!python/object/apply:pathlib.Path.touch [{}]", "!!python/name:os.system", "!evil {{}}")


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_of_yaml_makes_no_object(tag: str, tmp_path: Path) -> None:
    place, path = tmp_path / "made", tmp_path / "my.yaml"
    path.write_text(f"rounds: 3\nname: {tag.format(place)}\n")
    with pytest.raises(UserError, match="is not YAML"):
        read_yaml(path)
    assert not place.exists()


def test_a_bomb_of_aliases_is_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ten lines that would be three thousand million words, were they ever written out."""
    names = "abcdefghij"
    lines = ["name: &a [x, x, x, x, x, x, x, x, x]"]
    for one, two in pairwise(names):
        lines.append(f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]")
    known = [
        "name",
        "rounds",
        "lr",
        "seed",
        "clients",
        "noise",
        "missing",
        "alpha",
        "shards",
        "phi",
    ]
    text = "\n".join(lines)
    for name, letter in zip(known[1:], names[1:], strict=False):
        text = text.replace(f"{letter}: &", f"{name}: &")
    (tmp_path / "my.yaml").write_text(text)
    begun = time.perf_counter()
    assert tiny.call_main(["--config", tmp_path / "my.yaml"]) == 2
    assert time.perf_counter() - begun < 5
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and len(err) < 2000


# ---- everything at once


def test_some_of_everything(capsys: pytest.CaptureFixture) -> None:
    """scripts/fuzz.py tries far more; docs/reliability.md says how many."""
    assert fuzz.main(["--inputs", "112"]) == 0, capsys.readouterr().out
    assert "0 failed" in capsys.readouterr().out


def test_what_is_written_outside_is_found(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with fuzz.only_below(tmp_path / "in"):
        (tmp_path / "in" / "file").write_text("may be")
        for act in (
            lambda: (tmp_path / "out").write_text("no"),
            lambda: (tmp_path / "in" / "file").rename(tmp_path / "out"),
            lambda: (tmp_path / "in" / ".." / "out").mkdir(),
        ):
            with pytest.raises(fuzz.WroteOutside):
                act()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
