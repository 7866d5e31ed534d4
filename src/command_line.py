"""The command line and YAML files: preset < --config FILE < options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

import yaml

from src.config import OPTIONS, option_groups
from src.option import flag
from utils_.errors import UserError, as_known, nearest
from utils_.script import Parser

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "scripts" / "presets"
EXAMPLES = """examples:
  python src/main_fednml.py                                       embedded data, flaws simulated
  python src/main_fednml.py --dataset csv --data-dir my_data --dry-run      what your files hold
  python src/main_fednml.py --dataset isic --noise 0.4 --missing 0.5 --method fedavg --rounds 20
  python src/main_fednml.py --resume save/runs/NAME               go on after an interruption

scripts/check_data.py looks a data set over; README.md explains the rest."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings; keys may use ``-`` or ``_``.

    Raises:
        UserError: the file is absent, not YAML, or not a table of known settings.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({_short(error)}); give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-13-45
        raise UserError(f"{path}: is not YAML ({_short(error)}); see scripts/presets") from error
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise UserError(f"{path}: holds no settings; write lines such as 'rounds: 20'")
    table = {str(key).replace("-", "_"): value for key, value in table.items()}
    for key in table:
        if key not in OPTIONS:
            raise UserError(f"{path}: unknown setting '{key}'; {nearest(key, OPTIONS)}")
    return table


def read_preset(name: str) -> dict[str, Any]:
    """Settings of ``scripts/presets/<name>.yaml``."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    name = as_known(name, known)
    if name not in known:
        raise UserError(f"--preset {name}: unknown preset; {nearest(name, known)}")
    return read_yaml(PRESETS / f"{name}.yaml")


def _short(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:120]


def build_parser() -> Parser:
    """The command line, made from :class:`Config`."""
    parser = Parser(
        prog="main_fednml.py",
        usage="%(prog)s [options]",
        description="Federated learning on images whose labels are noisy and missing at once.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    _add_commands(parser)
    for heading, names in option_groups().items():
        group = parser.add_argument_group(heading)
        for name in names:
            _add_option(group, name, OPTIONS[name])
    return parser


def _add_commands(parser: Parser) -> None:
    """What is no setting of a run: where settings come from, and what else to do than train."""
    parser.add_argument("--preset", help="settings of scripts/presets/NAME.yaml", metavar="NAME")
    parser.add_argument("--config", help="YAML file of settings", metavar="FILE")
    parser.add_argument("--resume", metavar="RUN_DIR", help="continue an interrupted run")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done")
    parser.add_argument(
        "--list", metavar="methods|losses|datasets|models", help="show what there is"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_option(parser: argparse._ActionsContainer, name: str, option_field: Field[Any]) -> None:
    rules = option_field.metadata
    if rules["parse"] is bool:
        parser.add_argument(flag(name), action="store_true", help=rules["help"])
        return
    text = rules["help"]
    if option_field.default is not None and rules["parse"] is not dict:
        text += f" (default {option_field.default})"
    if rules["choices"]:
        text += ": " + ", ".join(rules["choices"]())
    pairs = rules["parse"] is dict
    action = "append" if pairs else "store"
    metavar = "KEY=VALUE" if pairs else _metavar(name, rules)
    parser.add_argument(flag(name), action=action, help=text.replace("%", "%%"), metavar=metavar)


def _metavar(name: str, rules: Mapping[str, Any]) -> str:
    """What stands for the value in the help: NAME of a list, N, X, or DIR of data_dir."""
    if rules["choices"]:
        return "NAME"
    return {int: "N", float: "X"}.get(rules["parse"]) or name.rpartition("_")[2].upper()


def parse_command_line(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the command line into settings and commands (resume, dry_run, list, quiet).

    Raises:
        UserError: an option that does not exist or lacks its value.
    """
    parser = build_parser()
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        hint = nearest(unknown[0].split("=")[0], flags) if unknown[0].startswith("-") else ""
        hint = hint or f"options start with --, {_option_of(unknown[0])}"
        raise UserError(f"{unknown[0]}: unknown option; {hint}")
    table = vars(known)
    names: tuple[str, ...] = ("resume", "dry_run", "list", "quiet")
    commands = {name: table.pop(name) for name in names if name in table}
    pairs = [n for n in table if n in OPTIONS and OPTIONS[n].metadata["parse"] is dict]
    for name in pairs:
        table[name] = dict(_key_value(text, flag(name)) for text in table[name])
    settings: dict[str, Any] = {}
    if "preset" in table:
        settings |= read_preset(table.pop("preset"))
    if "config" in table:
        settings |= read_yaml(Path(table.pop("config")))
    for name in pairs:
        if isinstance(settings.get(name), dict):
            table[name] = settings[name] | table[name]
    return settings | table, commands


def _option_of(word: str) -> str:
    """The option that was perhaps left out before a name."""
    for name in ("dataset", "method", "model"):
        choices = OPTIONS[name].metadata["choices"]()
        if (found := as_known(word, choices)) in choices:
            return f"did you mean {flag(name)} {found}?"
    return "see --help"


def _key_value(text: str, flag: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{flag} {text}: give key=value")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{flag} {text}: give a number, true or false as its value") from error
