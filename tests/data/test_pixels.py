"""Batches of images are the same wherever they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_config, make_dataset, make_scenario, make_simulation

from src.workers import SequentialRunner
from utils_.pixels import Pixels
from utils_.rng import derive

ROOM = 10**9
CPU = torch.device("cpu")


def make_images(count: int = 12) -> np.ndarray:
    return derive(1, "pixels").integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("room", [None, 0, ROOM])
@pytest.mark.parametrize("mapped", [False, True])
def test_batches_hold_the_chosen_images(room: int | None, mapped: bool, tmp_path: Path) -> None:
    images, rows = make_images(), np.array([3, 0, 3, 11])
    if mapped:
        np.save(tmp_path / "images.npy", images)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
    found = Pixels(CPU, room=room).batch(images, rows)
    assert found.dtype == torch.uint8 and found.shape == (4, 8, 8, 3)
    assert np.array_equal(found.numpy(), images[rows])


@pytest.mark.parametrize(("room", "resident"), [(None, False), (ROOM, True), (100, False)])
def test_images_move_once_where_there_is_room(room: int | None, resident: bool) -> None:
    """Afterwards nothing reads the array any more."""
    images, rows, pixels = make_images(), np.arange(4), Pixels(CPU, room=room)
    first = pixels.batch(images, rows).clone()
    images[:] = 0
    again = pixels.batch(images, rows)
    assert torch.equal(again, first) == resident
    assert bool(again.any()) == resident


def test_other_images_take_the_place_of_the_first() -> None:
    pixels, first, other = Pixels(CPU, room=ROOM), make_images(), make_images(6) + 1
    for images in (first, other, first):
        rows = np.arange(len(images))
        assert np.array_equal(pixels.batch(images, rows).numpy(), images)


def test_a_round_on_resident_images_gives_the_same_bits() -> None:
    found = []
    for room in (None, ROOM):
        dataset = make_dataset()
        config = make_config("fednml", warmup_rounds=0)
        simulation = make_simulation(config, dataset, make_scenario(dataset))
        simulation.model.pixels = Pixels(CPU, room=room)
        server = simulation.server
        runner = SequentialRunner(simulation.clients, simulation.method, simulation.predictor)
        server.finish_round(runner.run(server.broadcast(), server.select()))
        found.append(server.model)
    assert torch.equal(*found)
