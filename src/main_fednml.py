"""The main job: command line -> config -> data -> simulation -> save/.

python src/main_fednml.py --dataset isic --noise 0.4 --missing 0.5
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from collections.abc import Sequence

from src import job
from src.catalogue import listing
from src.command_line import parse_command_line
from src.interruption import Interrupted
from utils_.errors import UserError
from utils_.script import end_with

DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    logging.basicConfig(format="main_fednml: %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the run has its own
    try:
        print(run(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        return _complain(error, BAD_INPUT)
    except job.RunFailed as error:
        return _complain(error, FAILED)
    except (Interrupted, KeyboardInterrupt) as error:
        return _complain(str(error) or "interrupted", INTERRUPTED)
    return DONE


def run(arguments: Sequence[str]) -> str:
    """Do what the command line says and return what to print."""
    settings, commands = parse_command_line(arguments)
    quiet = commands.get("quiet", False)
    if "list" in commands:
        return listing(commands["list"])
    if commands.get("dry_run"):
        if "resume" in commands:
            raise UserError("--dry-run: tells of a new run; leave out --dry-run or --resume")
        return job.show(settings)
    if "resume" in commands:
        return job.resume(Path(commands["resume"]), settings, quiet=quiet)
    return job.start(settings, quiet=quiet)


def _complain(reason: object, code: int) -> int:
    print(f"main_fednml: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    end_with(main)
