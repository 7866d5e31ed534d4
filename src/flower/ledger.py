"""The site's own record of what has left it: a row for each array and value of every answer."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Metadata, RecordDict

from src.flower.node import Node
from src.flower.words import FAULT, HEAD
from utils_.errors import UserError

LEDGER = "sent.csv"  # in the site's state folder
COLUMNS = ("time", "message", "round", "name", "type", "shape", "bytes")
logger = logging.getLogger("fednml")


def noted(records: RecordDict, config: Mapping[str, Any], about: Metadata) -> RecordDict:
    """The answer, once it is in the record; or why there is none, where it cannot be written."""
    try:
        note_departure(records, config, about)
    except OSError as error:
        logger.error("%s cannot be written (%s), so nothing leaves", LEDGER, error)
        told = f"site {config.get('site')} cannot take part; its own log says why"
        return RecordDict({HEAD: ConfigRecord({FAULT: told})})
    return records


def note_departure(records: RecordDict, config: Mapping[str, Any], about: Metadata) -> None:
    """Add what an answer holds, before it leaves; a simulation has nothing that leaves anybody.

    Args:
        config: the node's ``--node-config``.
        about: the message that is answered.

    Raises:
        OSError: the record cannot be written, and then nothing may leave.
    """
    try:
        node = Node.read(config)
    except UserError:
        return  # its answer says which setting is wrong, and nothing else
    if node.partition is not None:
        return
    folder = node.state_root("")
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text, path = io.StringIO(), folder / LEDGER
    rows = csv.writer(text, lineterminator="\n")
    if not path.exists():
        rows.writerow(COLUMNS)
    what = (now, about.message_type, about.group_id)
    rows.writerows((*what, *cells) for cells in _cells(records))
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _cells(records: RecordDict) -> Iterator[tuple[str, str, str, int]]:
    for record, content in records.items():
        for name, value in content.items():
            called = name if name == record else f"{record}/{name}"
            if isinstance(content, ArrayRecord):
                shape = "x".join(map(str, value.shape)) or "one"
                yield called, value.dtype, shape, len(value.data)
            else:
                yield called, type(value).__name__, _length(value), _size(value)


def _length(value: Any) -> str:
    return str(len(value)) if isinstance(value, str | bytes | list) else "one"


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value.encode()) if isinstance(value, str) else 8
