"""Three hospitals, a server and a run that outlives one of them: bash scripts/federation/demo.sh

Makes certificates and keys, starts SuperLink, the proxy and three SuperNodes, trains FedNML on
three differently annotated folders, kills one SuperNode in the middle and starts it again, prints
the table and what has left each site, ends all and checks that nothing is left.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from scripts.federation_code import processes, server
from scripts.federation_code.proxy import find_nginx
from utils_.errors import UserError
from utils_.script import Parser, end_with, exit_code
from utils_.side_by_side import signals_interrupt

HOSPITALS, VICTIM, KILLED = ("north", "south", "west"), "west", 2
NO_FINDINGS = "sex,age,reader"  # columns of the label files
LEFT = 1


def main(words: Sequence[str] | None = None) -> int:
    """Show it all; return the exit code."""
    given = sys.argv[1:] if words is None else words
    return exit_code(lambda: _show(given), name="demo", interrupted="all was ended")


def _show(words: Sequence[str]) -> int:
    parser = Parser(description=__doc__, prog="demo.sh")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="is made, and must be new")
    parser.add_argument("--rounds", type=int, default=5, help="of training (5)")
    parser.add_argument("--images", type=int, default=240, help="a third is for the test (240)")
    options = parser.parse_args(words)
    if options.folder.exists():
        raise UserError(f"{options.folder}: exists; name a new folder")
    find_nginx()
    server.find_program("flower-superlink")
    processes.refuse_other_systems()
    signals_interrupt()
    demo = Demo(options.folder.resolve(), options.rounds)
    left = LEFT
    try:
        code = demo.show(options.images)
    finally:
        left = demo.end()
    return code or min(left, LEFT)


class Demo:
    """One showing.

    Attributes:
        folder: holds ``federation/`` of the server, a folder for each site, and ``data/``.
        port: of the proxy.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.federation, self.data = folder / "federation", folder / "data"
        self.superlink = processes.free_port()
        self.port = processes.free_port()
        self._started = time.monotonic()

    def show(self, images: int) -> int:
        """All steps; return the exit code."""
        from scripts.federation_code.demo_data import write_hospitals  # torch comes with it

        self.say(
            "three hospitals and a server, with drawn images and labels of which some are wrong"
        )
        write_hospitals(self.data, count=images)
        self.call("init", self.federation, "--host", "localhost")
        for name in HOSPITALS:
            self.call("add-site", self.federation, name)
            shutil.copytree(
                self.federation / server.SITES / name, self.folder / name
            )  # handed over
        self.start()
        code = self.train()
        self.tell()
        return code

    def start(self) -> None:
        """SuperLink, the proxy and the SuperNodes."""
        ports = ("--port", self.superlink, "--proxy-port", self.port, "--listen", "127.0.0.1")
        self.call("start-server", self.federation, *ports)
        beginning = [self.begin(*self.site_words(name)) for name in HOSPITALS]
        for process in beginning:
            _done(process)

    def train(self) -> int:
        """The run, one node of which is killed in its third round and started again later."""
        settings = (
            f"method='fednml' clients={len(HOSPITALS)} rounds={self.rounds} warmup-rounds=1 "
            f"local-epochs=5 lr=0.002 model='small' image-size=32 min-clients=2 round-timeout=240 "
            f"dataset='csv' data-dir='{self.data / 'server'}' ignore-columns='{NO_FINDINGS}' "
            f"save-dir='{self.folder / 'save'}'"
        )
        run = self.begin("run", self.federation, settings, log=self.folder / "run.log")
        self.wait(lambda: f"ROUND {KILLED}]" in self.site_log(VICTIM), run)
        number = processes.kill_all(self.folder / VICTIM)
        self.say(f"kill -9 of all {number} processes of {VICTIM}, in round {KILLED}")
        self.wait(lambda: self.rounds_done() > KILLED, run)
        self.say(f"round {KILLED} is done without {VICTIM}, which starts again")
        self.call(*self.site_words(VICTIM))
        code = run.wait()
        self.say(f"the run has ended with exit code {code}")
        return code

    def tell(self) -> None:
        """The table of the run, who was left out, and what has left each site."""
        said = (self.folder / "run.log").read_text(encoding="utf-8", errors="replace")
        for line in said.splitlines():
            if "left out" in line:
                print(line)
        table = [sys.executable, str(ROOT / "scripts" / "table.py"), str(self.run_folder())]
        print(subprocess.run(table, capture_output=True, text=True, check=True).stdout)
        for name in HOSPITALS:
            print(f"what has left {name} (all of {name}'s answers, by the record it keeps itself)")
            print(departures(self.data / name / ".fednml" / "sent.csv"), end="\n\n")

    def end(self) -> int:
        """End all that runs; return how many processes go on."""
        folders = [self.federation, *(self.folder / name for name in HOSPITALS)]
        left = [
            number for folder in folders if folder.exists() for number in processes.end_all(folder)
        ]
        self.say(f"all ended, {len(left)} processes left")
        return len(left)

    def site_words(self, name: str) -> list[object]:
        """The command that starts a site."""
        at = ("--server", f"localhost:{self.port}", "--data-dir", self.data / name)
        words = ["start-site", self.folder / name, "--name", name, *at]
        return [*words, "--ignore-columns", NO_FINDINGS]

    def site_log(self, name: str) -> str:
        """What a site says."""
        return processes.log_of(self.folder / name, "site").read_text("utf-8", errors="replace")

    def run_folder(self) -> Path:
        """Of the one run."""
        return next((self.folder / "save" / "runs").iterdir())

    def rounds_done(self) -> int:
        """How many the server has finished."""
        found = [*(self.folder / "save" / "runs").glob("*/metrics.csv")]
        return len(found[0].read_text(encoding="utf-8").splitlines()) - 1 if found else 0

    def wait(self, until: Callable[[], bool], run: subprocess.Popen[str]) -> None:
        """Wait for something to happen in the run.

        Raises:
            UserError: the run ends before.
        """
        while not until():
            if run.poll() is not None:
                raise UserError(f"the run has ended too soon; see {self.folder / 'run.log'}")
            time.sleep(0.3)

    def say(self, text: str) -> None:
        """With the seconds since the start."""
        print(f"[{time.monotonic() - self._started:4.0f} s] {text}", flush=True)

    def call(self, *words: object) -> None:
        """Do a command of federation.py and wait for its end."""
        _done(self.begin(*words))

    def begin(self, *words: object, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command of federation.py as a user would."""
        line = ["scripts/federation.py", *map(str, words)]
        self.say(f"python {' '.join(map(_quoted, line))}")
        command = [sys.executable, str(ROOT / line[0]), *line[1:]]
        with (log or Path(os.devnull)).open("w") as file:
            out = file if log else None
            return subprocess.Popen(command, text=True, stdout=out, stderr=out)


def _done(process: subprocess.Popen[str]) -> None:
    if process.wait():
        raise UserError("a command has failed; see the line above")


def _quoted(word: str) -> str:
    return f'"{word}"' if "'" in word else shlex.quote(word)


def departures(ledger: Path) -> str:
    """What a site has sent, one line for each name: how often, its shape, bytes in all."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with ledger.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["message"], row["name"]].append(row)
    lines = [f"  {'message':<11} {'name':<24} {'times':>5} {'type':<8} {'shape':<8} {'bytes':>9}"]
    for (message, name), found in rows.items():
        size, last = sum(int(row["bytes"]) for row in found), found[-1]
        lines.append(
            f"  {message:<11} {name:<24} {len(found):>5} {last['type']:<8} {last['shape']:<8} "
            f"{size:>9,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    end_with(main)
