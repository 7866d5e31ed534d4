"""What both ends of a message call its kinds, records and values; imports nothing."""

from __future__ import annotations

JOIN, INTRODUCE = "query.join", "query.introduce"  # kinds of messages
TRAIN_ROUND, EVALUATE = "train", "evaluate"
MODEL, EXTRAS, LOGS, HEAD = "model", "extras", "logs", "head"  # names of the records
FAULT = "fault"  # in the head of an answer: why there is none
OVER = "over"  # in the head of a question: whether it is the run's last to this site
