"""The server's side: SuperLink on loopback, the proxy before it, and which sites it knows."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.federation_code import certificates as keys
from scripts.federation_code.processes import (
    QUIET,
    answers,
    log_of,
    refuse_taken,
    running,
    start_part,
    wait_until,
)
from scripts.federation_code.proxy import PROXY, find_nginx, start_proxy
from scripts.federation_code.signing import sign_code, write_trusted
from utils_.errors import UserError
from utils_.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
SUPERLINK, CONNECTION, LOOPBACK = "superlink", "hospitals", "127.0.0.1"
START_SECONDS = 90.0
SITES, REGISTERED = "sites", "registered.json"  # what sites are handed; their nodes' numbers


def make_server(folder: Path, hosts: Sequence[str], *, days: int) -> None:
    """Make the folder of a federation: authority, server's certificate, key for code.

    Raises:
        UserError: a name of the server is none, or something is there already.
    """
    find_program("flower-superlink")
    for host in hosts:
        refuse_bad_host(host)
    named = (keys.CA_KEY, keys.CA_CERTIFICATE, keys.SERVER_KEY, keys.SERVER_CERTIFICATE)
    keys.refuse_existing([folder / name for name in (*named, keys.CODE_KEY, keys.CODE_PUBLIC)])
    folder.mkdir(mode=keys.OWNER_FOLDER, parents=True, exist_ok=True)
    keys.make_authority(folder, days=10 * days)
    keys.make_server_certificate(folder, hosts, days=days)
    keys.make_code_key(folder)


def renew_certificate(folder: Path, hosts: Sequence[str], *, days: int) -> None:
    """Make a new certificate for the server by the same authority; keep the old one aside."""
    for host in hosts:
        refuse_bad_host(host)
    refuse_no_server(folder)
    for name in (keys.SERVER_KEY, keys.SERVER_CERTIFICATE):
        if (folder / name).exists():
            (folder / name).replace(folder / f"{name}.old")
    keys.make_server_certificate(folder, hosts, days=days)


def refuse_no_server(folder: Path) -> None:
    """Stop where ``init`` has not been.

    Raises:
        UserError: the folder is no server's.
    """
    if not (folder / keys.CA_CERTIFICATE).exists() or not (folder / keys.CODE_PUBLIC).exists():
        raise UserError(f"{folder}: no folder of a federation's server; make one with init")


def refuse_bad_host(host: str) -> None:
    """Stop at what is neither a name nor an address of a machine.

    Raises:
        UserError: it is neither.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        parts = host.split(".")
        letters = all(part.replace("-", "").isalnum() and part.isascii() for part in parts)
        if not letters or len(host) > 253:
            raise UserError(
                f"--host {host}: give a name or an address, such as fl.hospital.org or 10.0.0.5"
            ) from None


def add_site(folder: Path, name: str, public: Path | None) -> Path:
    """Make what a site is given, and register its key if SuperLink runs; return that folder.

    Args:
        public: the key that the site has made itself; without it a pair is made here.

    Raises:
        UserError: the name is none or taken, or the key is none or another site's.
    """
    refuse_no_server(folder)
    refuse_bad_name(name)
    place = folder / SITES / name
    keys.refuse_existing([place])
    text = keys.read_public_key(public) if public else None
    _refuse_known_key(folder, text)
    place.mkdir(mode=keys.OWNER_FOLDER, parents=True)
    if text is None:
        keys.make_site_key(place)
    else:
        keys.write_new(place / keys.SITE_PUBLIC, text, mode=keys.ANYBODY_READS)
    shutil.copy(folder / keys.CA_CERTIFICATE, place)
    write_trusted(place, (folder / keys.CODE_PUBLIC).read_text(encoding="utf-8"))
    if running(folder, SUPERLINK):
        register_sites(folder)
    return place


