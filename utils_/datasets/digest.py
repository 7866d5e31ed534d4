"""What the label files of a data set say, as one short text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

import numpy as np

from utils_.datasets.base import ImageDataset

PIXELS = ("images", "image_key")


def labels_digest(dataset: ImageDataset) -> str:
    """Return 32 hex digits over everything but the pixels: labels, classes, parts, patients, sites.

    So two spellings of the same table agree. A data set loaded with ``labels_only`` gives the
    digest that its files have; images that were left out later would change it.
    """
    digest = hashlib.sha256()
    for field in fields(dataset):
        if field.name in PIXELS:
            continue
        value = getattr(dataset, field.name)
        digest.update(f"\n{field.name} ".encode())
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            digest.update(f"{value.shape} {value.dtype} ".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            plain = value.tolist() if isinstance(value, np.ndarray) else value
            digest.update(json.dumps(plain).encode())
    return digest.hexdigest()[:32]
