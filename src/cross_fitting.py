"""Predictions of training images by models that never saw them: the federation trained by folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from src.config import Config
from src.simulation import Simulation
from utils_.rng import derive, derive_seed

if TYPE_CHECKING:
    from src.models import FlatModel
    from utils_.datasets.base import ImageDataset
    from utils_.scenario import Scenario

LARGEST_SEED = 2**31  # that a run may have
SETTLED = 0.4  # share of the rounds after which predictions are good enough to be averaged


def plain_settings(config: Config, *, rounds: int) -> Config:
    """The settings of a run, with FedAvg as the method, for few rounds and without attackers."""
    warmup = min(config.warmup_rounds, rounds - 1)
    return replace(
        config, method="fedavg", param={}, rounds=rounds, warmup_rounds=warmup, attack="none"
    )


def deal_folds(
    client: np.ndarray, groups: np.ndarray | None, *, folds: int, seed: int
) -> np.ndarray:
    """Deal the images of each site to folds of equal size; those of a patient stay together.

    Args:
        client: (N,) the site of each image, -1 for none.
        groups: (N,) a number for each patient; None where no patients are known.
        folds: how many, at least 2.
        seed: of the draw.

    Returns:
        (N,) int64 numbers from 0, -1 for images of no site.
    """
    owner = np.arange(len(client)) if groups is None else groups
    fold = np.full(len(client), -1)
    for site in np.unique(client[client >= 0]):
        rows = np.flatnonzero(client == site)
        patients, place = np.unique(owner[rows], return_inverse=True)
        order = derive(seed, "audit folds", int(site)).permutation(len(patients))
        fold[rows] = order[place] % folds
    return fold


def cross_fit(
    config: Config,
    dataset: ImageDataset,
    scenario: Scenario,
    *,
    model: FlatModel,
    folds: int,
    repeats: int,
    progress: Callable[[], object],
) -> np.ndarray:
    """Predict every training image by federations that were trained without it.

    For each fold the sites train anew on their other images, all with their observed labels. The
    predictions are means over the later rounds, and over several deals of the images to folds,
    each with a seed of its own: a single model is a matter of luck.

    Args:
        config: of :func:`plain_settings`.
        dataset: N images with C classes.
        scenario: who holds what.
        model: at its initial weights, and left so.
        folds: how many, at least 2.
        repeats: deals of the images to folds, at least 1.
        progress: called after each round.

    Returns:
        (N, C) float32 probabilities, NaN for images of no site.
    """
    start, total = model.snapshot(), np.zeros(dataset.labels.shape, np.float32)
    for repeat in range(repeats):
        seed = derive_seed(config.seed, "audit", repeat) % LARGEST_SEED
        seeded = replace(config, seed=seed)
        fold = deal_folds(scenario.client, dataset.groups, folds=folds, seed=seed)
        for number in range(folds):
            left_out = np.flatnonzero(fold == number)
            held = np.where(fold == number, -1, scenario.client).astype(scenario.client.dtype)
            model.load(start)
            simulation = Simulation(seeded, dataset, replace(scenario, client=held), model)
            total[left_out] += _predict_later_rounds(simulation, left_out, progress)
    model.load(start)
    total[scenario.client < 0] = np.nan
    return total / np.float32(repeats)


def _predict_later_rounds(
    simulation: Simulation, rows: np.ndarray, progress: Callable[[], object]
) -> np.ndarray:
    """Train all rounds; (n, C) mean of what the later global models predict of the rows."""
    server, rounds = simulation.server, simulation.config.rounds
    first = int(SETTLED * rounds)
    predicted = []
    runner = simulation.start_runner()
    try:
        server.meet(client.introduce() for client in simulation.clients)
        while server.round < rounds:
            server.finish_round(runner.run(server.broadcast(), server.select()))
            if server.round > first:
                predicted.append(runner.predict(server.model, rows))
            progress()
    finally:
        runner.close()
    return np.asarray(np.mean(predicted, axis=0))
