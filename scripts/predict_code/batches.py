"""Image files in batches of arrays, so that many images never lie in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from scripts.predict_code.images import ImageFile
from src.model_facts import ModelFacts
from utils_.datasets.cache.decode import decode_file
from utils_.environment import processor_count

BATCH = 64  # images in memory at once


@dataclass(frozen=True)
class DecodedBatch:
    """Some images, decoded.

    Attributes:
        first: the number of the first one among all.
        files: n of them.
        images: (n, H, W, 3) uint8; black where there is a problem.
        problems: n texts, why an image cannot be used; "" where it can.
    """

    first: int
    files: Sequence[ImageFile]
    images: np.ndarray
    problems: Sequence[str]


def decoded_batches(
    files: Sequence[ImageFile], facts: ModelFacts, *, pixel_range: str | None, quiet: bool
) -> Iterator[DecodedBatch]:
    """Decode the files as a model's training images were; ``pixel_range`` overrules its own."""
    decode = partial(
        decode_file,
        image_size=facts.image_size,
        fit=facts.fit,
        pixel_range=pixel_range or facts.pixel_range,
        bounds=facts.pixel_bounds,
    )
    bar = tqdm(total=len(files), unit="image", disable=True if quiet else None)
    with bar, ThreadPoolExecutor(processor_count()) as threads:
        for first in range(0, len(files), BATCH):
            some = files[first : first + BATCH]
            arrays, problems = zip(*threads.map(decode, [f.path for f in some]), strict=True)
            yield DecodedBatch(first, some, np.stack(arrays), problems)
            bar.update(len(some))
