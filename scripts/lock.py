"""Write down the versions that are installed: python scripts/lock.py > requirements.lock

Those of requirements.txt and of all that these need, as pip reads them. Exit codes: 0, or 2 where
one is not installed.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from packaging.requirements import Requirement

from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code

HEAD = """\
# The versions with which the tests ran last ({system}, Python {python}); requirements.txt has the
# lower bounds. Written by python scripts/lock.py; to install: pip install -r requirements.lock"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; return the exit code."""
    return exit_code(lambda: _main(arguments), name="lock", interrupted="nothing is written")


def _main(arguments: Sequence[str] | None) -> int:
    parser = Parser(description="Write down the versions that are installed.")
    parser.parse_args(arguments)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    versions = installed([line for line in lines if line and not line.startswith("#")])
    print(
        HEAD.format(system=platform.system(), python=".".join(platform.python_version_tuple()[:2]))
    )
    print("\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))
    return 0


def installed(wanted: Sequence[str]) -> dict[str, str]:
    """Names and versions of the packages and of all that they need here.

    Raises:
        UserError: one is not installed.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(line) for line in wanted]
    while waiting:
        one = waiting.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            package = metadata.distribution(one.name)
        except metadata.PackageNotFoundError as error:
            raise UserError(f"{one.name}: is not installed; run bash scripts/setup.sh") from error
        found[name] = package.version
        waiting += map(Requirement, package.requires or ())
    return found


if __name__ == "__main__":
    end_with(main)
