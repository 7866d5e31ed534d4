"""scripts/federation.py: keys that are never overwritten, a proxy that lets little through."""

from __future__ import annotations

import hashlib
import http.server
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import ROOT

pytest.importorskip("cryptography", reason="the package cryptography comes with Flower")

from scripts import federation
from scripts.federation_code import processes, proxy, server, signing, site
from utils_.errors import UserError


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's programs are not needed here."""
    for module in (server, site):
        monkeypatch.setattr(module, "find_program", lambda name: name)


def call(*words: object) -> int:
    return federation.main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path, programs: None) -> Path:
    place = tmp_path / "federation"
    assert call("init", place, "--host", "fl.example.org", "--host", "10.0.0.5") == 0
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- keys


def test_keys_are_readable_by_their_owner_alone(folder: Path) -> None:
    assert call("add-site", folder, "north") == 0
    private = list(folder.rglob("*.key"))
    assert len(private) == 4
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in (folder, folder / "sites/north")} == {0o700}


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("add-site", folder, "north") == 0
    before = files(folder)
    for words in (("init", folder, "--host", "b.org"), ("add-site", folder, "north")):
        capsys.readouterr()
        assert call(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "is never overwritten; name a new folder" in said
    (folder / "ca.crt").unlink()  # half of it is as good as all of it
    assert call("init", folder, "--host", "b.org") == 2
    assert files(folder) == {name: b for name, b in before.items() if name != "ca.crt"}


def test_a_site_is_added_without_touching_others(folder: Path) -> None:
    assert call("add-site", folder, "north") == 0
    before = files(folder)
    assert call("add-site", folder, "south") == 0
    after = files(folder)
    assert {name: after[name] for name in before} == before
    added = {"ca.crt", "site.key", "site.pub", "trusted.yaml"}
    assert set(after) - set(before) == {f"sites/south/{name}" for name in added}
    assert after["sites/south/site.key"] != after["sites/north/site.key"]


def test_a_key_that_a_site_made_stays_there(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert call("new-key", own) == 0
    assert call("new-key", own) == 2
    assert call("add-site", folder, "east", "--public-key", own / "site.pub") == 0
    assert set(files(folder / "sites/east")) == {"ca.crt", "site.pub", "trusted.yaml"}
    assert call("add-site", folder, "west", "--public-key", own / "site.pub") == 2
    assert call("add-site", folder, "west", "--public-key", own / "site.key") == 2
    assert call("add-site", folder, "west", "--public-key", folder / "code.pub") == 2
    assert not (folder / "sites/west").exists()


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b", "é", 'a"b', "x" * 51, "a/b"])
def test_names_that_lead_elsewhere(name: str, folder: Path) -> None:
    before = files(folder)
    assert call("add-site", folder, "--", name) == 2
    assert files(folder) == before


def test_the_certificate_is_the_server_s_and_can_be_renewed(folder: Path) -> None:
    from cryptography import x509

    def names() -> list[str]:
        read = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
        found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        read.verify_directly_issued_by(authority)
        return [str(name.value) for name in found]

    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    assert names() == ["fl.example.org", "10.0.0.5", "localhost", "127.0.0.1"]
    before = (folder / "ca.crt").read_bytes()
    assert call("renew", folder, "--host", "new.org") == 0
    assert names() == ["new.org", "localhost", "127.0.0.1"]
    assert (folder / "ca.crt").read_bytes() == before
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600


def test_code_is_signed_as_flower_reads_it(folder: Path) -> None:
    internal = pytest.importorskip("flwr.supernode.start_client_internal")
    from flwr.supercore.fab import Fab

    content = b"an app"
    told = signing._verification(folder, hashlib.sha256(content).digest())
    public = (folder / "code.pub").read_text()
    trusted = {signing.key_id(public): public}
    assert internal._verify_fab(Fab("", content, told), trusted)
    assert not internal._verify_fab(Fab("", content + b"!", told), trusted)
    assert told["valid_license"]


# ---- refusals

START = ("start-site", "F", "--name", "a", "--server")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init", "F", "--host", "no host"), "--host no host: give a name or an address"),
        (("init", "F", "--host", "a", "--days", "0"), "--days 0: give a number"),
        (("start-server", "F"), "no folder of a federation's server; make one with init"),
        (
            ("start-server", "F", "--insecure", "--listen", "0.0.0.0"),
            "--insecure: without keys anybody at 0.0.0.0 could take part",
        ),
        (
            (*START, "10.0.0.5:1", "--data-dir", "D", "--insecure"),
            "--insecure: labels' counts and models would go to 10.0.0.5 in plain text",
        ),
        ((*START, "h:x", "--data-dir", "D"), "--server h:x: give HOST:PORT"),
        ((*START, "h:1", "--data-dir", "absent"), "no such folder"),
        ((*START, "h:1", "--data-dir", "D"), "ca.crt: absent"),
        (("add-site", "F", "north"), "no folder of a federation's server"),
        (("stop", "absent"), "no such folder"),
        (("begin", "F"), "invalid choice"),
    ],
)
def test_refusals_are_one_line(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    programs: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D").mkdir()
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["D"]


def test_a_node_can_be_told_all_that_is_its_own() -> None:
    pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
    from flwr.common.config import parse_config_args

    from src.flower import node

    keys = {*node.NODE_KEYS, *node.LOCAL, *node.LOCAL_FORMS}
    given = {"site", "data_dir", "partition_id", "num_partitions"}  # otherwise, or not at all
    assert {name.replace("-", "_") for name in federation.NODE_SETTINGS} == keys - given
    told = {"site": "north", "data-dir": "/a b", "worker-idle": 1, "allow-duplicates": True}
    read = parse_config_args([site.node_config(told)])
    assert read == told and read["allow-duplicates"] is True
    assert node.Node.read(read).idle == 1
    with pytest.raises(UserError, match="no quotes"):
        site.node_config({"site": 'a" partition-id="0'})


def test_what_is_absent_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.shutil, "which", lambda name, path: None)
    with pytest.raises(UserError, match=r"nginx: not found; install it .*--without-proxy"):
        proxy.find_nginx()
    monkeypatch.setattr(server.sysconfig, "get_path", lambda name: "/absent")
    with pytest.raises(UserError, match=r"flwr: not installed .*pip install"):
        server.find_program("flwr")


