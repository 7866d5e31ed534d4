"""Begin a new method: python scripts/new_method.py NAME

Writes src/methods/NAME.py, which is FedAvg as long as its one parameter is 0, and its test
tests/methods/test_NAME.py. Adds a row to the table of methods in README.md and a section to
docs/methods.md. Exit codes: 0 done; 2 bad input, and nothing is written.
"""

from __future__ import annotations

import argparse
import ast
import keyword
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils_.errors import UserError
from utils_.files import write_text
from utils_.script import Parser, end_with

DONE, BAD_INPUT = 0, 2
NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
TABLE, BEFORE = "| name | what |", "| `clean` |"  # the head of README.md's table; the first bound

METHOD = '''\
"""$title: what it adds to FedAvg, in one line.

Authors, venue and year; docs/methods.md $section.

Differences from the paper:

- What is left out or done otherwise, and why. Tell the paper from the code that was released.
- Which default is not the published value, and how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from src.losses import entropy
from src.methods.base import Method, param

if TYPE_CHECKING:
    from src.client import Client
    from src.messages import Broadcast
    from src.models import FlatModel
    from src.plan import Batch


class $title(Method):
    """What sets it apart, in one line."""

    paper = "authors, venue and year"
    summary = "what it does, in a few words"

    @dataclass(frozen=True)
    class Params:
        """Where the values come from. Each has a default, a meaning and a range."""

        strength: float = param(0.0, "weight of the predictions' entropy; 0 is FedAvg", 0, 100)

    params: Params

    # What is not overridden is FedAvg. docs/architecture.md lists all hooks. At a site these are
    # before_local, loss, after_backward, after_step and after_local; at the server extras, select,
    # aggregate, after_round and evaluated. What lasts lies in client.memory and server.memory,
    # what serves one round in client.cache, and never in self.

    def loss(self, client: Client, model: FlatModel, batch: Batch, message: Broadcast) -> Tensor:
        logits = model.forward(batch.images)
        # Put the method's own term in the place of this one, which only shows how it is done.
        doubt = entropy(logits).mean()
        return self.supervised(client, logits, batch) + self.params.strength * doubt
'''

TEST = '''\
"""$title: FedAvg where its parameter is 0, and something else where it is not."""

from __future__ import annotations

from typing import Any

import torch
from tiny import Trace, make_config, make_scenario, simulate

from utils_.datasets.base import ImageDataset

METHOD = "$name"


def run(method: str, dataset: ImageDataset, **param: Any) -> Trace:
    """Three sites and three rounds; a fifth of the labels wrong, half of them hidden."""
    scenario = make_scenario(dataset, mask="cells", noise=0.2)
    return simulate(make_config(method, param=param), dataset, scenario)


def test_with_a_strength_of_0_it_is_fedavg(dataset: ImageDataset) -> None:
    """To the bit, or the method differs from FedAvg by something that it does not say."""
    own, fedavg = run(METHOD, dataset, strength=0.0), run("fedavg", dataset)
    assert torch.equal(own.vector, fedavg.vector)
    assert own.crossed() == fedavg.crossed()
    assert own.labels() == fedavg.labels()


def test_the_strength_acts(dataset: ImageDataset) -> None:
    weak, strong = (run(METHOD, dataset, strength=strength) for strength in (0.0, 1.0))
    assert not torch.equal(weak.vector, strong.vector)


# What comes next: the loss against a plain rewrite of the paper's formula, as in test_fedprox.py.
'''

