"""What a node runs: Flower starts it for every message, and it answers with one.

Nothing heavy is imported here. The work is done by a process that stays, see resident.py.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from src.flower.ledger import noted
from src.flower.own_log import show_log
from src.flower.resident import answered

app = ClientApp()


def answer_message(message: Message, context: Context) -> Message:
    """The reply to a message of any kind; it may say why there is no better one."""
    show_log()
    about = message.metadata
    records = answered(about.message_type, message.content, context.node_config, seconds=about.ttl)
    return Message(noted(records, context.node_config, about), reply_to=message)


for register in (app.query("join"), app.query("introduce"), app.train(), app.evaluate()):
    register(answer_message)
