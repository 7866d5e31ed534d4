"""What a sweep goes through: settings and their values, from a YAML file or words, and all pairs.

A file holds names and values as one of ``--config``; a value that is a list is tried one by one:

    preset: compare
    method: [fedavg, fednml]
    noise, missing: [[0.2, 2], [0.4, 4]]     # these two move together
    param.mixup: [0, 1]                      # for the methods that have it
    seed: [1, 2, 3]

The same in words: method=fedavg,fednml noise,missing=0.2:2,0.4:4 param.mixup=0,1 seed=1,2,3
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from scripts.protocol_code.plan import arguments
from src.aggregator_options import RULES, Rule
from src.command_line import parse_command_line
from src.config import OPTIONS
from src.methods import method_class, method_names
from src.supervision import LOSSES
from utils_.errors import UserError, nearest

Names = tuple[str, ...]
# Which setting says who has the parameters of another one.
OWNERS = {"param": "method", "loss_param": "loss", "aggregator_param": "aggregator"}
COMMANDS = ("name", "resume", "dry_run", "list", "quiet", "config")
SEEDS = ("seed", "data_seed")
VARIABLES = {"method": "METHODS", "noise": "NOISE", "missing": "MISSING", "seed": "SEEDS"}


@dataclass
class Grid:
    """Settings of all runs, and the axes: names that move together, and their values."""

    settings: dict[str, Any] = field(default_factory=dict)
    axes: dict[Names, list[tuple[Any, ...]]] = field(default_factory=dict)

    def add(self, names: Names, values: Sequence[tuple[Any, ...]], *, where: str) -> None:
        """Add an axis, or replace the one of the same names.

        Raises:
            UserError: an unknown name, no value, or a name that is in another axis.
        """
        for name in names:
            _check_name(name, where)
        if not values:
            raise UserError(f"{where}: the grid is empty; give values or leave it out")
        taken = {name for other in self.axes for name in other if other != names} & set(names)
        if taken:
            raise UserError(f"{where}: {', '.join(sorted(taken))} is in the grid already")
        self.axes[names] = list(values)

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination; runs of one seed stay together, and in these the methods.

        A sweep that is broken off so has whole tables of fewer seeds.
        """
        order = sorted(self.axes, key=_rank)
        parts = itertools.product(*(self.axes[names] for names in order))
        told = [
            {
                n: v
                for names, values in zip(order, part, strict=True)
                for n, v in _pairs(names, values)
            }
            for part in parts
        ]
        given = [name for names in self.axes for name in names]
        return [{name: own[name] for name in given} for own in told]


def _pairs(names: Names, values: tuple[Any, ...]) -> Iterable[tuple[str, Any]]:
    return zip(names, values, strict=True)


def _rank(names: Names) -> int:
    return 0 if set(names) & set(SEEDS) else 2 if "method" in names else 1


