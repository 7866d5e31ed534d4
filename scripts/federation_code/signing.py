"""Code that sites run, signed: with ``--trusted-entities`` a SuperNode runs nothing else.

Flower 1.42 signs apps of its own hub alone; a SuperNode with ``--trusted-entities`` refuses every
app that was started from a folder. But SuperLink hands on whatever verifications its database has
for an app, in a form that is the same for both. So a signature of this checkout is put there, by a
trigger, since SuperLink writes the row anew at each start of a run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

from scripts.federation_code.certificates import ANYBODY_READS, CODE_KEY, CODE_PUBLIC, write_new
from utils_.errors import UserError

TRUSTED = "trusted.yaml"  # at a site: whose signatures it takes
TABLE = "fednml_signatures"
TRIGGER = """
CREATE TRIGGER IF NOT EXISTS {name} AFTER {event} ON fab
WHEN EXISTS (SELECT 1 FROM fednml_signatures s WHERE s.fab_hash = NEW.fab_hash)
BEGIN
    UPDATE fab SET verifications =
        (SELECT s.verifications FROM fednml_signatures s WHERE s.fab_hash = NEW.fab_hash)
    WHERE fab_hash = NEW.fab_hash;
END
"""


def key_id(public: str) -> str:
    """What a key is called in ``trusted.yaml``, after its digest."""
    return "fpk_" + hashlib.sha256(" ".join(public.split()[:2]).encode()).hexdigest()[:32]


def write_trusted(folder: Path, public: str) -> None:
    """Write whose signatures a site takes."""
    line = f"{key_id(public)}: {public.strip()}\n"
    write_new(folder / TRUSTED, line.encode(), mode=ANYBODY_READS)


def sign_code(folder: Path, root: Path) -> str:
    """Sign the code of a checkout and have SuperLink hand on the signature; return its digest.

    Raises:
        UserError: the folder has no key for code, or SuperLink has not been started.
    """
    from flwr.cli.build import build_fab_from_disk

    digest = hashlib.sha256(build_fab_from_disk(root)).digest()
    _keep(folder, digest.hex(), _verification(folder, digest))
    return digest.hex()


def _verification(folder: Path, digest: bytes) -> dict[str, str]:
    """In the form that Flower reads of its hub."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key: Any = load_ssh_private_key((folder / CODE_KEY).read_bytes(), None)
        public = (folder / CODE_PUBLIC).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / CODE_KEY}: absent or damaged, and sites run signed code alone; "
            "restore it from a backup"
        ) from error
    now = int(time.time())
    signature = key.sign(now.to_bytes(8, "big") + digest)
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    told = json.dumps({"signature": text, "signed_at": now})
    return {key_id(public): told, "valid_license": "Valid"}


def _keep(folder: Path, digest: str, verification: dict[str, str]) -> None:
    database = folder / "superlink.db"
    if not database.exists():
        raise UserError(f"{folder}: SuperLink has not been started here; start it first")
    connection = sqlite3.connect(database, timeout=30)
    try:
        with connection:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {TABLE} "
                "(fab_hash TEXT PRIMARY KEY, verifications TEXT NOT NULL)"
            )
            for event in ("INSERT", "UPDATE"):
                name = f"fednml_sign_{event.lower()}"
                connection.execute(TRIGGER.format(name=name, event=event))
            row = (digest, json.dumps(verification))
            connection.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?)", row)
    except sqlite3.Error as error:
        raise UserError(f"{database}: the signature cannot be kept there ({error})") from error
    finally:
        connection.close()
