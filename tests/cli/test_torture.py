"""scripts/torture.py: nothing is lost at twenty points, and what loses something is found."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scripts import torture
from scripts.torture_code.faults import Fault, draw_faults
from scripts.torture_code.stages import Place, Stage
from scripts.torture_code.trial import LOST, SURVIVED, TOLD, Laboratory, Outcome, find_unsynced
from utils_.files import write_text

HALFWAY = Fault("", 0.5)


@pytest.mark.slow
def test_twenty_points_are_survived(capfd: pytest.CaptureFixture) -> None:
    code = torture.main(["--points", "20", "--stages", "resume", "apply"])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    total = next(line for line in out.splitlines() if line.startswith("all"))
    assert total.split()[1:] == ["20", "20", "0", "0"], out
    assert err == ""


def make_laboratory(folder: Path, program: Callable[[Path], int]) -> tuple[Laboratory, Stage]:
    """A laboratory for one program, which is given the folder and leaves ``file`` there."""
    laboratory = Laboratory(folder)
    (folder / "template").mkdir()

    def result(place: Place) -> dict[str, str]:
        path = place.folder / "file"
        return {"file": path.read_text()} if path.exists() else {}

    def main(arguments: Sequence[str]) -> int:
        return program(Path(arguments[0]))

    stage = Stage("one", folder / "template", main, lambda p: [str(p.folder)], result)
    laboratory.learn(stage)
    return laboratory, stage


def outcome(folder: Path, program: Callable[[Path], int]) -> Outcome:
    laboratory, stage = make_laboratory(folder, program)
    return laboratory.trial(stage, [HALFWAY])


def careful(folder: Path) -> int:
    time.sleep(0.2)
    write_text(folder / "file", "whole")
    return 0


def careless(folder: Path) -> int:
    """Takes what is there for the whole."""
    path = folder / "file"
    if not path.exists():
        path.write_text("half")
        time.sleep(0.2)
        path.write_text("whole")
    return 0


def refusing(folder: Path) -> int:
    if (folder / "begun").exists():
        sys.stderr.write("one: begun is there; remove it\n")
        return 2
    (folder / "begun").write_text("")
    return careful(folder)


def failing(folder: Path) -> int:
    if (folder / "begun").exists():
        raise FileExistsError("begun")
    (folder / "begun").write_text("")
    return careful(folder)


def test_what_loses_something_is_found(tmp_path: Path) -> None:
    places = iter(tmp_path / str(number) for number in range(9))

    def verdict(program: Callable[[Path], int]) -> Outcome:
        place = next(places)
        place.mkdir()
        return outcome(place, program)

    assert verdict(careful).verdict == SURVIVED
    assert verdict(careless) == Outcome(LOST, "these files differ: file")
    assert verdict(refusing) == Outcome(TOLD, "one: begun is there; remove it")
    told = verdict(failing)
    assert told.verdict == LOST and told.told.startswith("a traceback on the next start")


def test_names_given_before_the_bytes_are_on_the_disk_are_found() -> None:
    safe = ["write\t/d/.a\t", "fsync\t/d/.a\t", "rename\t/d/.a\t/d/a", "fsync\t/d\t"]
    assert find_unsynced(safe) == []
    assert find_unsynced(safe[:1] + safe[2:]) == ["/d/a"]
    assert find_unsynced(safe[:3]) == ["/d"]
    assert find_unsynced([*safe[:3], "write\t/d/b\t", "rename\t/d\t/e", "fsync\t/\t"]) == ["/e/b"]


def test_points_are_those_of_the_seed() -> None:
    def drawn(seed: int) -> list[str]:
        points = range(300)
        return [str(f) for p in points for f in draw_faults(seed, p, operations=True)]

    assert drawn(1) == drawn(1) != drawn(2)
    words = " ".join(drawn(1))
    assert all(word in words for word in ("SIGKILL at time", "write", "fsync", "rename"))
    assert all(word in words for word in ("ENOSPC from", "EIO at", "EINTR at"))
    blind = [f for p in range(300) for f in draw_faults(1, p, operations=False)]
    assert {(fault.operation, fault.error) for fault in blind} == {("", "")}


@pytest.mark.parametrize("words", [["--points", "0"], ["--points", "x"], ["--stages", "no"]])
def test_misuse_is_one_line(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert torture.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and words[0] in err
