"""Real processes on loopback, with TLS and keys: who is let in, and what is taken of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import ROOT

pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
pytest.importorskip("cryptography", reason="the package cryptography comes with Flower")

from scripts.federation_code import demo_data, processes, server
from scripts.federation_code.demo import NO_FINDINGS
from scripts.federation_code.proxy import find_nginx
from utils_.errors import UserError

pytestmark = pytest.mark.slow
SITES = ("north", "south", "west")
HOSTILE = "west"


@dataclass
class Federation:
    """What runs.

    Attributes:
        folder: ``server/``, a folder for each site, ``data/`` and ``save/``.
        proxy, superlink: ports.
    """

    folder: Path
    proxy: int
    superlink: int

    def call(
        self, *words: object, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Do a command of federation.py, which must end."""
        with (self.folder / "said.txt").open("w+") as said:  # no pipe: what it starts would hold it
            done = subprocess.run(
                [sys.executable, str(ROOT / "scripts/federation.py"), *map(str, words)],
                env=os.environ | (env or {}),
                stdout=said,
                stderr=said,
                timeout=1500,
                check=False,
            )
            said.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, said.read(), "")

    def start_site(self, name: str, *, called: str = "", **env: str) -> str:
        """Start a site's SuperNode; return what is said."""
        at = ("--server", f"localhost:{self.proxy}", "--data-dir", self.folder / "data" / name)
        state = ("--state-dir", self.folder / "state" / name, "--ignore-columns", NO_FINDINGS)
        who = ("--name", called or name)
        return self.call("start-site", self.folder / name, *who, *at, *state, env=env).stdout

    def settings(self, **more: object) -> str:
        """Of a small run."""
        told = {"method": "fednml", "dataset": "csv", "data-dir": self.folder / "data/server"}
        told |= {"model": "small", "save-dir": self.folder / "save", "ignore-columns": NO_FINDINGS}
        told |= {"clients": 3, "image-size": 16, "warmup-rounds": 1, "local-epochs": 1} | more
        return " ".join(
            f"{key}={value}" if isinstance(value, int) else f"{key}='{value}'"
            for key, value in told.items()
        )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """SuperLink, the proxy, and folders of three sites that are known to it."""
    try:
        find_nginx()
        server.find_program("flower-superlink")
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("real")
    demo_data.write_hospitals(folder / "data", count=90)
    federation = Federation(folder, processes.free_port(), processes.free_port())
    place = folder / "server"
    assert federation.call("init", place, "--host", "localhost").returncode == 0
    for name in SITES[:2]:
        assert federation.call("add-site", place, name).returncode == 0
    ports = ("--port", federation.superlink, "--proxy-port", federation.proxy)
    started = federation.call("start-server", place, *ports, "--listen", "127.0.0.1")
    try:
        assert started.returncode == 0, started.stdout
        added = federation.call("add-site", place, SITES[2])  # while it runs
        assert "its key is registered\n" in added.stdout, added.stdout
        for name in SITES:
            shutil.copytree(place / "sites" / name, folder / name)
        yield federation
    finally:
        for one in folder.iterdir():
            if one.is_dir():
                assert federation.call("stop", one).returncode == 0
        assert [one for one in folder.iterdir() if processes.running(one)] == []


def make_stranger(real: Federation, name: str, authority: Path) -> Path:
    """A site that has all but a key that the server knows."""
    place = real.folder / name
    assert real.call("new-key", place).returncode == 0
    shutil.copy(authority / "ca.crt", place)
    shutil.copy(real.folder / "north" / "trusted.yaml", place)
    shutil.copytree(real.folder / "data" / "north", real.folder / "data" / name)
    return place


def test_a_key_that_is_not_registered(real: Federation) -> None:
    place = make_stranger(real, "stranger", real.folder / "server")
    assert "the server does not know this key; have it registered" in real.start_site("stranger")
    assert processes.running(place) == []


def supernode(real: Federation, *options: object) -> str:
    """What Flower's own program says that gives up after two tries."""
    program = server.find_program("flower-supernode")
    command = [program, "--superlink", f"localhost:{real.proxy}", "--max-retries", "1"]
    command += ["--port", str(processes.free_port()), *map(str, options)]
    log = real.folder / "supernode.txt"
    with log.open("w") as file:
        env = os.environ | processes.QUIET | server.environment_of(real.folder / "north")
        process = subprocess.Popen(
            command, env=env, stdout=file, stderr=file, start_new_session=True
        )
        try:
            assert process.wait(timeout=90) != 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return log.read_text()


