"""The server's way to the sites: which node is which, and asking them within a time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from src.config import Config
from src.flower.own_data import SiteTable
from src.flower.records import BadRecord, extras, head, refuse_oversized
from src.flower.run_config import Patience
from src.flower.words import FAULT, HEAD, JOIN
from src.messages import CLASS_COUNTS, Report
from utils_.errors import UserError, some
from utils_.site_names import SiteNames

FIRST_POLL, LAST_POLL, LOOK_SECONDS = 0.1, 1.0, 2.0
logger = logging.getLogger("fednml")


class Sites:
    """The sites of a run.

    Attributes:
        nodes: {number of the client: the node where it is now}.
        tables: what hospitals tell of their data, in the order of their numbers; empty in a
            simulation.
        told: what every message tells of the run: its settings and classes.
    """

    def __init__(self, grid: Grid, config: Config, patience: Patience) -> None:
        self.patience, self._grid = patience, grid
        self.count = config.clients
        self.nodes: dict[int, int] = {}
        self.tables: tuple[SiteTable, ...] = ()
        self.told: dict[str, Any] = {}
        self.tell(config, ())
        self._found: dict[int, SiteTable | int] = {}  # node: who is there
        self._told: dict[int, str] = {}  # node: why it cannot take part, as last said

    def called(self, client: int) -> str:
        """For a sentence."""
        return SiteNames(tuple(table.name for table in self.tables)).called(client)

    def evaluates(self, client: int) -> bool:
        """Whether the site has told of images to evaluate on."""
        return bool(self.tables) and self.tables[client].held_out > 0

    def tell(self, config: Config, classes: Sequence[str]) -> None:
        """Have all messages tell these settings, and the classes, which hospitals need."""
        self.told = {"settings": json.dumps(asdict(config)), "classes": list(classes)}

    def gather(self, known: Sequence[SiteTable] = ()) -> None:
        """Wait for the sites and seat them.

        Args:
            known: the hospitals with which the run began, if it goes on.

        Raises:
            UserError: too few came.
        """
        self.tables = tuple(known)
        deadline = time.monotonic() + self.patience.seconds
        while self._look() < self.count and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        there = self._look_at_seats()
        if there < self.count and ((not known and self._hospitals) or there < self._fewest):
            refused = f"; {'; '.join(self._told.values())}" if self._told else ""
            raise UserError(
                f"{there} of {self.count} sites came within {self.patience.seconds:g} s{refused}; "
                "start the others, or give --clients and min-clients as there are"
            )

    @property
    def _fewest(self) -> int:
        return min(self.patience.clients, self.count)

    @property
    def _hospitals(self) -> list[SiteTable]:
        return [who for who in self._found.values() if isinstance(who, SiteTable)]

    def refresh(self) -> None:
        """Look who is there now, before a round; wait until they are enough.

        Raises:
            SitesGone: they are not within the time of a round.
        """
        deadline = time.monotonic() + self.patience.seconds
        while self._look() < self._fewest:
            if time.monotonic() > deadline:
                raise SitesGone(
                    f"{len(self.nodes)} of {self.count} sites are there, min-clients is "
                    f"{self._fewest}"
                )
            time.sleep(LOOK_SECONDS)

    def ask(
        self, kind: str, contents: Mapping[int, RecordDict], *, group: str
    ) -> Iterator[tuple[int, RecordDict | str]]:
        """Send each client its records; yield each answer as it comes, or why there is none."""
        where = {self.nodes[client]: client for client in contents}
        records = {self.nodes[client]: own for client, own in contents.items()}
        for node, answer in self._exchange(kind, records, group):
            yield where[node], answer

    def compare(self, client: int, report: Report) -> None:
        """Hold a report against what its site told when it joined.

        Raises:
            BadRecord: it is another's, or tells other numbers.
        """
        if report.client != client:
            raise BadRecord("it answers for another site")
        if not self.tables:
            return
        table = self.tables[client]
        if report.samples != table.images:
            raise BadRecord(f"it now has {report.samples:g} images, and joined with {table.images}")
        counts = report.extras.get(CLASS_COUNTS)
        told = np.stack([table.positives, table.annotated])
        if counts is not None and not np.array_equal(counts, told):
            raise BadRecord("its counts of classes are not those with which it joined")

    def _look(self) -> int:
        """Ask new nodes who they are; return how many seats are taken."""
        present = {node.node_id: node.name for node in self._grid.get_nodes()}
        self._found = {node: who for node, who in self._found.items() if node in present}
        strangers = sorted(present.keys() - self._found.keys())
        hello = {node: RecordDict({HEAD: ConfigRecord(self.told)}) for node in strangers}
        for node, answer in self._exchange(JOIN, hello, "join"):
            try:
                self._found[node] = _as_registered(self._who(answer), present[node])
                self._told.pop(node, None)
            except BadRecord as error:
                text = _named(str(error), present[node])
                if self._told.get(node) != text:  # said once, not at every look
                    logger.warning("a node cannot take part: %s", text)
                self._told[node] = text
        return self._look_at_seats()

    def _who(self, answer: RecordDict | str) -> SiteTable | int:
        """Who answers: a hospital, or the number of a partition.

        Raises:
            BadRecord: nobody that could take part.
        """
        if isinstance(answer, str):
            raise BadRecord(answer)
        told = head(answer)
        number, name = told.get("partition"), told.get("site")
        if isinstance(number, int) and not isinstance(number, bool):
            there = told.get("partitions")
            if there != self.count or not 0 <= number < self.count:
                raise BadRecord(
                    f"it is one of {there} partitions and --clients is {self.count}; make "
                    "them equal"
                )
            return number
        refuse_oversized(answer)
        arrays = extras(answer)
        images, held_out = told.get("images"), told.get("held-out", 0)
        if not isinstance(name, str) or {type(images), type(held_out)} != {int}:
            raise BadRecord("it does not say who it is")
        try:
            positives, annotated, pixels = (
                arrays[key] for key in ("positives", "annotated", "pixels")
            )
            table = SiteTable(name, images, positives, annotated, pixels, held_out)
        except KeyError as error:
            raise BadRecord(f"site {name[:100]} lacks {error}") from error
        fault = table.fault(len(self.told["classes"]))
        if fault:
            raise BadRecord(f"site {name[:100]}: {fault}")
        return table

    def _look_at_seats(self) -> int:
        """Give everybody a number; hospitals have theirs by name."""
        hospitals = {who.name: who for who in self._hospitals}
        if hospitals and len(hospitals) == self.count and not self.tables:
            self.tables = tuple(hospitals[name] for name in sorted(hospitals))
        names = {table.name: number for number, table in enumerate(self.tables)}
        self.nodes = {}
        for node, who in sorted(self._found.items()):
            number = who if isinstance(who, int) else names.get(who.name, -1)
            if number in self.nodes or (number < 0 and self.tables):
                self._say(node, f"node {node} is left out: {self._why_no_seat(who)}")
            elif number >= 0:
                self.nodes[number] = node
        return len(self.nodes) if self.tables or not hospitals else len(hospitals)

    def _say(self, node: int, text: str) -> None:
        if self._told.get(node) != text:
            logger.warning("%s", text)
        self._told[node] = text

    def _why_no_seat(self, who: SiteTable | int) -> str:
        if isinstance(who, int):
            return f"another node is client {who} already"
        names = [table.name for table in self.tables]
        if who.name in names:
            return f"another node is the site {who.name} already"
        return f"the site {who.name} is none of this run's ({some(names)})"

    def _exchange(
        self, kind: str, records: Mapping[int, RecordDict], group: str
    ) -> Iterator[tuple[int, RecordDict | str]]:
        """As :meth:`ask`, by node."""
        if not records:
            return
        seconds = self.patience.seconds
        deadline, waiting = time.monotonic() + seconds, set(records)
        messages = [
            Message(own, node, kind, ttl=seconds, group_id=group) for node, own in records.items()
        ]
        asked = [*self._grid.push_messages(messages)]
        pending = {message: node for message, node in zip(asked, records, strict=True) if message}
        pause = FIRST_POLL
        while pending:  # asked once at least, however long the sending took
            for reply in self._grid.pull_messages([*pending]):
                node = pending.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    waiting.discard(node)
                    yield node, _content(reply)
            if time.monotonic() >= deadline:
                break
            if pending:  # each look costs both ends some milliseconds; long rounds can wait
                time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(1.1 * pause, LAST_POLL)
        for node in sorted(waiting):
            yield node, f"it has not answered within {seconds:g} s"


class SitesGone(RuntimeError):
    """Too few sites are there, or have answered; the run can go on when they are back."""


def _as_registered(who: SiteTable | int, registered: str) -> SiteTable | int:
    """Who answers, if that is whose key it has; ``registered`` is empty where keys have no names.

    Raises:
        BadRecord: a site answers in another's name.
    """
    if isinstance(who, SiteTable) and registered and who.name != registered:
        raise BadRecord(f"site {registered}: it answers in the name of the site {who.name[:100]}")
    return who


def _named(text: str, registered: str) -> str:
    """With the name of the site whose key it was, where the text has none and keys have names."""
    return text if not registered or text.startswith("site ") else f"site {registered}: {text}"


def merged_sums(tables: tuple[SiteTable, ...]) -> np.ndarray:
    """(3, 3) sums of the pixels of all sites."""
    total: np.ndarray = np.sum([table.pixels for table in tables], axis=0)
    return total


def _content(reply: Message) -> RecordDict | str:
    if reply.has_error():
        return f"its node failed ({_one_line(reply.error.reason)})"
    told: Any = reply.content.get(HEAD, {})
    fault = told.get(FAULT) if isinstance(told, ConfigRecord) else None
    return reply.content if fault is None else _one_line(fault)


def _one_line(text: Any) -> str:
    """What another machine says, so that it cannot pass for lines of our log."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)[:500]).split())
