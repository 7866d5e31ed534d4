"""The rounds of src/simulation.py with sites that are elsewhere."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import RecordDict

from src.aggregation import Frame
from src.attacks import Attack
from src.client import Client
from src.config import Config
from src.flower.held_out import (
    PARTS,
    SiteScores,
    checked_scores,
    combine_scores,
    scores_from_arrays,
)
from src.flower.own_data import SiteTable, held_out_part, own_scenario, with_sites
from src.flower.records import (
    BadRecord,
    extras,
    from_broadcast,
    head,
    refuse_oversized,
    to_report,
)
from src.flower.sites import Sites, SitesGone, merged_sums
from src.flower.words import EVALUATE, HEAD, INTRODUCE, OVER, TRAIN_ROUND
from src.job import Engine, data_options
from src.messages import NO_MODEL, Broadcast, Report, message_bytes
from src.models import FlatModel, Predictor
from src.server import Server
from src.simulation import Simulation
from utils_.augment import Augmenter, statistics_of
from utils_.datasets.base import ImageDataset
from utils_.datasets.csv_layout import load_held_out
from utils_.errors import UserError
from utils_.files import write_json
from utils_.scenario import Scenario
from utils_.site_names import SiteNames

if TYPE_CHECKING:
    from utils_.runlog import RunLog

HEARD = "flower.heard"  # in the server's memory: (K,) bool, who has reported before
AT_SITES = "flower.at_sites"  # in the server's memory: the latest evaluation at the sites
HEADERS = 64 * 1024  # bytes: headers of arrays, and arrays of a few numbers a class
NOTES = "federation.json"  # in the run's folder: its token, and what hospitals told
logger = logging.getLogger("fednml")


class Federation(Simulation):
    """A run whose sites are elsewhere: no label of theirs is here, so none is judged."""

    def __init__(
        self,
        config: Config,
        dataset: ImageDataset,
        scenario: Scenario,
        model: FlatModel,
        *,
        sites: Sites,
        token: str,
    ) -> None:
        """``token`` is what the sites call the run, letters and digits."""
        self.sites, self._token = sites, token
        super().__init__(config, dataset, scenario, model)

    def augmenter(self, rows: np.ndarray) -> Augmenter:
        """With the statistics that hospitals tell, else those of all images."""
        if not self.sites.tables:
            return super().augmenter(rows)
        return Augmenter(*statistics_of(torch.from_numpy(merged_sums(self.sites.tables))))

    def enrol(self, scenario: Scenario, augmenter: Augmenter, attack: Attack) -> list[Client]:
        """Nobody trains here."""
        return []

    def name_sites(self, scenario: Scenario) -> SiteNames:
        """Hospitals have names."""
        if not self.sites.tables:
            return super().name_sites(scenario)
        return SiteNames(tuple(table.name for table in self.sites.tables))

    def introductions(self) -> Iterable[Report]:
        """Asked for only where a setting needs what the sites tell.

        Raises:
            SitesGone: one of them does not answer.
        """
        plan = self.method.plan
        if plan.class_weights == "none" and plan.head_bias != "prior":
            return
        greeting = Broadcast(0, NO_MODEL)
        runner = self.start_runner()
        for client, answer in runner.answers(INTRODUCE, greeting, range(self.sites.count)):
            if isinstance(answer, str):
                raise SitesGone(f"{self.sites.called(client)} has not introduced itself: {answer}")
            yield answer

    def look_at_labels(
        self, log: RunLog, reports: Sequence[Report], selected: Sequence[int], *, round: int
    ) -> dict[str, float]:
        """Log what the sites report; how right their labels are, nobody here can know."""
        for report in reports:
            log.scalars(f"sites/{self.names.tag(report.client)}", report.logs, step=round)
        return self._scores_at_sites(round)

    def start_runner(self) -> SiteRunner:
        """The way to the sites."""
        last = self.config.rounds - 1
        parts = self.sites, self.server, self.predictor
        self._runner = SiteRunner(*parts, token=self._token, last=last)
        return self._runner

    def run(
        self, folder: Path, log: RunLog, *, stop: Callable[[], bool], progress: Any
    ) -> dict[str, Any]:
        """As in one process; with how well the last model does on images of the sites' own."""
        result = super().run(folder, log, stop=stop, progress=progress)
        told = {
            name: scores_from_arrays(self.server.memory, f"{AT_SITES}.{name}") for name in PARTS
        }
        found = {name: s.as_json(self.dataset.classes) for name, s in told.items() if s}
        return result | ({"at_sites": found} if found else {})

    def _scores_at_sites(self, round: int) -> dict[str, float]:
        """A row's part where the test is due and sites have images of their own to evaluate on."""
        asked = [k for k in range(self.sites.count) if self.sites.evaluates(k)]
        if not asked or not self._test_due(round):
            return {}
        each, size = self._runner.scores(Broadcast(round, self.scored, {}), asked)
        memory, row = self.server.memory, {"bytes_evaluation": float(size)}
        for name in [name for name in memory if name.startswith(AT_SITES)]:  # of a round before
            del memory[name]
        for part in PARTS:
            if found := [told[part] for told in each if part in told]:
                scores = combine_scores(found)
                memory |= scores.to_arrays(f"{AT_SITES}.{part}")
                overall = scores.overall() | {"heard": float(len(found))}
                row |= {f"sites_{part}_{name}": value for name, value in overall.items()}
        return row


