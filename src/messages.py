"""The only two things that cross a site's boundary."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray]

CLASS_COUNTS = "class_counts"  # (2, C) positives and annotated cells, see --class-weights
ANNOTATED_CELLS = "annotated_cells"  # (C,) in every report, for aggregators that need it
NO_MODEL = torch.empty(0)  # in a report that carries none, or whose model is folded in already


@dataclass(frozen=True)
class Broadcast:
    """Server to client.

    Attributes:
        round: number of the round, from 0.
        model: (P,) float32, the global model as one vector.
        extras: what the method sends beside the model.
    """

    round: int
    model: Tensor
    extras: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Client to server.

    Attributes:
        client: number of the client, from 0.
        samples: its number of images; rules that weigh clients otherwise put their weight here.
        model: (P,) float32 after local training; ``NO_MODEL`` once the server has folded it in.
        extras: what the method reports beside the model.
        logs: scalars for the log, such as the mean training loss.
        credit: factor in [0, 1] by which the server has lowered ``samples``, 1 unless the report
            stands apart and ``--suppress-outliers`` is on.
    """

    client: int
    samples: float
    model: Tensor
    extras: Arrays = field(default_factory=dict)
    logs: dict[str, float] = field(default_factory=dict)
    credit: float = 1.0


def message_bytes(message: Broadcast | Report) -> int:
    """Bytes of the model and of all extras in one message."""
    model = message.model.numel() * message.model.element_size()
    return model + sum(np.asarray(array).nbytes for array in message.extras.values())
