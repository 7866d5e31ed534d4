"""--run-config takes what the command line takes and refuses it in the same words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiny import ROOT

from src.command_line import parse_command_line
from src.config import resolve
from src.flower.run_config import read_run_config, run_config_keys
from utils_.errors import UserError


def table_in_pyproject() -> dict[str, str]:
    """Keys and values as written; Python 3.10 reads no TOML by itself."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[tool.flwr.app.config]\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^([\w-]+) = (.*)$", section, re.MULTILINE))


def test_pyproject_lists_every_key() -> None:
    """Flower takes no key that does not stand there."""
    table = table_in_pyproject()
    assert list(table) == run_config_keys()
    given = {key: value for key, value in table.items() if value != '""'}
    assert given == {"min-clients": "2", "round-timeout": "3600"}


def test_nothing_given_is_the_bare_command() -> None:
    settings, commands, patience = read_run_config(dict.fromkeys(run_config_keys()[:-2], ""))
    assert (settings, commands) == ({}, {})
    assert (patience.clients, patience.seconds) == (2, 3600)


def test_the_settings_are_those_of_the_command_line() -> None:
    told = {"method": "fednml", "noise": 0.4, "missing": 8, "assume-negative": True, "lr": 1e-5}
    told |= {"param": "mixup=0 trust=0.9", "suppress-outliers": False, "min-clients": 3}
    settings, _, patience = read_run_config(told | {"round-timeout": 60})
    line = ["--method=fednml", "--noise=0.4", "--missing=8", "--assume-negative", "--lr=1e-05"]
    assert settings == parse_command_line([*line, "--param=mixup=0", "--param=trust=0.9"])[0]
    assert resolve(settings).missing == 8
    assert (patience.clients, patience.seconds) == (3, 60)


def test_presets_files_and_resume_work_too() -> None:
    settings, commands, _ = read_run_config({"preset": "quick", "resume": "save/runs/a"})
    assert settings == parse_command_line(["--preset=quick"])[0]
    assert commands == {"resume": "save/runs/a"}


def said(act: Any) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("nois", 0.4), ("param", "margin"), ("preset", "quik"), ("config", "absent.yaml")],
)
def test_what_is_wrong_is_said_as_on_the_command_line(key: str, value: Any) -> None:
    message = said(lambda: read_run_config({key: value}))
    assert message == said(lambda: parse_command_line([f"--{key}={value}"]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("min-clients", 0), ("min-clients", "two"), ("round-timeout", 0), ("round-timeout", True)],
)
def test_own_keys_have_ranges(key: str, value: Any) -> None:
    assert said(lambda: read_run_config({key: value})).startswith(f"{key}={value}: give a number")