class SiteRunner:
    """Has the sites train, each at its place, and predicts here."""

    def __init__(
        self, sites: Sites, server: Server, predictor: Predictor, *, token: str, last: int
    ) -> None:
        """``last`` is the run's last round, numbered from 0."""
        self._sites, self._server, self.predict = sites, server, predictor
        self._last = last
        augmenter = predictor.augmenter
        self._told = {
            "run": token,
            "mean": augmenter.mean.tolist(),
            "std": augmenter.std.tolist(),
            **sites.told,
        }

    def run(self, message: Broadcast, selected: Sequence[int]) -> Iterator[Report]:
        """Yield the reports of the selected clients, in that order, as soon as that is possible.

        Who does not answer, or not with a report, is left out as a rejected report would be.

        Raises:
            SitesGone: too few have answered.
        """
        self._sites.refresh()
        done: dict[int, Report | str] = {}
        waiting, answered = list(selected), 0
        for client, answer in self.answers(TRAIN_ROUND, message, selected):
            done[client] = answer
            while waiting and waiting[0] in done:
                report = done.pop(waiting.pop(0))
                if isinstance(report, Report):
                    answered += 1
                    yield report
        needed = min(self._sites.patience.clients, len(selected))
        if answered < needed:
            raise SitesGone(
                f"round {message.round}: {answered} of {len(selected)} sites have answered, "
                f"min-clients is {needed}"
            )

    def answers(
        self, kind: str, message: Broadcast, clients: Sequence[int]
    ) -> Iterator[tuple[int, Report | str]]:
        """The reports of the clients as they come, or why there is none."""
        heard = self._server.memory.setdefault(HEARD, np.zeros(self._sites.count, np.bool_))
        for client, answer in self._answers(kind, message, clients):
            report = self._report(client, answer, message.round)
            if kind == TRAIN_ROUND and isinstance(report, Report):
                heard[client] = True
            yield client, report

    def scores(
        self, message: Broadcast, clients: Sequence[int]
    ) -> tuple[list[dict[str, SiteScores]], int]:
        """What the sites tell of the model on images of their own, by part, and all bytes sent."""
        found, size = {}, message_bytes(message) * len(clients)
        for client, answer in self._answers(EVALUATE, message, clients):
            try:
                if isinstance(answer, str):
                    raise BadRecord(answer)
                refuse_oversized(answer)
                told, classes = extras(answer), len(self._sites.told["classes"])
                size += sum(array.nbytes for array in told.values())
                parts = [part for part in PARTS if any(name.startswith(part) for name in told)]
                found[client] = {
                    part: checked_scores(told, part=part, classes=classes) for part in parts
                }
            except BadRecord as error:
                called = self._sites.called(client)
                logger.warning("round %d: %s is not evaluated: %s", message.round, called, error)
        return [found[client] for client in sorted(found)], size

    def _answers(
        self, kind: str, message: Broadcast, clients: Sequence[int]
    ) -> Iterator[tuple[int, RecordDict | str]]:
        """What comes from the sites, or why nothing does."""
        away = [client for client in clients if client not in self._sites.nodes]
        yield from ((client, "it is not connected") for client in away)
        records = from_broadcast(message)
        contents = {
            client: self._addressed(kind, records, client)
            for client in clients
            if client not in away
        }
        yield from self._sites.ask(kind, contents, group=str(message.round))

    def _addressed(self, kind: str, records: RecordDict, client: int) -> RecordDict:
        """The records with what this site alone is told; the arrays are shared."""
        own = RecordDict(dict(records))
        last = kind == EVALUATE or (kind == TRAIN_ROUND and not self._sites.evaluates(client))
        told = {"client": client, **self._told, **head(records)}
        told |= {"has-reported": bool(self._server.memory[HEARD][client])}
        told |= {OVER: last and head(records)["round"] == self._last}
        own[HEAD] = type(head(records))(told)
        return own

    def _report(self, client: int, answer: RecordDict | str, round: int) -> Report | str:
        if isinstance(answer, str):
            return self._left_out(client, round, answer)
        try:
            report = to_report(answer, most=most_bytes(self._server.frame))
            self._sites.compare(client, report)
        except BadRecord as error:
            return self._left_out(client, round, str(error))
        if "loss" not in report.logs:
            report.logs["loss"] = float("nan")
        return report

    def _left_out(self, client: int, round: int, reason: str) -> str:
        called = self._sites.called(client)
        logger.warning("round %d: %s is left out: %s", round, called, reason)
        self._server.rejected[client] = reason
        return reason

    def close(self) -> None:
        """The sites stay; other runs may come."""


