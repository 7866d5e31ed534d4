"""Files are whole or absent; randomness depends on names; the environment is told as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROOT

from utils_.environment import describe, processor_count
from utils_.errors import UserError, nearest
from utils_.files import atomic_folder, atomic_path, write_json, write_text
from utils_.rng import derive, derive_seed


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("new, only half")
            raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from utils_.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[2])) as temporary:\n"
        "    temporary.write_text('new, only half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, ROOT, target], check=False)
    assert done.returncode == -9
    assert target.read_text() == "old"


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power could leave an empty file, or none where an older one was removed."""
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        kind = "temporary" if path.name.endswith(".tmp") else path.name
        synced.append((kind, (tmp_path / "made").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "made", "text")
    assert synced == [("temporary", False), (tmp_path.name, True)]
    (tmp_path / "made").unlink()
    synced.clear()
    with atomic_folder(tmp_path / "made") as draft:
        (draft / "below").mkdir()
        (draft / "below" / "file").write_bytes(b"of another library")
    before = [(name, False) for name in ("file", "below", "temporary")]
    assert synced == [*before, (tmp_path.name, True)]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(broken: bool) -> None:
        with atomic_folder(tmp_path / "a" / "made") as draft:
            (draft / "file").write_text("text")
            if broken:
                raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        fill(broken=True)
    assert list((tmp_path / "a").iterdir()) == []
    fill(broken=False)
    assert (tmp_path / "a" / "made" / "file").read_text() == "text"
    with pytest.raises(OSError, match="not empty"):
        fill(broken=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made"]


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path) -> None:
    """Half a cache of drawn images may be large, and nobody else looks for it."""
    old, young = tmp_path / ".file[1].123.tmp", tmp_path / ".file[1].124.tmp"
    folder, other = tmp_path / ".file[1].125.tmp", tmp_path / ".file1.126.tmp"
    for path in (old, young, other, folder / "below"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    for path in (old, other, folder):
        os.utime(path, (time.time() - 90_000,) * 2)
    write_text(tmp_path / "file[1]", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file[1]", young.name, other.name}


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "Größe 眼")
    assert (tmp_path / "file.txt").read_bytes() == "Größe 眼".encode()


def test_json_knows_no_nan(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [1.5, float("inf"), {"c": (float("-inf"), "nan")}], "d": None}
    write_json(tmp_path / "file.json", value)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1.5, None, {"c": [None, "nan"]}], "d": None}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_seeds_are_golden() -> None:
    """A change here changes every result of every earlier run."""
    assert derive_seed(1, "client", 0, 3) == 4425386831032079241
    assert derive(1, "noise").integers(1000, size=3).tolist() == [156, 154, 256]


@given(st.integers(0, 2**31), st.lists(st.integers(0, 99) | st.text("abc", max_size=3), max_size=3))
def test_seeds_depend_on_seed_and_names_alone(seed: int, names: list) -> None:
    found = derive_seed(seed, *names)
    np.random.default_rng().random()
    assert found == derive_seed(seed, *names)
    assert 0 <= found < 2**63
    assert found != derive_seed(seed + 1, *names)
    assert found != derive_seed(seed, *names, "more")


def test_seeds_do_not_collide_in_a_run() -> None:
    seeds = {derive_seed(1, "client", k, t) for k in range(50) for t in range(100)}
    assert len(seeds) == 5000


def test_the_nearest_name_is_one_line() -> None:
    assert nearest("fedmnl", ["fedavg", "fednml"]) == "did you mean 'fednml'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert issubclass(UserError, Exception)


def test_the_environment_names_versions_and_hardware() -> None:
    import torch

    facts = describe(ROOT)
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["processors"] == processor_count() == len(os.sched_getaffinity(0))
    assert facts["hardware"]
    json.dumps(facts, allow_nan=False)


def test_a_folder_without_git_has_an_unknown_commit(tmp_path: Path) -> None:
    assert describe(tmp_path)["commit"] == "unknown"