def test_a_key_that_others_may_read_is_refused(folder: Path) -> None:
    assert call("add-site", folder, "north") == 0
    place = folder / "sites/north"
    (place / "site.key").chmod(0o640)
    with pytest.raises(UserError, match="others may read it; chmod 600"):
        site.secure_options(place, "127.0.0.1", 1)


# ---- the proxy, with an upstream that only notes what reaches it


class Noting(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything, and notes the path."""

    protocol_version = "HTTP/1.1"
    reached: list[str] = []  # noqa: RUF012 - read by the test

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reached.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxied(folder: Path) -> Iterator[int]:
    """The port of nginx before such an upstream."""
    try:
        proxy.find_nginx()
    except UserError as error:
        pytest.skip(str(error))
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Noting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, behind = processes.free_port(), upstream.server_address[1]
    Noting.reached.clear()
    proxy.start_proxy(folder, listen="127.0.0.1", port=port, superlink=behind, most_mb=1)
    yield port
    assert call("stop", folder) == 0
    upstream.shutdown()
    upstream.server_close()


def status(folder: Path, port: int, line: str, body: bytes = b"") -> int:
    """What the proxy answers to a request, whose line goes out as it is."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        wrapped.sendall(head.encode())
        answer = wrapped.recv(100) if len(body) > 2**20 else b""
        if not answer:
            wrapped.sendall(body)
            answer = wrapped.recv(100)
    return int(answer.split()[1])


def test_the_proxy_lets_through_what_sites_need_and_nothing_else(
    folder: Path, proxied: int
) -> None:
    let, kept = "/v1/fleet/pull-messages", 403
    assert status(folder, proxied, f"POST {let}") == 200
    for path in (
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/runtime/get-nodes",
        "/",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/control/..%2ffleet/register-node",
        "/v1/fleet/register-node/../../control/start-run",
        "//v1/fleet/register-node",
        "/V1/FLEET/register-node",
        "/v1/fleet/register-node?x=/v1/control/start-run",
        "https://localhost/v1/control/start-run",
    ):
        assert status(folder, proxied, f"POST {path}") == kept, path
    assert status(folder, proxied, f"GET {let}") == kept
    assert status(folder, proxied, f"POST {let}", b"x" * 1000) == 200
    assert status(folder, proxied, f"POST {let}", b"x" * (2**20 + 1)) == 413
    assert Noting.reached == [let, let]


def test_a_site_knows_the_server_by_its_certificate(
    folder: Path, proxied: int, tmp_path: Path
) -> None:
    site.check_server("localhost", proxied, folder / "ca.crt")
    site.check_server("localhost", processes.free_port(), folder / "ca.crt")  # it may come later
    other = tmp_path / "other"
    assert call("init", other, "--host", "localhost") == 0
    with pytest.raises(UserError, match=r"is not one that .* vouches for"):
        site.check_server("localhost", proxied, other / "ca.crt")
    with pytest.raises(UserError, match="no certificate"):
        site.check_server("localhost", proxied, folder / "code.pub")
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=_greet, args=(plain,), daemon=True).start()
        with pytest.raises(UserError, match="does not speak TLS"):
            site.check_server("localhost", plain.getsockname()[1], folder / "ca.crt")