def test_a_server_with_another_certificate(real: Federation) -> None:
    other = real.folder / "other"
    assert real.call("init", other, "--host", "localhost").returncode == 0
    place = make_stranger(real, "misled", other)
    assert "is not one that" in real.start_site("misled")
    key = ("--auth-supernode-private-key", place / "site.key")
    assert "SuperNode ID" not in supernode(real, "--root-certificates", place / "ca.crt", *key)


def test_plain_text(real: Federation) -> None:
    assert "SuperNode ID" not in supernode(real, "--insecure")


def test_nobody_administers_through_the_proxy(real: Federation) -> None:
    """With the certificate that every site has, and Flower's own command."""
    home = real.folder / "attacker"
    home.mkdir()
    ca = real.folder / "north" / "ca.crt"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "localhost:{real.proxy}"\n'
        f'root-certificates = "{ca}"\n'
    )
    key = real.folder / "stranger" / "site.pub"
    for words in (["supernode", "register", str(key), "x"], ["run", str(ROOT), "x"]):
        done = subprocess.run(
            [server.find_program("flwr"), *words],
            env=os.environ | processes.QUIET | {"FLWR_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode != 0, done.stdout
    log = (real.folder / "server" / "proxy" / "access.log").read_text()
    refused = set(re.findall(r'"POST (/v1/control/\S+) HTTP/1.1" (\d+)', log))
    assert {code for _, code in refused} == {"403"} and len(refused) >= 2, refused
    superlink = processes.log_of(real.folder / "server", "superlink").read_text()
    assert superlink.count("RegisterNode] Created") == len(SITES)


def test_code_that_nobody_signed_is_run_by_no_site(real: Federation) -> None:
    """Whoever takes the server over can start runs of other code, and no site runs it."""
    connect(real)
    code = real.folder / "code"
    for name in ("src", "utils_", "scripts/presets"):
        shutil.copytree(ROOT / name, code / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, code)
    (code / "src/flower/__init__.py").write_text('"""Not what was signed."""\n')
    settings = ("--run-config", real.settings(rounds=1, **{"round-timeout": 60}))
    told = server.flwr(
        real.folder / "server", "run", str(code), server.CONNECTION, *settings, "--format", "json"
    )
    run = wait_for_end(real, told["run-id"])
    assert run["status"] == "finished:failed"
    assert "0 of 3 sites came" in run["status-details"]
    assert "could not be verified" in processes.log_of(real.folder / "north", "site").read_text()


def connect(real: Federation) -> None:
    """Have all three sites there, of which one is hostile."""
    for name in SITES:
        if not processes.running(real.folder / name):
            env = {}
            if name == HOSTILE:
                env["PYTHONPATH"] = str(Path(__file__).parent / "hostile")
                env["FEDNML_HOSTILE"] = str(real.folder / "counted")
            assert f"site {name}: connected" in real.start_site(name, **env)


def wait_for_end(real: Federation, number: str) -> dict[str, str]:
    """What SuperLink says of a run that has ended."""
    words = ("list", server.CONNECTION, "--run-id", number, "--format", "json")
    deadline = time.monotonic() + 200
    while True:
        (run,) = server.flwr(real.folder / "server", *words)["runs"]
        if run["status"].startswith("finished") or time.monotonic() > deadline:
            return dict(run)
        time.sleep(3)


def test_hostile_reports_and_a_stolen_name(real: Federation) -> None:
    """Another kind in each round; a fourth site takes part in the name of the first."""
    connect(real)
    assert "registered" in real.call("add-site", real.folder / "server", "spy").stdout
    shutil.copytree(real.folder / "server/sites/spy", real.folder / "spy")
    shutil.copytree(real.folder / "data/north", real.folder / "data/spy")
    assert "connected" in real.start_site("spy", called="north")
    patience = {"min-clients": 2, "round-timeout": 600}  # a loaded machine starts slowly
    settings = real.settings(rounds=4, **patience)
    done = real.call("run", real.folder / "server", settings)
    assert done.returncode == 0, done.stdout
    assert (
        "a node cannot take part: site spy: it answers in the name of the site north" in done.stdout
    )
    for number, why in enumerate(
        (
            r"its arrays have 16,\d+,\d+ bytes, and [\d,]+ are the most",
            "its model holds values that are not finite",
            "its array 'positives' has shape",
            "it answers for another site",
        )
    ):
        wanted = rf"round {number}: client 2 \(west\) is left out: {why}"
        assert re.search(wanted, done.stdout), wanted
    assert "client 0 (north) is left out" not in done.stdout
    sent = (real.folder / "state" / "north" / "sent.csv").read_text()
    assert sent.count(",train,") > 4 * 3 and str(real.folder) not in sent
