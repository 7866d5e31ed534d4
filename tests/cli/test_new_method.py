"""The script that begins a method: what it writes works at once, and bad input writes nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny import ROOT

from scripts import new_method

CODE = ("src", "utils_", "scripts", "tests", "docs")
FILES = ("README.md", "pyproject.toml")
NAME = "my_method"
NEW = {f"src/methods/{NAME}.py", f"tests/methods/test_{NAME}.py"}
CHANGED = {"README.md", "docs/methods.md"}


def copy(folder: Path) -> Path:
    """A checkout in ``folder``."""
    left_out = shutil.ignore_patterns("__pycache__", ".*")
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that no test changes: all of them find that nothing was written."""
    return copy(tmp_path_factory.mktemp("pristine"))


def run(root: Path, *command: Any) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(root: Path) -> dict[str, str]:
    """All text files, hidden ones too, by their paths."""
    found = (p for p in root.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".png"))
    return {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in found}


def added(before: str, after: str) -> list[str]:
    """The lines of ``after`` that ``before`` lacks, which are all that differs."""
    old = iter(before.splitlines())
    following = next(old, None)
    new = []
    for line in after.splitlines():
        if line == following:
            following = next(old, None)
        else:
            new.append(line)
    assert following is None, f"a line is gone: {following}"
    return new


# ---- what is written


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], str]]:
    """A checkout with a new method, what it held before, and what the script said."""
    root = copy(tmp_path_factory.mktemp("begun"))
    before = contents(root)
    done = run(ROOT, "scripts/new_method.py", NAME, "--root", root)
    assert done.returncode == 0, done.stderr
    yield root, before, done.stdout


@pytest.mark.slow
def test_four_files_are_written_and_named(begun: tuple[Path, dict[str, str], str]) -> None:
    root, before, said = begun
    after = contents(root)
    assert after.keys() - before.keys() == NEW
    assert {path for path, text in before.items() if after[path] != text} == CHANGED
    assert all(path in said for path in NEW | CHANGED)
    assert f"--method {NAME}" in said


@pytest.mark.slow
def test_the_row_stands_before_the_bounds(begun: tuple[Path, dict[str, str], str]) -> None:
    root, before, _ = begun
    readme = (root / "README.md").read_text(encoding="utf-8")
    (row,) = added(before["README.md"], readme)
    assert row.startswith(f"| `{NAME}` | ")
    lines = readme.splitlines()
    place = lines.index(row)
    assert lines[place + 1].startswith("| `clean` |")
    assert row.count("|") == lines[place - 1].count("|")


@pytest.mark.slow
def test_the_section_is_the_last_one(begun: tuple[Path, dict[str, str], str]) -> None:
    root, before, _ = begun
    text = (root / "docs" / "methods.md").read_text(encoding="utf-8")
    section = "\n".join(added(before["docs/methods.md"], text))
    assert text.endswith(section + "\n")
    number = re.search(r"^## (\d+)\. MyMethod$", section, re.MULTILINE)[1]
    assert f"\n## {number}. " not in before["docs/methods.md"]
    assert f"\n## {int(number) - 1}. " in before["docs/methods.md"]
    source = (root / "src" / "methods" / f"{NAME}.py").read_text(encoding="utf-8")
    assert f"docs/methods.md {number}." in source


