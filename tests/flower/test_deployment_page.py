"""docs/deployment.md, the units and the Containerfile say what scripts/federation.py takes."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import ROOT

from scripts.federation import NODE_SETTINGS, build_federation_parser

PAGE = ROOT / "docs" / "deployment.md"
PLACE = ROOT / "scripts" / "federation"
UNITS = sorted(PLACE.glob("*.service"))
CALL = re.compile(r"scripts/federation\.py ([^`\n|]+)")


def calls(path: Path) -> list[list[str]]:
    """The words after the program's name."""
    return [shlex.split(line) for line in CALL.findall(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", [PAGE, *UNITS], ids=lambda path: path.name)
def test_every_command_is_one_that_the_program_takes(path: Path) -> None:
    found = calls(path)
    assert len(found) >= (20 if path == PAGE else 2)
    for words in found:
        build_federation_parser().parse_args(words)


def test_the_page_names_every_command_and_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    parser = build_federation_parser()
    (commands,) = [a for a in parser._actions if a.choices and "init" in a.choices]
    assert {words[0] for words in calls(PAGE)} == set(commands.choices)
    options = {
        option
        for command in commands.choices.values()
        for action in command._actions
        for option in action.option_strings
    }
    told = {f"--{name}" for name in NODE_SETTINGS} | {"-h", "--help", "--days"}
    assert [option for option in sorted(options - told) if option not in text] == []
    assert [name for name in NODE_SETTINGS if f"`{name}`" not in text] == []


def test_the_containerfile_starts_the_program() -> None:
    text = (PLACE / "Containerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["python", "scripts/federation.py"]' in text
    lines = re.findall(r" fednml (start-.*)$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert build_federation_parser().parse_args(shlex.split(line)).wait


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_units_are_units(path: Path) -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    service = unit["Service"]
    assert "--wait" in service["ExecStart"] and " stop " in service["ExecStopPost"]
    assert service["SuccessExitStatus"] == "130" and service["RestartPreventExitStatus"] == "2"
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(
            ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
        )
        own = [line for line in checked.stderr.splitlines() if path.name in line]
        assert [line for line in own if "is not executable" not in line] == []


def test_the_settings_on_the_page_are_settings() -> None:
    pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
    from scripts.federation_code.runs import refuse_wrong

    runs = [words for words in calls(PAGE) if words[0] == "run"]
    assert len(runs) == 2
    for words in runs:
        assert "data-dir" in refuse_wrong(words[2])


def test_scripts_of_the_shell_parse() -> None:
    (path,) = PLACE.glob("*.sh")
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
