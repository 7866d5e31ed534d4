"""What is to be run: the YAML files of the protocol, checked, and the runs that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from src.config import OPTIONS, Config, resolve
from src.option import flag
from utils_.errors import UserError, as_known, nearest

OWN = ("observed", "truth")  # keys of settings.yaml and methods.yaml that are no options
NOT_FREE = ("seed", "data_seed", "data_dir", "save_dir", "cache_dir", "name", "workers")
FLAWLESS = {"noise": 0, "missing": 0}  # what a row with "truth" sees in any setting
BUDGET = ("options", "candidates", "tuning_seeds", "test_seeds", "tuning_settings")

Table = dict[str, Any]
Identity = tuple[str, int, str, int]


@dataclass(frozen=True)
class Run:
    """One run: who it is, and the options of main_fednml.py but for seeds and places."""

    method: str
    candidate: int
    setting: str
    seed: int
    options: Table
    observed: str | None
    truth: bool

    @property
    def identity(self) -> Identity:
        """What tells it from all other runs of a file of rows."""
        return self.method, self.candidate, self.setting, self.seed

    @property
    def name(self) -> str:
        return f"{self.setting}-{self.method}-c{self.candidate}-s{self.seed}"

    @cached_property
    def text(self) -> str:
        """The options as they are noted in the rows."""
        observed = [f"observed={self.observed}"] if self.observed else []
        return " ".join([*arguments(self.options), *observed])

    def config(self) -> Config:
        return resolve(self.options | {"seed": self.seed, "data_seed": self.seed})


@dataclass(frozen=True)
class Protocol:
    """The four files, checked against each other."""

    settings: dict[str, Table]
    methods: dict[str, Table]
    tuning: dict[str, list[Table]]
    options: Table
    candidates: int
    tuning_seeds: list[int]
    test_seeds: list[int]
    tuning_settings: list[str]

    def run(self, method: str, candidate: int, *, setting: str, seed: int) -> Run:
        """Options of budget < setting < method < candidate; "truth" takes all flaws away."""
        given, fixed = self.settings[setting], self.methods[method]
        truth = fixed.get("truth", False)
        parts = [self.options, given, FLAWLESS if truth else {}, fixed]
        options = merged([*parts, self.tuning[method][candidate]])
        observed = given.get("observed") and ("train_data.csv" if truth else given["observed"])
        plain = {name: value for name, value in options.items() if name not in OWN}
        return Run(method, candidate, setting, seed, plain, observed, truth)


def read_protocol(folder: Path, budget: Path) -> Protocol:
    """Read settings.yaml, methods.yaml, tuning.yaml and the budget.

    Raises:
        UserError: a file is absent or wrong, methods differ in the number of candidates, or
            tuning and test seeds overlap.
    """
    names = ("settings", "methods", "tuning")
    settings, methods, tuning = (read_table(folder / f"{name}.yaml") for name in names)
    common = read_table(budget)
    for name in BUDGET:
        if name not in common:
            raise UserError(f"{budget}: lacks '{name}'; see scripts/protocol/budget.yaml")
    for name in common:
        known(name, BUDGET, what=f"{budget}: key")
    _check_tuning(folder / "tuning.yaml", tuning, methods=methods, number=common["candidates"])
    _check_seeds(budget, common)
    for name in common["tuning_settings"]:
        known(name, settings, what=f"{budget}: setting")
    protocol = Protocol(settings, methods, tuning, **common)
    _check_options(protocol)
    return protocol


def read_table(path: Path) -> Table:
    """A YAML file that holds names and values."""
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:120]
        raise UserError(f"{path}: cannot be read ({reason}); see docs/protocol.md") from error
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path}: holds no names and values; see scripts/protocol")
    return table


def _check_tuning(path: Path, tuning: Table, *, methods: Table, number: int) -> None:
    for method in methods:
        if method not in tuning:
            raise UserError(f"{path}: lacks '{method}'; give it as many candidates as the others")
    for method, candidates in tuning.items():
        known(method, methods, what=f"{path}: method")
        if len(candidates) != len(next(iter(tuning.values()))) or len(candidates) < number:
            first = next(iter(tuning))
            raise UserError(
                f"{path}: '{method}' has {len(candidates)} candidates, '{first}' "
                f"{len(tuning[first])}, the budget {number}; give all methods the same number"
            )


def _check_seeds(path: Path, budget: Table) -> None:
    both = sorted(set(budget["tuning_seeds"]) & set(budget["test_seeds"]))
    if both:
        listed = ", ".join(map(str, both))
        raise UserError(f"{path}: seeds {listed} both tune and test; a seed may do one of the two")


def _check_options(protocol: Protocol) -> None:
    """Every option that any file gives is one of main_fednml.py, and none is set by the runs."""
    tables = [protocol.options, *protocol.settings.values(), *protocol.methods.values()]
    for table in [*tables, *(t for each in protocol.tuning.values() for t in each)]:
        for name in table:
            if name not in OWN:
                known(name, OPTIONS, what="scripts/protocol: option")
            if name in NOT_FREE:
                raise UserError(f"scripts/protocol: option '{name}' is set by compare.py itself")


def known(name: str, names: Iterable[str], *, what: str) -> None:
    """Refuse a name that does not exist, with the nearest one."""
    if name not in names:
        raise UserError(f"{what} '{name}' does not exist; {nearest(name, names)}")


def chosen(name: str, names: Iterable[str], *, what: str) -> str:
    """Return a name of the command line as it is listed, in whatever case it was given.

    Raises:
        UserError: it does not exist; the nearest one is named.
    """
    listed = as_known(name, names)
    known(listed, names, what=what)
    return listed


def merged(tables: Sequence[Mapping[str, Any]]) -> Table:
    """Later tables win; parameters are merged one by one."""
    whole: Table = {}
    for table in tables:
        for name, value in table.items():
            both = isinstance(value, dict) and isinstance(whole.get(name), dict)
            whole[name] = whole[name] | value if both else value
    return whole


def arguments(options: Mapping[str, Any]) -> list[str]:
    """The options as words of a command line, in the order of their names."""
    words: list[str] = []
    for name, value in sorted(options.items()):
        if isinstance(value, dict):
            pairs = [f"{key}={_word(each)}" for key, each in sorted(value.items())]
            words += [word for pair in pairs for word in (flag(name), pair)]
        elif isinstance(value, bool):
            words += [flag(name)] * value
        else:
            words += [flag(name), _word(value)]
    return words


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def restricted(given: Sequence[str] | None, names: Iterable[str], *, option: str) -> list[str]:
    """The names asked for, or all of them."""
    found = [chosen(name, names, what=f"{option}:") for name in given or []]
    return list(dict.fromkeys(found)) if given else list(names)


def restricted_seeds(given: Sequence[int] | None, seeds: Sequence[int], *, phase: str) -> list[int]:
    """The seeds asked for, which must be seeds of this phase, or all of them."""
    for seed in given or []:
        if seed not in seeds:
            listed = " ".join(map(str, seeds))
            raise UserError(f"--seeds {seed}: no {phase} seed; give some of {listed}")
    return list(dict.fromkeys(given)) if given else list(seeds)
