"""The main job: command line -> config -> data -> simulation -> save/.

python src/main_fednml.py --dataset isic --noise 0.4 --missing 0.5
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from collections.abc import Sequence

from src.command_line import parse_command_line
from src.listing import listing
from utils_.errors import UserError

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        settings, commands = parse_command_line(sys.argv[1:] if arguments is None else arguments)
        if "list" in commands:
            print(listing(commands["list"]))
            return DONE
        from src import job  # torch and the rest load only when there is something to run

        if commands.get("dry_run"):
            return job.show(settings)
        if "resume" in commands:
            return job.resume(
                Path(commands["resume"]), settings, quiet=commands.get("quiet", False)
            )
        return job.start(settings, quiet=commands.get("quiet", False))
    except UserError as error:
        print(f"main_fednml: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("main_fednml: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
