"""A site's side: its key, and its SuperNode."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from scripts.federation_code import certificates as keys
from scripts.federation_code.processes import (
    free_port,
    lives,
    log_of,
    refuse_taken,
    running,
    start_part,
)
from scripts.federation_code.server import environment_of, find_program, refuse_bad_name
from scripts.federation_code.signing import TRUSTED
from utils_.errors import UserError
from utils_.side_by_side import last_line

SITE = "site"
CONNECT_SECONDS = 60.0
UNKNOWN_KEY = "Exit Code: 305"  # what a SuperNode says whose key SuperLink does not know
CONNECTED = "SuperNode ID:"


def make_site(folder: Path) -> None:
    """Make a site's key where it is used, so that it never leaves the site.

    Raises:
        UserError: there is one.
    """
    find_program("flower-supernode")
    keys.refuse_existing([folder / keys.SITE_KEY, folder / keys.SITE_PUBLIC])
    folder.mkdir(mode=keys.OWNER_FOLDER, parents=True, exist_ok=True)
    keys.make_site_key(folder)


def start_site(
    folder: Path,
    name: str,
    *,
    server: str,
    settings: Mapping[str, str | int],
    port: int | None,
    insecure: bool,
) -> str:
    """Start a site's SuperNode; return how it stands.

    Args:
        server: HOST:PORT of the proxy.
        settings: of the node, see docs/deployment.md.
        port: of the SuperNode's own interface on loopback; None for a free one.

    Raises:
        UserError: a file is absent, the certificate is not that of the server, or the key is
            unknown to it.
    """
    refuse_bad_name(name)
    program, (host, number) = find_program("flower-supernode"), split_address(server)
    if running(folder, SITE):
        raise UserError(f"{folder}: its site runs already; end it with stop")
    if not Path(str(settings["data-dir"])).is_dir():
        raise UserError(f"--data-dir {settings['data-dir']}: no such folder")
    if port is not None:
        refuse_taken(port, "--port")
    command = [program, "--superlink", server, "--port", str(port or free_port())]
    command += ["--node-config", node_config({"site": name, **settings})]
    if insecure:
        refuse_far(host)
        folder.mkdir(mode=keys.OWNER_FOLDER, parents=True, exist_ok=True)
        command += ["--insecure"]
    else:
        command += secure_options(folder, host, number)
    log = log_of(folder, SITE)
    before = log.stat().st_size if log.exists() else 0
    process = start_part(folder, SITE, command, environment=environment_of(folder))
    return _begun(log, process, before)


def secure_options(folder: Path, host: str, port: int) -> list[str]:
    """Options of the SuperNode for certificate, key and signed code, checked beforehand.

    Raises:
        UserError: a file is absent, or the server is not the one of the certificate.
    """
    for name in (keys.CA_CERTIFICATE, keys.SITE_KEY, TRUSTED):
        if not (folder / name).exists():
            raise UserError(
                f"{folder / name}: absent; {keys.CA_CERTIFICATE} and {TRUSTED} come from the "
                f"server's add-site, {keys.SITE_KEY} from there or from new-key"
            )
    private = (folder / keys.SITE_KEY).stat()
    if private.st_mode & 0o077:
        raise UserError(f"{folder / keys.SITE_KEY}: others may read it; chmod 600 it")
    check_server(host, port, folder / keys.CA_CERTIFICATE)
    place = folder.resolve()
    options = ["--root-certificates", str(place / keys.CA_CERTIFICATE)]
    options += ["--auth-supernode-private-key", str(place / keys.SITE_KEY)]
    return [*options, "--trusted-entities", str(place / TRUSTED)]


def check_server(host: str, port: int, authority: Path) -> None:
    """Shake hands as the SuperNode will; a server that cannot be reached may come later.

    Raises:
        UserError: who answers is not the server of this certificate, or speaks plain text.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"{authority}: no certificate; ask the server for it again") from error
    try:
        with (
            socket.create_connection((host, port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"--server {host}:{port}: its certificate is not one that {authority} vouches for "
            f"({error.verify_message}); give the name that the certificate has, or ask the server "
            "for its ca.crt"
        ) from error
    except ssl.SSLError as error:
        raise UserError(
            f"--server {host}:{port}: it does not speak TLS ({error.reason}); give the port of "
            "the proxy"
        ) from error
    except OSError:
        return


def refuse_far(host: str) -> None:
    """Stop where plain text would leave this machine.

    Raises:
        UserError: the host is not this machine.
    """
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    if not near:
        raise UserError(
            f"--insecure: labels' counts and models would go to {host} in plain text; leave it out"
        )


def split_address(server: str) -> tuple[str, int]:
    """HOST and PORT.

    Raises:
        UserError: it is not of this form.
    """
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--server {server}: give HOST:PORT, such as fl.hospital.org:8443")
    return host.strip("[]"), int(port)


def node_config(settings: Mapping[str, str | int]) -> str:
    """What ``--node-config`` takes.

    Raises:
        UserError: a value holds what Flower cannot read.
    """
    for key, value in settings.items():
        if any(sign in str(value) for sign in "\"'\n\\"):
            raise UserError(f"{key}={value}: Flower takes no quotes and no backslashes here")
    quoted = {key: f'"{value}"' for key, value in settings.items() if isinstance(value, str)}
    plain = {key: str(value).lower() for key, value in settings.items()}  # true, 5
    return " ".join(f"{key}={value}" for key, value in (plain | quoted).items())


def _begun(log: Path, process: int, before: int) -> str:
    """Wait until it is connected; the server may be away, and then it goes on trying."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        said = log.read_bytes()[before:].decode(errors="replace")
        if not lives(process):
            if UNKNOWN_KEY in said:
                raise UserError(
                    "the server does not know this key; have it registered there with add-site"
                )
            raise UserError(f"the site has ended: {last_line(log)} (see {log})")
        if CONNECTED in said:
            return "connected"
        time.sleep(0.3)
    return f"started, and not connected yet: it goes on trying, see {log}"