def _greet(listening: socket.socket) -> None:
    caller, _ = listening.accept()
    with caller:
        caller.recv(10)
        caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


# ---- processes


STUBBORN = """
import os, signal, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""


def test_all_that_was_started_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A child in a session of its own that does not listen to SIGTERM, too."""
    monkeypatch.setattr(processes, "GRACE", 1.0)
    program, other = tmp_path / "stubborn.py", tmp_path / "other"
    program.write_text(STUBBORN)
    other.mkdir()
    bystander = processes.start_part(other, "site", [sys.executable, str(program)])
    processes.start_part(tmp_path, "site", [sys.executable, str(program)])
    deadline = time.monotonic() + 20
    while len(processes.running(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(processes.running(tmp_path)) == 2
    assert call("status", tmp_path) == 0 and "running: site" in capsys.readouterr().out
    with pytest.raises(UserError, match="runs already; end it with stop"):
        processes.start_part(tmp_path, "site", ["true"])
    assert call("stop", tmp_path) == 0
    assert processes.running(tmp_path) == [] and processes.lives(bystander)
    assert processes.end_all(other) == []


def test_a_program_that_ends_at_once_is_told_with_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such database')"]
    number = processes.start_part(tmp_path, "superlink", command)
    log = processes.log_of(tmp_path, "superlink")
    with pytest.raises(UserError, match=r"SuperLink has ended: no such database \(see "):
        processes.wait_until(lambda: False, number, log, seconds=20, what="SuperLink")


def test_a_server_that_waits_is_ended_by_sigterm(tmp_path: Path) -> None:
    """As systemd ends it."""
    waits = "from scripts import federation as f\n"
    waits += "f.server.start_server = lambda folder, **_: f.processes.start_part("
    waits += "folder, 'superlink', ['sleep', '60'])\n"
    waits += f"raise SystemExit(f.main(['start-server', {str(tmp_path)!r}, '--wait']))"
    process = subprocess.Popen([sys.executable, "-c", waits], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not processes.running(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert processes.running(tmp_path) == []
