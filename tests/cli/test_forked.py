"""A forked program does what one does that Python starts: tests of programs rest on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.skipif(not forked.FORKS, reason="nothing is forked here")
ENDS = {
    "nothing": "",
    "a code": "sys.exit(3)",
    "a word": "sys.exit('no luck')",
    "an error": "raise ValueError('no luck')",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a signal": "os.kill(os.getpid(), signal.SIGKILL)",
    "at exit": "atexit.register(lambda: print('bye')); print('hello')",
    "input": "print(repr(sys.stdin.read()), sys.argv[1:], __name__, os.getcwd())",
    "names": "print(sys.path[0], os.environ.get('WORD'), Path(__file__).name)",
    "ignored": "print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM))",
}
HEAD = "import atexit, os, signal, sys, time\nfrom pathlib import Path\n"


def program(checkout: Path, text: str) -> Path:
    """A script of a checkout in which there is nothing else."""
    (checkout / "src").mkdir(exist_ok=True)
    (checkout / "src" / "main_fednml.py").touch()
    script = checkout / "src" / "program.py"
    script.write_text(HEAD + text + "\n")
    return script


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_as_a_process_of_its_own_does(name: str, tmp_path: Path) -> None:
    script, words = program(tmp_path, ENDS[name]), ["one", "two words", "--ünlaut"]
    options = {"cwd": tmp_path, "env": os.environ | {"WORD": "ß"}}
    found = [forked.run([script, *words], **options)]
    for python in (sys.executable, forked.python()):
        command = [python, script, *words]
        files = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        found.append(subprocess.run(command, **options, **files))
    for done in found[1:]:
        assert (done.returncode, done.stdout) == (found[0].returncode, found[0].stdout)
        assert done.stderr.splitlines()[-1:] == found[0].stderr.splitlines()[-1:]


def test_a_stand_in_passes_signals_on_and_takes_its_process_along(tmp_path: Path) -> None:
    told = "Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    caught = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    endings = {signal.SIGTERM: 7, signal.SIGKILL: -9, signal.SIGHUP: -1}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, and so for its children
        del endings[signal.SIGHUP]
    for number, code in endings.items():
        script, pid = program(tmp_path, caught + told), tmp_path / f"{number}.txt"
        process = subprocess.Popen([forked.python(), script, pid], stdin=subprocess.DEVNULL)
        wait_for(lambda pid=pid: pid.exists() and pid.read_text())
        assert int(pid.read_text()) != process.pid
        process.send_signal(number)
        assert process.wait(60) == code
        wait_for(lambda pid=pid: not Path("/proc", pid.read_text()).exists())


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_read_at_the_start_is_not_forked(tmp_path: Path) -> None:
    script = program(tmp_path, "print(os.getpid(), sys.flags.hash_randomization)")
    other = {"env": os.environ | {"PYTHONHASHSEED": "0"}}
    with pytest.raises(forked.Refused):
        forked.run([script], **other)
    (tmp_path / "elsewhere.py").write_text("print(1)")
    with pytest.raises(forked.Refused):
        forked.run([tmp_path / "elsewhere.py"])
    done = subprocess.run([forked.python(), script], capture_output=True, text=True, **other)
    assert done.stdout.split()[1] == "0"
    shown = subprocess.run([forked.python(), "-c", "print(2)"], capture_output=True, text=True)
    assert shown.stdout == "2\n"


def test_closed_output_is_as_python_has_it(tmp_path: Path) -> None:
    script = program(tmp_path, "sys.exit(5 if sys.stdout is None else 6)")
    done = subprocess.run(["bash", "-c", f"{forked.python()} {script} >&-"])
    assert done.returncode == 5