SECTION = """
## $section. $title

Source: [src/methods/$name.py](../src/methods/$name.py). Authors, venue and year. What it is for,
in one sentence.

The objective, and what happens before and after local training, as formulas.

| parameter | default | range | meaning |
|---|---|---|---|
| `strength` | 0 | 0 to 100 | weight of the entropy of the predictions; 0 is FedAvg |

- What differs from the paper and from the released code.

Sends and keeps nothing more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files of a new method; return the exit code."""
    try:
        options = parse(arguments)
        check_root(options.root)
        check_name(options.name, options.root)
        texts = compose(options.name, options.root)
        write_all(texts)
    except UserError as error:
        print(f"new_method: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    print(report(options.name, [path.relative_to(options.root) for path in texts]))
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options.

    Raises:
        UserError: an unknown option, or no name.
    """
    parser = Parser(description="Begin a new method: its file, its test, its place in the docs.")
    parser.add_argument("name", metavar="NAME", help="as for --method, such as fedprox")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    return parser.parse_args(arguments)


def check_root(root: Path) -> None:
    """Refuse a folder that is no checkout."""
    for part in ("src/methods/base.py", "tests/methods", "README.md", "docs/methods.md"):
        if not (root / part).exists():
            raise UserError(f"--root {root}: no {part} in it; give the folder of a checkout")


def check_name(name: str, root: Path) -> None:
    """Refuse a name that cannot be a method's, or that something has already."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r}: no name for a method; give at most 30 lower-case letters, digits and "
            "underscores, a letter first, such as fedprox"
        )
    if keyword.iskeyword(name):
        raise UserError(f"{name}: a keyword of Python; choose another name")
    if name == "base":
        raise UserError("base: the file of what all methods share; choose another name")
    taken = [root / "src" / "methods" / f"{name}.py", *root.glob(f"tests/**/test_{name}.py")]
    for path in taken:
        if path.exists():
            raise UserError(f"{name}: {path.relative_to(root)} exists; choose another name")
    for path, known in public_names(root):
        if known == title_of(name):
            raise UserError(
                f"{name}: its class would be {known}, which {path} has; choose another name"
            )


def public_names(root: Path) -> Iterator[tuple[str, str]]:
    """File and name of all functions and classes, of which no two may have the same name."""
    yield "the template's import of torch", "Tensor"
    for folder in ("src", "utils_"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    yield path.relative_to(root).as_posix(), node.name


def title_of(name: str) -> str:
    """The name of the class: ``my_method`` is ``MyMethod``."""
    return "".join(part.capitalize() for part in name.split("_"))


def compose(name: str, root: Path) -> dict[Path, str]:
    """Return what each file is to hold, new files first.

    Raises:
        UserError: README.md has no table of methods.
    """
    readme, methods = root / "README.md", root / "docs" / "methods.md"
    described = methods.read_text(encoding="utf-8")
    words = {"name": name, "title": title_of(name), "section": str(next_section(described))}
    return {
        root / "src" / "methods" / f"{name}.py": Template(METHOD).substitute(words),
        root / "tests" / "methods" / f"test_{name}.py": Template(TEST).substitute(words),
        readme: with_row(readme.read_text(encoding="utf-8"), name),
        methods: described.rstrip("\n") + "\n" + Template(SECTION).substitute(words),
    }


def next_section(text: str) -> int:
    """The number after the largest one of the numbered sections."""
    return max((int(n) for n in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)), default=0) + 1


def with_row(text: str, name: str) -> str:
    """The text with a row in the table of methods: before the bounds, or last."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith(TABLE)]
    if not heads:
        raise UserError(f"README.md: no table whose head begins with '{TABLE}'; put it back")
    end = heads[0]
    while end < len(lines) and lines[end].startswith("|") and not lines[end].startswith(BEFORE):
        end += 1
    columns = lines[heads[0]].strip().strip("|").count("|") + 1
    cells = [f"`{name}`", "what it does, in a few words", "authors, venue and year"]
    cells += [""] * columns
    row = "".join(f"| {cell} " if cell else "| " for cell in cells[:columns]) + "|"
    return "\n".join([*lines[:end], row, *lines[end:], ""])


def write_all(texts: dict[Path, str]) -> None:
    """Write every file, or leave all as they were.

    Raises:
        UserError: a file cannot be written.
    """
    before = {path: path.read_text(encoding="utf-8") for path in texts if path.exists()}
    written: list[Path] = []
    try:
        for path, text in texts.items():
            write_text(path, text)
            written.append(path)
    except BaseException as error:
        undo(written, before)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be written ({reason}); all is as before") from error
        raise


def undo(written: Sequence[Path], before: dict[Path, str]) -> None:
    """Put back what was changed and remove what is new."""
    for path in written:
        if path in before:
            write_text(path, before[path])
        else:
            path.unlink()


def report(name: str, paths: Sequence[Path]) -> str:
    """What was written, and what to do next."""
    method, test, readme, methods = paths
    return (
        f"wrote {method}\n"
        f"wrote {test}\n"
        f"added a row to {readme}\n"
        f"added a section to {methods}\n"
        f"next: put the method into {method} (docs/architecture.md lists the hooks), say in its\n"
        f"head, in {readme} and in {methods} what it is, and test its formulas. Then run\n"
        f"  python src/main_fednml.py --method {name} --param strength=0.1\n"
        f"  bash scripts/test.sh -k {name}"
    )


if __name__ == "__main__":
    end_with(main)
