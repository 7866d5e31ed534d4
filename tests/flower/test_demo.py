"""bash scripts/federation/demo.sh, from its certificates to its last process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")

from scripts.federation_code import processes
from scripts.federation_code.proxy import find_nginx
from utils_.errors import UserError


@pytest.mark.slow
def test_the_demo_shows_what_it_says(tmp_path: Path) -> None:
    try:
        find_nginx()
    except UserError as error:
        pytest.skip(str(error))
    folder, said = tmp_path / "demo", tmp_path / "said.txt"
    command = ["bash", str(ROOT / "scripts/federation/demo.sh"), str(folder)]
    with said.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHON": sys.executable}, stdout=file, stderr=file
        )
        try:
            code = process.wait(timeout=1200)  # 300 on a machine that does nothing else
        finally:
            process.kill()
            for one in folder.iterdir():
                processes.end_all(one)
    text = said.read_text()
    assert code == 0, text
    assert "of west, in round 2" in text
    assert "round 2: client 2 (west) is left out" in text
    assert "round 4: client 2 (west)" not in text  # it is back by then
    assert "| fednml |" in text
    for name in ("north", "south", "west"):
        part = text.partition(f"what has left {name}")[2].partition("what has left")[0]
        rows = [line.split() for line in part.splitlines() if line.startswith("  train")]
        assert {row[1] for row in rows} == {
            *("head/client", "head/samples", "logs/loss", "model"),
            *("extras/positives", "extras/annotated"),
        }
        times = {int(row[2]) for row in rows}
        assert times == {5} if name != "west" else times <= {2, 3, 4}
    assert text.rstrip().endswith("all ended, 0 processes left")
    (run,) = (folder / "save" / "runs").iterdir()
    assert (run / "DONE").exists()
    assert len((run / "metrics.csv").read_text().splitlines()) == 6
