"""What a site keeps between rounds: its labels and the method's memory, as files of its own.

A file is named by the number of rounds after which it is the site's state. The latest is kept, and
the one that it was made from: a server that goes on after a failure may ask for the last round
again, and the answer must be the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from src.checkpoint import DAMAGED, read_sealed, round_file, saved_rounds, write_sealed
from utils_.errors import UserError

if TYPE_CHECKING:
    from src.client import Client

UNTOUCHED = 0  # the state of a site that has not yet trained: its labels as they were written


class SiteState:
    """The states of one site in one run.

    Attributes:
        folder: where they lie.
    """

    def __init__(self, root: Path, *, run: str, site: str) -> None:
        """``run`` is what the server calls the run, ``site`` the site's own name.

        Raises:
            UserError: the server's name for the run is none.
        """
        if not run.isalnum() or not run.isascii():
            raise UserError(f"run '{run[:40]}': a run is called by letters and digits; not trained")
        self.folder = root / run / f"site-{quote(site, safe='')}"
        self._site, self._earlier = site, UNTOUCHED

    def restore(self, client: Client, round: int, *, has_reported: bool) -> None:
        """Give the client the state in which it takes part in a round, numbered from 0.

        Args:
            has_reported: whether the server has heard from this site before.

        Raises:
            UserError: the state is damaged, of other labels or not there.
        """
        there = saved_rounds(self.folder)
        fitting = [number for number in there if number <= round]
        if not fitting:
            self._refuse_loss(there, round, has_reported)
            return
        self._earlier = fitting[-1]
        path = round_file(self.folder, self._earlier)
        arrays, notes = self._read(path)
        if notes.get("labels") != _digest(client):
            raise UserError(
                f"{path}: belongs to other labels or images; restore the label files, or start a "
                "new run"
            )
        client.load_state(arrays)

    def save(self, client: Client, round: int) -> None:
        """Keep the client's state after a round, numbered from 0, and drop what is superseded.

        Raises:
            UserError: it cannot be written; what was there before remains.
        """
        number = round + 1
        notes = {"site": self._site, "earlier": self._earlier, "labels": _digest(client)}
        path = round_file(self.folder, number)
        try:
            write_sealed(path, client.state(), notes)
            for other in set(saved_rounds(self.folder)) - {number, self._earlier}:
                round_file(self.folder, other).unlink()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{path}: cannot be written ({reason}); free some space or give the node another "
                "state-dir"
            ) from error

    def _refuse_loss(self, there: list[int], round: int, has_reported: bool) -> None:
        """Stop where a site that has trained before would start from its untouched labels."""
        made_from = self._read(round_file(self.folder, there[0]))[1]["earlier"] if there else None
        if made_from == UNTOUCHED or (not there and not has_reported):
            return
        raise UserError(
            f"{self.folder}: the site's state before round {round} is not there; restore the "
            "folder from a backup, or start a new run"
        )

    def _read(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        try:
            arrays, notes = read_sealed(path)
            if notes["site"] != self._site:
                raise ValueError(f"it belongs to '{notes['site']}'")
            return arrays, notes
        except DAMAGED as error:
            raise UserError(
                f"{path}: damaged state of the site ({error}); restore the folder from a backup, "
                "or start a new run"
            ) from error


def _digest(client: Client) -> str:
    """Of what the site's annotators wrote, to which a state belongs."""
    return hashlib.sha256(client.labels.observed.tobytes()).hexdigest()[:16]
