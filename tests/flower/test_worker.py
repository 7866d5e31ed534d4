"""A site's worker answers as the process itself would, and none is left that nobody needs."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
if sys.platform != "linux":
    pytest.skip("workers are for Linux", allow_module_level=True)

from fake_grid import partitions, travelled
from flwr.app import ConfigRecord, Context, Message, RecordDict

from src.flower import resident
from src.flower.client_app import answer_message
from src.flower.resident import NoWorker, WorkerGone, ask_worker, from_bytes, to_bytes
from src.flower.words import FAULT, HEAD, OVER
from utils_.folder_lock import held


def question(**told: Any) -> RecordDict:
    return RecordDict({HEAD: ConfigRecord({"settings": "{}", "classes": [], **told})})


def asked(
    folder: Path, *, watched: int = 0, idle: float = 60, seconds: float = 60, **told: Any
) -> RecordDict:
    """Ask the worker of a folder who it is; PyTorch is imported for it."""
    config = {"partition-id": 1, "num-partitions": 3}
    about = {"kind": "query.join", "config": config, "code": str(resident.ROOT)}
    about |= {"watched": watched or os.getpid(), **told.pop("about", {})}
    request = json.dumps(about).encode(), to_bytes(question(**told))
    end = time.monotonic() + seconds
    return from_bytes(ask_worker(folder, request, idle=idle, end=end))


def workers(folder: Path) -> list[int]:
    """Processes that were started for the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(folder) in words and b"src.flower.worker" in words:
            found.append(int(path.parent.name))
    return found


def gone(folder: Path, *, seconds: float = 10) -> bool:
    """Whether all of them end within the time."""
    end = time.monotonic() + seconds
    while workers(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not workers(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # A path that is far longer than that of a socket may be.
    place = tmp_path / ("a long name of a hospital's folder " * 5)
    yield resident.worker_folder(place, "north/1")
    for pid in workers(resident.worker_folder(place, "north/1")):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_stays_and_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, since each worker imports PyTorch."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert asked(folder)[HEAD] == ConfigRecord({"partition": 1, "partitions": 3})
    (first,) = workers(folder)
    assert asked(folder, about={"kind": "nonsense"})[HEAD][FAULT] == "KeyError: 'nonsense'"
    with pytest.raises(BlockingIOError), held(folder):
        pass
    assert workers(folder) == [first]

    os.kill(first, signal.SIGKILL)
    assert gone(folder)
    assert HEAD in asked(folder)  # a dead one is replaced at once
    (second,) = workers(folder)
    assert second != first

    os.kill(second, signal.SIGSTOP)
    monkeypatch.setattr(resident, "SILENCE_SECONDS", 1.0)
    with pytest.raises(WorkerGone, match="given no sign of life"):
        asked(folder)
    with pytest.raises(WorkerGone, match="has not answered in time"):
        asked(folder, seconds=0)
    monkeypatch.undo()
    assert HEAD in asked(folder)

    assert HEAD in asked(folder, **{OVER: True})
    assert gone(folder)  # the run is over


@pytest.mark.slow
def test_a_worker_goes_with_its_supernode_and_when_it_idles(folder: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as parent:
        assert HEAD in asked(folder, watched=parent.pid)
        (first,) = workers(folder)
        parent.kill()
    assert gone(folder)
    assert HEAD in asked(folder, idle=1.0, about={"kind": "nonsense"})
    assert workers(folder) != [first]
    assert gone(folder)


@pytest.mark.slow
def test_two_at_once_make_one_worker(folder: Path) -> None:
    code = "import sys; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/flower')\n"
    code += "from pathlib import Path; import test_worker as t\n"
    code += f"print(t.asked(Path({str(folder)!r}))['head'])"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=resident.ROOT) for _ in "ab"]
    answers = [process.communicate(timeout=120)[0] for process in both]
    # Who started it is gone, and so it may end; but it answered both.
    assert answers[0] == answers[1] != b""


def test_no_worker_where_none_can_be(tmp_path: Path) -> None:
    with pytest.raises(NoWorker, match="it ended with 1 at its start"):
        asked(tmp_path / "absent")
    place = resident.worker_folder(tmp_path, "north")
    (place / resident.SOCKET).mkdir()
    (place / resident.SOCKET / "in the way").touch()
    with pytest.raises(NoWorker, match="it ended with 1 at its start"):
        asked(place)


def reply_to(config: dict[str, Any], **told: Any) -> RecordDict:
    message = travelled(Message(question(**told), 7, "query.join", ttl=100))
    message.metadata.__dict__["_message_id"] = "a"
    context = Context(1, 7, config, RecordDict(), {})
    return answer_message(message, context).content


def test_a_worker_that_dies_each_time_is_a_fault_of_its_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/flwr-clientapp"])
    tries = []

    def dying(folder: Path, request: Any, **options: Any) -> bytes:
        tries.append(folder)
        raise WorkerGone("has ended while it worked")

    monkeypatch.setattr(resident, "ask_worker", dying)
    node = partitions(3, tmp_path)[999]
    said = "client 1: its worker has ended while it worked; its own log says why"
    assert reply_to(node)[HEAD][FAULT] == said
    assert tries == [tmp_path / "node1" / "worker-client%201"] * 2


@pytest.mark.parametrize("idle", [0, 5])
def test_without_a_worker_the_process_answers_itself(
    idle: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/flwr-clientapp"])
    (tmp_path / "node1").write_text("a file where the folder belongs")
    node = partitions(3, tmp_path)[999] | {"worker-idle": idle}
    assert reply_to(node)[HEAD]["partition"] == 1
    assert ("no lasting worker" in caplog.text) == (idle > 0)


def test_flower_s_process_imports_nothing_heavy() -> None:
    """It starts for each message."""
    code = "import sys, src.flower.client_app\n"
    code += "print('torch' in sys.modules, 'src.config' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=resident.ROOT, check=True
    )
    assert done.stdout.split() == [b"False", b"False"]
