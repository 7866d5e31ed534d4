"""What a node's ``--node-config`` says; imports nothing heavy, since each message waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils_.errors import UserError, nearest

# What a node decides for itself: settings of a run, and what only a node has.
LOCAL_FORMS = ("ignore_columns", "label_format", "uncertain", "combine")
LOCAL = ("data_dir", "cache_dir", "device", "skip_bad_images", "allow_duplicates")
NODE_KEYS = (
    *("site", "state_dir", "partition_id", "num_partitions"),
    *("worker_idle", "fewest_cases"),
)
IDLE_SECONDS, FEWEST_CASES = 900.0, 5


@dataclass(frozen=True)
class Node:
    """What a node's ``--node-config`` says.

    Attributes:
        partition: its number in a simulation, None at a hospital.
        partitions: how many there are, -1 if nobody said.
        site: the hospital's name.
        settings: settings of a run that the node decides for itself.
        state: where the site's state is kept, None for a place beside the data.
        idle: seconds that a worker waits for the next message, 0 for no worker.
        fewest: positives, negatives or cells, below which the site tells nothing of them where it
            evaluates.
    """

    partition: int | None
    partitions: int
    site: str
    settings: Mapping[str, Any]
    state: Path | None
    idle: float = IDLE_SECONDS
    fewest: int = FEWEST_CASES

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Node:
        """Check and sort the keys.

        Raises:
            UserError: an unknown key, or neither a partition nor a hospital.
        """
        told = {key.replace("-", "_"): value for key, value in config.items()}
        known = (*NODE_KEYS, *LOCAL, *LOCAL_FORMS)
        for key in told:
            if key not in known:
                raise UserError(f"--node-config {key}: unknown; {nearest(key, known)}")
        settings = {key: told[key] for key in (*LOCAL, *LOCAL_FORMS) if key in told}
        state = Path(str(told["state_dir"])) if "state_dir" in told else None
        own = (
            state,
            _seconds(told.get("worker_idle", IDLE_SECONDS)),
            _cases(told.get("fewest_cases", FEWEST_CASES)),
        )
        if "partition_id" in told:
            number = int(told["partition_id"])
            return cls(number, int(told.get("num_partitions", -1)), "", settings, *own)
        if not told.get("site") or "data_dir" not in told:
            raise UserError(
                "--node-config: give this hospital's name and folder, such as "
                '\'site="north" data-dir="/data"\''
            )
        return cls(None, -1, str(told["site"]), settings, *own)

    @property
    def name(self) -> str:
        """What the site is called."""
        return self.site if self.partition is None else f"client {self.partition}"

    @property
    def called(self) -> str:
        """For a sentence."""
        return f"site {self.site}" if self.partition is None else self.name

    def state_root(self, save_dir: str) -> Path:
        """Where the states of the node's sites lie; ``save_dir`` is that of a simulated run."""
        if self.state is not None:
            return self.state
        if self.partition is not None:
            return Path(save_dir) / "sites"
        return Path(str(self.settings["data_dir"])) / ".fednml"


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**7:
        raise UserError(f"--node-config worker-idle {value}: give seconds from 0, 0 for no worker")
    return float(value)


def _cases(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 10**6:
        raise UserError(f"--node-config fewest-cases {value}: give a whole number from 1")
    return value
