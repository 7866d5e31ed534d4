"""Every random draw of the project starts here, so results depend on names and never on order."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends only on ``seed`` and ``names``."""
    key = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def derive(seed: int, *names: str | int) -> np.random.Generator:
    """Return an independent generator for one use, e.g. ``derive(seed, "noise", client)``."""
    return np.random.default_rng(derive_seed(seed, *names))
