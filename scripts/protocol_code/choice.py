"""Which candidate of each method runs on the test seeds: the best by validation mAP alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scripts.protocol_code.plan import Protocol, Table, read_table
from scripts.protocol_code.rows import IDENTITY, identity, read_rows
from utils_.errors import UserError
from utils_.files import write_text

READ = (*IDENTITY, "options", "commit", "val_best_mAP")  # no test column
HEAD = """\
# Written by scripts/compare.py choose: for each method the candidate (counted from 0) with the
# highest mean of the runs' best validation mAP, and that mean for every candidate.
"""


def choose(
    protocol: Protocol, path: Path, *, methods: Sequence[str], settings: Sequence[str]
) -> Table:
    """Return what chosen.yaml holds.

    Raises:
        UserError: a run that should be compared has no row.
    """
    rows = [{name: row[name] for name in READ} for row in read_rows(path)]
    score = {identity(row): (row["options"], row["val_best_mAP"]) for row in rows}
    chosen: Table = {}
    for method in methods:
        means = [
            _mean(protocol, score, path=path, method=method, candidate=number, settings=settings)
            for number in range(protocol.candidates)
        ]
        best = int(np.argmax(means))  # the first of equals
        chosen[method] = {
            "candidate": best,
            "options": protocol.tuning[method][best],
            "val_mAP": [round(mean, 6) for mean in means],
        }
    used = {(m, s, seed) for m in methods for s in settings for seed in protocol.tuning_seeds}
    commits = {r["commit"] for r in rows if (r["method"], r["setting"], int(r["seed"])) in used}
    head = {"candidates": protocol.candidates, "settings": list(settings)}
    head |= {"seeds": protocol.tuning_seeds, "commits": sorted(commits)}
    return head | {"methods": chosen}


def _mean(
    protocol: Protocol,
    score: dict[tuple[str, int, str, int], tuple[str, str]],
    *,
    path: Path,
    method: str,
    candidate: int,
    settings: Sequence[str],
) -> float:
    """Mean over all tuning settings and seeds; a run that could not be scored counts as 0."""
    values = []
    for setting in settings:
        for seed in protocol.tuning_seeds:
            run = protocol.run(method, candidate, setting=setting, seed=seed)
            options, text = score.get(run.identity, ("", ""))
            if options != run.text:
                raise UserError(f"{path}: no row of {run.name} as it is now; run compare.py tune")
            values.append(float(text or 0))
    return float(np.mean(values))


def write_choice(path: Path, chosen: Table) -> None:
    """Write chosen.yaml; methods that were chosen before in the same way stay."""
    if path.exists():
        before = read_table(path)
        same = all(before.get(name) == chosen[name] for name in chosen if name != "methods")
        chosen["methods"] = (before["methods"] if same else {}) | chosen["methods"]
    write_text(path, HEAD + _Dumper.text(chosen))


class _Dumper(yaml.SafeDumper):
    """Writes everything out, without YAML's references to what was written above."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    @classmethod
    def text(cls, table: Table) -> str:
        return yaml.dump(table, Dumper=cls, sort_keys=False, default_flow_style=None)


def read_choice(path: Path, protocol: Protocol, methods: Sequence[str]) -> dict[str, int]:
    """The chosen candidate of each method.

    Raises:
        UserError: nothing was chosen for a method, or its candidates have changed since.
    """
    if not path.exists():
        raise UserError(f"{path}: is absent; run compare.py tune and compare.py choose")
    table = read_table(path)["methods"]
    for method in methods:
        if method not in table:
            raise UserError(f"{path}: nothing is chosen for '{method}'; run compare.py choose")
        candidates, own = protocol.tuning[method][: protocol.candidates], table[method]
        number = own["candidate"]
        changed = len(own["val_mAP"]) != len(candidates) or number >= len(candidates)
        if changed or candidates[number] != own["options"]:
            raise UserError(f"{path}: candidates of '{method}' have changed; run compare.py choose")
    return {method: table[method]["candidate"] for method in methods}
