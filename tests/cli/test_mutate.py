"""scripts/mutate.py: which mistakes are made, and which of them tests are said to notice."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from tiny import ROOT

from scripts import mutate
from scripts.mutate_code.mutants import Mutants
from scripts.mutate_code.verdicts import explanations, modules_and_tests

MODULE = '''\
"""Three functions."""

LIMIT = 3


def clipped(number: int) -> int:
    return LIMIT if number > LIMIT else number


def add(one: int, other: int = 1) -> int:
    return one + other


def never_called() -> int:
    return 5
'''
TESTS = """\
from three import add, clipped


def test_clipped():
    assert [clipped(number) for number in (2, 3, 7)] == [2, 3, 3]


def test_add():
    assert add(2, 2) == 4
    assert add(1) == 2
"""
SURVIVOR = "number > LIMIT -> number >= LIMIT"  # of equal numbers either may be returned


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "three.py").write_text(MODULE)
    (tmp_path / "test_three.py").write_text(TESTS)
    path = tmp_path / "plan.yaml"
    path.write_text("three.py: [test_three.py]\n")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def options(plan: Path, *more: str) -> list[str]:
    return ["--plan", str(plan), "--out", str(plan.parent / "out.csv"), *more]


def test_a_known_survivor_and_lines_without_test_are_found(
    plan: Path, capsys: pytest.CaptureFixture
) -> None:
    assert mutate.main(options(plan)) == 1
    found = {row["change"]: row for row in rows(plan.parent / "out.csv")}
    outcomes = {change: row["outcome"] for change, row in found.items()}
    assert outcomes == {
        "3 -> 4": "killed",  # the module's constant
        "return LIMIT if number > LIMIT else number -> return None": "killed",
        SURVIVOR: "survived",
        "one + other -> one - other": "killed",
        "return one + other -> return None": "killed",
        "1 -> 2": "killed",  # the default
        "return 5 -> return None": "unreached",
        "5 -> 6": "unreached",
    }
    assert found["1 -> 2"]["test"] == "test_three.py::test_add"
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "8", "5", "0", "3", "62.5%"]


def test_it_goes_on_where_it_ended_and_seeks_survivors_again(plan: Path) -> None:
    """Better tests are noticed with --again, an explained survivor is counted, and stays one."""
    out = plan.parent / "out.csv"
    assert mutate.main(options(plan, "--least", "0.5")) == 0
    whole = out.read_text()
    out.write_text(whole[: whole.rindex("return 5")])  # killed while it wrote
    assert mutate.main(options(plan, "--least", "0.5")) == 0
    assert out.read_text() == whole
    tests = TESTS + "    assert never_called() == 5\n"
    (plan.parent / "test_three.py").write_text(
        tests.replace("import add", "import never_called, add")
    )
    assert mutate.main(options(plan, "--again", "--least", "0.8")) == 0
    assert Counter(row["outcome"] for row in rows(out)) == {"killed": 7, "survived": 1}


def test_another_text_of_the_module_is_tried_anew(plan: Path) -> None:
    assert mutate.main(options(plan, "--least", "0")) == 0
    (plan.parent / "three.py").write_text(MODULE.replace("number > LIMIT", "number >= LIMIT"))
    assert mutate.main(options(plan, "--least", "0")) == 0
    changes = [row["change"] for row in rows(plan.parent / "out.csv")]
    assert "number >= LIMIT -> number > LIMIT" in changes
    assert len(changes) == 8


def test_tests_that_fail_anyway_prove_nothing(plan: Path, capsys: pytest.CaptureFixture) -> None:
    (plan.parent / "test_three.py").write_text(TESTS.replace("== 4", "== 5"))
    assert mutate.main(options(plan)) == 2
    assert "test_add fails as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modules", "thre.py"], "did you mean 'three.py'?"),
        (["--least", "2"], "give a share from 0 to 1"),
        (["--plan", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_options_are_named(
    plan: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    assert mutate.main(options(plan, *words)) == 2
    assert said in capsys.readouterr().err


def test_what_is_only_said_is_not_changed() -> None:
    text = (
        '"""Module."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os\n'
        "@dataclass(frozen=True)\nclass A:\n    n: int = field(3)\n"
        'def f(x):\n    raise ValueError(f"{x + 1}", 2)\n'
    )
    found = [mutant.change for mutant in Mutants(text, "a.py")]
    assert found == ["3 -> 4", "raise ValueError(f'{x + 1}', 2) -> pass"]


def test_every_explanation_is_of_a_mutant_that_is_there() -> None:
    folder = ROOT / "scripts" / "mutate_code"
    plan = modules_and_tests(folder / "modules.yaml")
    known = {
        (module, mutant.place, mutant.change)
        for module in plan
        for mutant in Mutants((ROOT / module).read_text(encoding="utf-8"), module)
    }
    said = explanations(folder / "explained.csv")
    assert set(said) <= known
    assert all(said.values())
