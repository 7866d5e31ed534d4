"""What a site answers to each kind of message, in whichever process that is done.

What leaves a site is the answer of one of these functions and nothing else. A failure is told in
words that name no file, image or label; the site's own log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from src.flower.held_out import count_scores
from src.flower.node import Node
from src.flower.own_data import SiteFault, count_site
from src.flower.records import BadRecord, from_report, head, pack, to_broadcast
from src.flower.site import Material, material
from src.flower.site_state import SiteState
from src.flower.words import EVALUATE, EXTRAS, FAULT, HEAD, INTRODUCE, JOIN, TRAIN_ROUND
from src.messages import Arrays
from src.models import Predictor
from utils_.augment import Augmenter, channel_sums
from utils_.datasets.base import PART_NAMES
from utils_.errors import UserError

logger = logging.getLogger("fednml")


def answer_question(kind: str, question: RecordDict, config: Mapping[str, Any]) -> RecordDict:
    """The records that go back: the answer, or why there is none.

    Args:
        kind: of the message, one of ``ANSWERS``.
        config: the node's ``--node-config``.
    """
    try:
        return ANSWERS[kind](question, Node.read(config))
    except Exception as error:
        logger.error("%s", error, exc_info=not isinstance(error, UserError))
        return RecordDict({HEAD: ConfigRecord({FAULT: _told(error, config)})})


def _told(error: Exception, config: Mapping[str, Any]) -> str:
    if "partition-id" in config:
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    site = f"site {config.get('site', 'without a name')}"
    if isinstance(error, SiteFault | BadRecord):
        return f"{site}: {error}"
    return f"{site} cannot take part; its own log says why"


def _join(question: RecordDict, node: Node) -> RecordDict:
    """Say who this is; a hospital also tells counts of its labels and sums of its pixels."""
    if node.partition is not None:
        told = {"partition": node.partition, "partitions": node.partitions}
        return RecordDict({HEAD: ConfigRecord(told)})
    found = _material(question, node)
    rows = torch.arange(len(found.dataset.labels)).numpy()
    pixels = channel_sums(found.dataset.images, rows).numpy()
    held_out = sum(len(part.labels) for part in found.held_out.values())
    table = count_site(found.dataset, node.name, pixels, held_out=held_out)
    arrays = {name: getattr(table, name) for name in ("positives", "annotated", "pixels")}
    sizes = {"images": table.images, "held-out": table.held_out}
    who = ConfigRecord({"site": table.name, **sizes})
    return RecordDict({HEAD: who, EXTRAS: pack(arrays)})


def _introduce(question: RecordDict, node: Node) -> RecordDict:
    """What :meth:`src.client.Client.introduce` tells."""
    client = _material(question, node).client(_seat(question, node), _statistics(question))
    return from_report(client.introduce())


def _train(question: RecordDict, node: Node) -> RecordDict:
    """One round: the state of the round before, training, the state kept, then the report."""
    told, broadcast = head(question), to_broadcast(question)
    found = _material(question, node)
    client = found.client(_seat(question, node), _statistics(question))
    state = SiteState(found.state_folder, run=str(told["run"]), site=node.name)
    state.restore(client, broadcast.round, has_reported=bool(told["has-reported"]))
    report = client.train(found.model, found.method, broadcast)
    state.save(client, broadcast.round)
    return from_report(report)


def _evaluate(question: RecordDict, node: Node) -> RecordDict:
    """Counts of how well a hospital's own held-out images are predicted."""
    found = _material(question, node)
    counts: Arrays = {}
    vector = to_broadcast(question).model
    for part, own in found.held_out.items():
        predict = Predictor(found.model, own.images, Augmenter(*_statistics(question)))
        probability = predict(vector, np.arange(len(own.labels)))
        told = count_scores(probability, own.labels, fewest=node.fewest)
        counts |= {f"{PART_NAMES[part]}.{name}": array for name, array in told.items()}
    return RecordDict({HEAD: ConfigRecord({"client": _seat(question, node)}), EXTRAS: pack(counts)})


ANSWERS: dict[str, Callable[[RecordDict, Node], RecordDict]] = {
    JOIN: _join,
    INTRODUCE: _introduce,
    TRAIN_ROUND: _train,
    EVALUATE: _evaluate,
}


def _material(question: RecordDict, node: Node) -> Material:
    told = head(question)
    return material(str(told["settings"]), tuple(told["classes"]), node)


def _seat(question: RecordDict, node: Node) -> int:
    """The number of the site in the run."""
    seat = int(head(question)["client"])
    if node.partition is not None and seat != node.partition:
        raise SiteFault(f"it is partition {node.partition} and was asked as client {seat}")
    return seat


def _statistics(question: RecordDict) -> tuple[torch.Tensor, torch.Tensor]:
    told = head(question)
    return torch.tensor(told["mean"]), torch.tensor(told["std"])
