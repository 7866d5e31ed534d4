"""Input made wrong: bytes of valid files, changed by chance, as a seed and a number say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from utils_.rng import derive

# What has hurt readers of files before.
NASTY = (
    *(b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b"\t", b"=", b"../../x", b"/etc/passwd", b"%s"),
    *(b"nan", b"-inf", b"1e999", b"-1", b"0", b"99999999999999999999", b"0x7fffffff", b"True"),
    *(b"<script>alert(1)</script>", b"=1+1", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *("\u202e\u200b".encode(), "ﬁ".encode(), b"\x80", b"[" * 50, b"{" * 50, b"(" * 50, b"null"),
    *(b"!!python/object/apply:os.system ['x']", b"&a [*a]", b"<<: *a", b"\xff\xff\xff\xff"),
    *(b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\0" * 40, b"A" * 3000, b"-0.0", b"1,5", b"NA"),
)


def mutated(seed: int, target: str, number: int, *, valid: Sequence[bytes]) -> bytes:
    """The input of that number: some valid one with one change or a few."""
    draw = derive(seed, "fuzz", target, number)
    data = valid[draw.integers(len(valid))]
    for _ in range(min(draw.geometric(0.6), 6)):
        change = CHANGES[draw.integers(len(CHANGES))]
        data = change(data, draw, valid)
    return data


def _flip(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = int(draw.integers(len(data)))
    return data[:place] + bytes([data[place] ^ 1 << int(draw.integers(8))]) + data[place + 1 :]


def _insert(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    place, word = int(draw.integers(len(data) + 1)), NASTY[draw.integers(len(NASTY))]
    return data[:place] + word + data[place:]


def _overwrite(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    place, word = int(draw.integers(len(data) + 1)), NASTY[draw.integers(len(NASTY))]
    return data[:place] + word + data[place + len(word) :]


def _noise(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    start, end = _slice(data, draw)
    return data[:start] + draw.bytes(min(end - start, 64)) + data[end:]


def _cut(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    start, end = _slice(data, draw)
    return data[:start] + data[end:]


def _repeat(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    start, end = _slice(data, draw)
    return data[:end] + data[start:end] * int(draw.integers(1, 4)) + data[end:]


def _truncate(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    return data[: int(draw.integers(len(data) + 1))]


def _splice(data: bytes, draw: np.random.Generator, valid: Sequence[bytes]) -> bytes:
    other = valid[draw.integers(len(valid))]
    return data[: int(draw.integers(len(data) + 1))] + other[int(draw.integers(len(other) + 1)) :]


def _slice(data: bytes, draw: np.random.Generator) -> tuple[int, int]:
    start, end = sorted(draw.integers(len(data) + 1, size=2).tolist())
    return start, min(end, start + 4000)


Change = Callable[[bytes, np.random.Generator, Sequence[bytes]], bytes]
CHANGES: tuple[Change, ...] = (
    _flip,
    _insert,
    _overwrite,
    _noise,
    _cut,
    _repeat,
    _splice,
    _truncate,
)