def refuse_bad_name(name: str) -> None:
    """Stop at a name that could lead elsewhere or be read otherwise.

    Raises:
        UserError: it has other characters, or too many.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not plain.isascii() or not plain.isalnum() or name[:1] in "-." or len(name) > 50:
        raise UserError(
            f"site {name}: a name has 1 to 50 letters, digits and -_. and begins with a letter or "
            "digit"
        )


def _refuse_known_key(folder: Path, text: bytes | None) -> None:
    for other in (folder / SITES).glob(f"*/{keys.SITE_PUBLIC}") if text else ():
        if other.read_bytes().split()[:2] == (text or b"").split()[:2]:
            raise UserError(f"the key is that of the site {other.parent.name}; make another one")


def start_server(
    folder: Path,
    *,
    port: int,
    listen: str,
    proxy_port: int,
    most_mb: int,
    with_proxy: bool,
    insecure: bool,
) -> None:
    """Start SuperLink on loopback and the proxy, and register all sites of the folder.

    Raises:
        UserError: a program or a file is absent, a port is taken, or something has ended.
    """
    if insecure and not (ipaddress.ip_address(listen).is_loopback):
        raise UserError(
            f"--insecure: without keys anybody at {listen} could take part and read all; leave it "
            "out, or stay on one machine with --listen 127.0.0.1"
        )
    superlink = find_program("flower-superlink")
    if not insecure:
        refuse_no_server(folder)
    folder.mkdir(mode=keys.OWNER_FOLDER, parents=True, exist_ok=True)
    for part in (SUPERLINK, PROXY):
        if running(folder, part):
            raise UserError(f"{folder}: its {part} runs already; end it with stop")
    refuse_taken(port, "--port")
    if with_proxy and not insecure:
        find_nginx()
        refuse_taken(proxy_port, "--proxy-port")
    _start_superlink(folder, superlink, port=port, insecure=insecure)
    if insecure:
        return
    register_sites(folder)
    sign_code(folder, ROOT)
    if with_proxy:
        start_proxy(folder, listen=listen, port=proxy_port, superlink=port, most_mb=most_mb)


def _start_superlink(folder: Path, program: str, *, port: int, insecure: bool) -> None:
    place = folder.resolve()
    command = [program, "--host", LOOPBACK, "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    command += ["--database", str(place / "superlink.db")]
    if insecure:
        command += ["--insecure"]
    else:
        command += ["--enable-supernode-auth"]
        command += ["--ssl-ca-certfile", str(place / keys.CA_CERTIFICATE)]
        command += ["--ssl-certfile", str(place / keys.SERVER_CERTIFICATE)]
        command += ["--ssl-keyfile", str(place / keys.SERVER_KEY)]
    _write_connection(folder, port=port, insecure=insecure)
    process = start_part(folder, SUPERLINK, command, environment=environment_of(folder))
    log = log_of(folder, SUPERLINK)
    wait_until(lambda: answers(port), process, log, seconds=START_SECONDS, what="SuperLink")


def _write_connection(folder: Path, *, port: int, insecure: bool) -> None:
    """``config.toml`` of Flower's command line."""
    how = "insecure = true"
    if not insecure:
        how = f"root-certificates = {json.dumps(str(folder.resolve() / keys.CA_CERTIFICATE))}"
    write_text(
        folder / "flower" / "config.toml",
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{LOOPBACK}:{port}"\n{how}\n',
    )


def register_sites(folder: Path) -> list[str]:
    """Have SuperLink know the keys in ``sites/``; return whom it did not know.

    Raises:
        UserError: it does not answer, or refuses one.
    """
    there, noted = _nodes(folder), _noted(folder)
    places = sorted(path.parent for path in (folder / SITES).glob(f"*/{keys.SITE_PUBLIC}"))
    new = [place for place in places if noted.get(place.name) not in there]
    for place in new:
        public = (str(place / keys.SITE_PUBLIC), CONNECTION, "--name", place.name)
        told = flwr(folder, "supernode", "register", *public, "--format", "json")
        noted[place.name] = str(told["node-id"])
        write_json(folder / REGISTERED, noted)
    return [place.name for place in new]


def remove_site(folder: Path, name: str) -> None:
    """Have SuperLink forget a site's key; its folder is kept aside.

    Raises:
        UserError: there is no such site, or SuperLink does not run.
    """
    place, noted = folder / SITES / name, _noted(folder)
    if not place.is_dir():
        there = ", ".join(sorted(path.name for path in (folder / SITES).glob("*"))) or "none"
        raise UserError(f"site {name}: none of this federation; there are: {there}")
    if not running(folder, SUPERLINK):
        raise UserError(f"{folder}: SuperLink does not run; start it, so that it can forget a key")
    node = noted.pop(name, None)
    if node in _nodes(folder):
        flwr(folder, "supernode", "unregister", str(node), CONNECTION, "--format", "json")
    write_json(folder / REGISTERED, noted)
    place.rename(folder / f"removed-{name}-{node}")


def _nodes(folder: Path) -> set[str]:
    """The numbers of the nodes that SuperLink knows; it tells no names here."""
    told = flwr(folder, "supernode", "list", CONNECTION, "--format", "json")
    return {str(node["node-id"]) for node in told["nodes"]}


def _noted(folder: Path) -> dict[str, str]:
    """{site: number of its node}, of those that were registered."""
    path = folder / REGISTERED
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged; restore it from a backup") from error


def flwr(folder: Path, *words: str) -> dict[str, Any]:
    """What a command of Flower answers in JSON.

    Raises:
        UserError: it fails.
    """
    done = subprocess.run(
        [find_program("flwr"), *words],
        env=os.environ | QUIET | environment_of(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        told = {"error-message": " ".join((done.stdout + done.stderr).split())[-300:]}
    if done.returncode or not told.get("success"):
        raise UserError(f"flwr {' '.join(words[:2])}: {told.get('error-message', 'failed')}")
    return told


def environment_of(folder: Path) -> dict[str, str]:
    """Of Flower's programs: a home of their own, and this Python's programs found first."""
    place = sysconfig.get_path("scripts")
    path = f"{place}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"FLWR_HOME": str(folder.resolve() / "flower"), "PATH": path}


def find_program(name: str) -> str:
    """One of Flower's programs, beside this Python.

    Raises:
        UserError: Flower is not installed there.
    """
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise UserError(
            f"{name}: not installed for {sys.executable}; make an environment with Python 3.11: "
            "python3.11 -m venv .venv-flower, then .venv-flower/bin/pip install '.[flower]'"
        )
    return str(path)