def read_grid(path: Path) -> Grid:
    """Read a grid from a YAML file.

    Raises:
        UserError: the file is absent, not YAML, or holds an unknown name.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:120]
        raise UserError(f"{path}: cannot be read ({reason}); give a YAML file") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: holds no settings; write lines such as 'seed: [1, 2, 3]'")
    grid = Grid()
    for key, value in table.items():
        where, names = f"{path}: {key}", _names(str(key))
        if isinstance(value, list):
            grid.add(names, [_together(names, one, where) for one in value], where=where)
        elif len(names) > 1:
            raise UserError(f"{where}: give a list of lists, such as [[0.2, 2], [0.4, 4]]")
        elif "." in names[0]:  # for those that have the parameter
            grid.add(names, [(value,)], where=where)
        else:
            _check_name(names[0], where)
            grid.settings[names[0]] = value
    return grid


def add_words(grid: Grid, words: Iterable[str]) -> None:
    """Add axes such as ``method=fedavg,fednml`` or ``noise,missing=0.2:2,0.4:4``.

    Raises:
        UserError: no ``=``, an unknown name, or no value.
    """
    for word in words:
        key, equals, text = word.partition("=")
        where = f"--grid {word}"
        if not equals or not key:
            raise UserError(f"{where}: give NAME=VALUE,VALUE")
        names = _names(key)
        values = [_split(names, one, where) for one in text.split(",") if one.strip()]
        grid.settings = {n: v for n, v in grid.settings.items() if n not in names}
        grid.add(names, values, where=where)


def _names(key: str) -> Names:
    return tuple(part.strip().removeprefix("--").replace("-", "_") for part in key.split(","))


def _split(names: Names, text: str, where: str) -> tuple[Any, ...]:
    parts = text.split(":") if len(names) > 1 else [text]
    told = _together(names, parts, where)
    return tuple(_typed(name, part.strip()) for name, part in _pairs(names, told))


def _typed(name: str, text: str) -> Any:
    """What a word means: text, but for switches and parameters, which YAML reads."""
    plain = name in OPTIONS and OPTIONS[name].metadata["parse"] is not bool
    return text if plain else yaml.safe_load(text)


def _together(names: Names, value: Any, where: str) -> tuple[Any, ...]:
    """The values of names that move together."""
    values = tuple(value) if isinstance(value, list) else (value,)
    if len(values) != len(names):
        raise UserError(f"{where}: {len(names)} names and {len(values)} values; give one each")
    return values


def _check_name(name: str, where: str) -> None:
    base, dot, key = name.partition(".")
    if name in COMMANDS:
        raise UserError(f"{where}: has no place in a sweep, which names and resumes runs itself")
    if dot and base in OWNERS and key:
        return
    known = [*(n for n in OPTIONS if n != "name"), "preset", *(f"{n}.NAME" for n in OWNERS)]
    if name not in known:
        raise UserError(f"{where}: unknown setting; {nearest(name, known)}")


def command_words(grid: Grid, options: Sequence[str]) -> list[list[str]]:
    """The options of main_fednml.py of every run, without repetitions.

    Settings of the grid's file come first, then ``options``, then the run's own values. A parameter
    is left out where the method (loss, aggregator) has none of that name.

    Raises:
        UserError: an option that is in the grid too, or a parameter that nobody has.
    """
    for option in options:
        _check_free(option.partition("=")[0], grid)
    shared = [*_words(grid.settings), *options]
    fixed = parse_command_line(shared)[0]
    found, used = [], set[str]()
    for values in grid.combinations():
        own = {n: v for n, v in values.items() if "." not in n or _has(n, fixed | values)}
        used |= set(own)
        found.append((*shared, *_words(own)))
    for name in (name for names in grid.axes for name in names):
        if name not in used:
            raise UserError(f"{name}: {_nobody(name, fixed, grid)}")
    return [list(words) for words in dict.fromkeys(found)]


def _check_free(option: str, grid: Grid) -> None:
    if not option.startswith("--"):
        return
    name = option.removeprefix("--").replace("-", "_")
    if any(name in names for names in grid.axes):
        there = f' ({VARIABLES[name]}="..." of sweep.sh)' if name in VARIABLES else ""
        raise UserError(f"{option}: is in the grid; give all its values there{there}")
    if name in COMMANDS and name != "config":
        raise UserError(f"{option}: has no place in a sweep, which names and resumes runs itself")


def _words(values: Mapping[str, Any]) -> list[str]:
    """Options in the order of the names; what is None is left to the program."""
    words: list[str] = []
    for name, value in values.items():
        base, dot, key = name.partition(".")
        if value is not None:
            words += arguments({base: {key: value}} if dot else {name: value})
    return words


def _has(name: str, settings: Mapping[str, Any]) -> bool:
    return name.partition(".")[2] in _parameters(name, settings)


def _parameters(name: str, settings: Mapping[str, Any]) -> list[str]:
    """The parameters there are for ``param.X`` under these settings."""
    owner = OWNERS[name.partition(".")[0]]
    chosen = str(settings.get(owner, OPTIONS[owner].default)).lower()
    if owner == "method":
        kind: Any = method_class(chosen) if chosen in method_names() else Rule
    else:
        kind = LOSSES.get(chosen, Rule) if owner == "loss" else RULES.get(chosen, Rule)
    return [one.name for one in fields(kind.Params)]


def _nobody(name: str, fixed: Mapping[str, Any], grid: Grid) -> str:
    base, _, key = name.partition(".")
    owners = [fixed | values for values in grid.combinations()]
    there = {one for settings in owners for one in _parameters(name, settings)}
    hint = nearest(key, there) if there else "they have none"
    return f"no {OWNERS[base]} of this sweep has such a parameter; {hint}"
