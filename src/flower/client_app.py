"""What a node runs: Flower starts it for every message, and it answers with one.

What leaves a site is the answer of one of these functions and nothing else. A failure is told in
words that name no file, image or label; the site's own log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from src.flower.own_data import SiteFault, count_site
from src.flower.own_log import show_log
from src.flower.records import EXTRAS, HEAD, BadRecord, from_report, head, pack, to_broadcast
from src.flower.site import Material, Node, material
from src.flower.site_state import SiteState
from src.flower.sites import FAULT
from utils_.augment import channel_sums
from utils_.errors import UserError

app = ClientApp()
logger = logging.getLogger("fednml")
Answer = Callable[[Message, Node], RecordDict]


def answering(act: Answer) -> Callable[[Message, Context], Message]:
    """Make a reply of what ``act`` gives, or of why it fails."""

    def reply(message: Message, context: Context) -> Message:
        show_log()
        try:
            records = act(message, Node.read(context.node_config))
        except Exception as error:
            logger.error("%s", error, exc_info=not isinstance(error, UserError))
            told = _told(error, context.node_config)
            records = RecordDict({HEAD: ConfigRecord({FAULT: told})})
        return Message(records, reply_to=message)

    return reply


def _told(error: Exception, config: Mapping[str, Any]) -> str:
    if "partition-id" in config:
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    site = f"site {config.get('site', 'without a name')}"
    if isinstance(error, SiteFault | BadRecord):
        return f"{site}: {error}"
    return f"{site} cannot take part; its own log says why"


@app.query("join")
@answering
def join_run(message: Message, node: Node) -> RecordDict:
    """Say who this is; a hospital also tells counts of its labels and sums of its pixels."""
    if node.partition is not None:
        told = {"partition": node.partition, "partitions": node.partitions}
        return RecordDict({HEAD: ConfigRecord(told)})
    found = _material(message, node)
    rows = torch.arange(len(found.dataset.labels)).numpy()
    pixels = channel_sums(found.dataset.images, rows).numpy()
    table = count_site(found.dataset, node.name, pixels)
    arrays = {name: getattr(table, name) for name in ("positives", "annotated", "pixels")}
    who = ConfigRecord({"site": table.name, "images": table.images})
    return RecordDict({HEAD: who, EXTRAS: pack(arrays)})


@app.query("introduce")
@answering
def introduce_client(message: Message, node: Node) -> RecordDict:
    """What :meth:`src.client.Client.introduce` tells."""
    told = head(message.content)
    client = _material(message, node).client(_seat(message, node), _statistics(told))
    return from_report(client.introduce())


@app.train()
@answering
def train_client(message: Message, node: Node) -> RecordDict:
    """One round: the state of the round before, training, the state kept, then the report."""
    told, broadcast = head(message.content), to_broadcast(message.content)
    found = _material(message, node)
    client = found.client(_seat(message, node), _statistics(told))
    state = SiteState(found.state_folder, run=str(told["run"]), site=node.name)
    state.restore(client, broadcast.round, has_reported=bool(told["has-reported"]))
    report = client.train(found.model, found.method, broadcast)
    state.save(client, broadcast.round)
    return from_report(report)


def _material(message: Message, node: Node) -> Material:
    told = head(message.content)
    return material(str(told["settings"]), tuple(told["classes"]), node)


def _seat(message: Message, node: Node) -> int:
    """The number of the site in the run."""
    seat = int(head(message.content)["client"])
    if node.partition is not None and seat != node.partition:
        raise SiteFault(f"it is partition {node.partition} and was asked as client {seat}")
    return seat


def _statistics(told: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(told["mean"]), torch.tensor(told["std"])