def most_bytes(frame: Frame) -> int:
    """What the arrays of a report may have, and some room for their headers."""
    lengths = frame.layout.lengths
    axes = [expected.axes for expected in frame.expected.values()]
    numbers = sum(
        prod(lengths.get(str(axis), 1) if isinstance(axis, str) else axis for axis in one)
        for one in axes
    )
    return frame.model.numel() * frame.model.element_size() + 8 * numbers + HEADERS


class SimulatedEngine(Engine):
    """Partitions of one data set, which every node and the server can read."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.token = secrets.token_hex(8)  # a name, no draw: no result depends on it

    def build(
        self, config: Config, dataset: ImageDataset, scenario: Scenario, model: FlatModel
    ) -> Federation:
        """The rounds, whose sites are told the settings as they are now."""
        self.sites.tell(config, dataset.classes if self.sites.tables else ())
        return Federation(config, dataset, scenario, model, sites=self.sites, token=self.token)

    def begun(self, folder: Path) -> None:
        write_json(folder / NOTES, {"token": self.token, "sites": self.notes()})

    def resumed(self, folder: Path) -> None:
        self.token, _ = read_notes(folder)

    def notes(self) -> list[dict[str, object]]:
        """What hospitals told."""
        return [table.as_json() for table in self.sites.tables]


class HospitalEngine(SimulatedEngine):
    """Hospitals with data of their own, and a server with images to evaluate on."""

    def load(self, config: Config, *, quiet: bool, labels_only: bool = False) -> ImageDataset:
        return with_sites(held_out(config, quiet=quiet, labels_only=labels_only), self.sites.tables)

    def deal(self, config: Config, dataset: ImageDataset, *, folder: Path | None) -> Scenario:
        return own_scenario(dataset, self.sites.tables)


def held_out(config: Config, *, quiet: bool, labels_only: bool) -> ImageDataset:
    """The server's own images.

    Raises:
        UserError: there is no folder, or it has no images for a test.
    """
    if config.data_dir is None:
        raise UserError("--data-dir: name the server's folder with images/ and test_data.csv")
    options = data_options(config, quiet=quiet, labels_only=labels_only)
    return held_out_part(load_held_out(Path(config.data_dir), options))


def read_notes(folder: Path) -> tuple[str, list[SiteTable]]:
    """What is needed beside the checkpoint to go on: the run's token and its hospitals.

    Raises:
        UserError: the run was none on Flower, or the file is damaged.
    """
    path = folder / NOTES
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return str(notes["token"]), [SiteTable.from_json(table) for table in notes["sites"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: absent or damaged, so the sites cannot be found again; was the run begun "
            "with flwr run? otherwise go on with python src/main_fednml.py --resume"
        ) from error
