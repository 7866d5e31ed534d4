"""nginx in front of SuperLink, from the template scripts/federation/nginx.conf."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from scripts.federation_code.certificates import (
    CA_CERTIFICATE,
    OWNER_FOLDER,
    SERVER_CERTIFICATE,
    SERVER_KEY,
)
from scripts.federation_code.processes import answers, log_of, start_part, wait_until
from utils_.errors import UserError
from utils_.files import write_text

TEMPLATE = Path(__file__).resolve().parents[1] / "federation" / "nginx.conf"
PROXY = "proxy"
ABSENT = (
    "nginx: not found; install it (Debian, Ubuntu: apt install nginx; Fedora: dnf install nginx) "
    "and leave its own service off, or set up another proxy by the rules in "
    "scripts/federation/nginx.conf and give --without-proxy"
)


def find_nginx() -> str:
    """The program.

    Raises:
        UserError: it is not installed.
    """
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=places)
    if found is None:
        raise UserError(ABSENT)
    return found


def start_proxy(folder: Path, *, listen: str, port: int, superlink: int, most_mb: int) -> None:
    """Write the configuration, have nginx check it, and start it.

    Args:
        listen: the address of this machine at which sites reach it.
        superlink: SuperLink's port.
        most_mb: the largest body of a request, in MB.

    Raises:
        UserError: nginx is absent, or refuses.
    """
    program, place = find_nginx(), folder.resolve() / PROXY
    place.mkdir(mode=OWNER_FOLDER, exist_ok=True)
    address = f"[{listen}]:{port}" if ":" in listen else f"{listen}:{port}"
    write_text(place / "nginx.conf", configuration(folder, address, superlink, most_mb))
    command = [program, "-p", str(place), "-e", "stderr", "-c", str(place / "nginx.conf")]
    checked = subprocess.run([*command, "-t", "-q"], capture_output=True, text=True, check=False)
    if checked.returncode:
        raise UserError(f"nginx: {' '.join(checked.stderr.split())}")
    log = log_of(folder, PROXY)
    process = start_part(folder, PROXY, command)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)
    wait_until(lambda: answers(port, host), process, log, seconds=20, what="the proxy")


def configuration(folder: Path, address: str, superlink: int, most_mb: int) -> str:
    """The template with its names filled in; a folder with a quote or a space is quoted by it."""
    folder = folder.resolve()
    user = f"user {getpass.getuser()};\n" if os.geteuid() == 0 else ""  # else it reads no key
    values = {
        "USER": user,
        "FOLDER": folder / PROXY,
        "LISTEN": address,
        "CERTIFICATE": folder / SERVER_CERTIFICATE,
        "KEY": folder / SERVER_KEY,
        "AUTHORITY": folder / CA_CERTIFICATE,
        "SUPERLINK_PORT": superlink,
        "MOST_BYTES": f"{most_mb}m",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("${" + name + "}", str(value))
    return text