@pytest.mark.slow
def test_what_is_written_passes_the_checks(begun: tuple[Path, dict[str, str], str]) -> None:
    root, *_ = begun
    for command in ("check", "format --check"):
        done = run(root, "-m", "ruff", *command.split(), "--no-cache", *NEW)
        assert done.returncode == 0, done.stdout
    tests = (f"tests/methods/test_{NAME}.py", "tests/cli/test_architecture.py")
    done = run(root, "-m", "pytest", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_method_is_listed(begun: tuple[Path, dict[str, str], str]) -> None:
    root, *_ = begun
    shown = forked.run(["src/main_fednml.py", "--list", "methods"], cwd=root).stdout
    assert re.search(rf"^{NAME} .*\n    strength=0\.0  weight", shown, re.MULTILINE)


@pytest.mark.slow
def test_a_second_time_it_is_refused(begun: tuple[Path, dict[str, str], str]) -> None:
    root, *_ = begun
    before = contents(root)
    done = run(ROOT, "scripts/new_method.py", NAME, "--root", root)
    assert done.returncode == 2
    assert f"src/methods/{NAME}.py exists" in done.stderr
    assert contents(root) == before


# ---- the table


TABLE = "| name | what | source |\n|---|---|---|\n| `a` | b | c |\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TABLE + "\nend\n", TABLE + "ROW\n\nend\n"),
        (TABLE, TABLE + "ROW\n"),
        (TABLE.rstrip("\n"), TABLE + "ROW\n"),
        (TABLE + "| `clean` | x | |\n| `local` | y | |\n", None),
    ],
)
def test_the_row_goes_before_clean_or_last(text: str, expected: str | None) -> None:
    found = new_method.with_row(text, "m")
    row = "| `m` | what it does, in a few words | authors, venue and year |"
    if expected is None:
        expected = TABLE + "ROW\n| `clean` | x | |\n| `local` | y | |\n"
    assert found == expected.replace("ROW", row)


def test_the_row_has_as_many_cells_as_the_head() -> None:
    two = "| name | what |\n|---|---|\n"
    four = "| name | what | source | more |\n|---|---|---|---|\n"
    for head, bars in ((two, 3), (four, 5)):
        assert new_method.with_row(head, "m").splitlines()[-1].count("|") == bars


# ---- bad input


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr of a call that ends with code 2."""
    assert new_method.main(list(map(str, arguments))) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("new_method: ") and error.count("\n") == 1
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MyMethod", "lower-case letters"),
        ("my-method", "lower-case letters"),
        ("2fast", "a letter first"),
        ("_hidden", "a letter first"),
        ("", "lower-case letters"),
        ("naïve", "lower-case letters"),
        ("two\nlines", "lower-case letters"),
        ("../escape", "lower-case letters"),
        ("a" * 31, "at most 30"),
        ("lambda", "keyword of Python"),
        ("base", "what all methods share"),
        ("fedprox", "src/methods/fedprox.py exists"),
        ("reductions", "tests/methods/test_reductions.py exists"),
        ("splits", "tests/data/test_splits.py exists"),
        ("client", "its class would be Client, which src/client.py has"),
        ("tensor", "its class would be Tensor"),
    ],
)
def test_bad_names(
    name: str, told: str, pristine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(pristine)
    error = refused(capsys, name, "--root", pristine)
    assert told in error
    assert "choose another name" in error or "such as fedprox" in error
    assert contents(pristine) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: NAME"),
        (["one", "two"], "unrecognized arguments: two"),
        (["one", "--force"], "unrecognized arguments: --force"),
    ],
)
def test_bad_options(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, *arguments)


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, NAME, "--root", tmp_path)
    assert "no src/methods/base.py in it" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_readme_without_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy(tmp_path)
    readme = root / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("| name | what |", "| x | y |"))
    before = contents(root)
    assert "README.md: no table whose head begins with" in refused(capsys, NAME, "--root", root)
    assert contents(root) == before


@pytest.mark.slow
@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    failing: int,
    error: BaseException,
    pristine: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Path] = []
    write = new_method.write_text

    def breaking(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == failing + 1:
            raise error
        write(path, text)

    before = contents(pristine)
    monkeypatch.setattr(new_method, "write_text", breaking)
    if isinstance(error, OSError):
        told = refused(capsys, NAME, "--root", pristine)
        assert str(calls[failing]) in told and "No space left" in told
    else:
        with pytest.raises(KeyboardInterrupt):
            new_method.main([NAME, "--root", str(pristine)])
    assert len(calls) > failing
    assert contents(pristine) == before
