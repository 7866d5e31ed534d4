"""Flower's Grid without a network: nodes are called in this process, through Flower's own bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

from src.flower.client_app import app
from src.flower.words import HEAD, OVER

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as Flower's process has


def travelled(message: Message) -> Message:
    """The message after the way through bytes."""
    return message_from_proto(message_to_proto(message))


@dataclass
class FakeGrid:
    """Nodes by number, each with its ``--node-config``.

    Attributes:
        tamper: called with node and answer; gives what arrives, None for nothing.
        before: called before every sending, such as to take a node away.
        asked: (node, kind of message), in their order.
        farewells: (node, kind) of the messages that say to be a run's last to the site.
        registered: {node: the site whose key it has}.
    """

    nodes: dict[int, dict[str, Any]]
    tamper: Callable[[int, Message], Message | None] = lambda node, reply: reply
    before: Callable[[FakeGrid], None] = lambda grid: None
    asked: list[tuple[int, str]] = field(default_factory=list)
    farewells: list[tuple[int, str]] = field(default_factory=list)
    registered: dict[int, str] = field(default_factory=dict)
    _replies: dict[str, Message] = field(default_factory=dict)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.registered.get(node)) for node in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        self.before(self)
        self.asked.append((node, kind))
        if message.content[HEAD].get(OVER):
            self.farewells.append((node, kind))
        name = f"message {len(self.asked)}"
        message.metadata.__dict__["_message_id"] = name
        reply = self._answer(node, travelled(message))
        reply = self.tamper(node, reply)
        if reply is not None:
            self._replies[name] = travelled(reply)
        return name

    def _answer(self, node: int, message: Message) -> Message:
        if node not in self.nodes:
            return Message(Error(3, "node is gone"), reply_to=message)
        context = Context(1, node, self.nodes[node], RecordDict(), {})
        return app(message, context)

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        # The last first: the order of arrival must not matter.
        return [self._replies.pop(name) for name in reversed([*names]) if name in self._replies]


def partitions(count: int, folder: Path) -> dict[int, dict[str, Any]]:
    """Nodes of a simulation, whose numbers are in another order than their partitions."""
    return {
        1000 - number: {
            "partition-id": number,
            "num-partitions": count,
            "state-dir": str(folder / f"node{number}"),
        }
        for number in range(count)
    }
