"""What a run on these data cannot do or show: refused or said before anything is trained."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from src.config import Config
from src.methods import method_class
from utils_.datasets import default_folder
from utils_.datasets.base import PART_NAMES, TEST, ImageDataset
from utils_.datasets.label_files.verified import VERIFIED_FILE
from utils_.errors import UserError, some
from utils_.one_sided import report_parts
from utils_.scenario import Scenario
from utils_.truth import UNKNOWN, reference

SITES_SHOWN = 8
logger = logging.getLogger("fednml")


def check_prospects(config: Config, dataset: ImageDataset, scenario: Scenario) -> None:
    """Warn of what the run cannot show.

    Raises:
        UserError: a bound without any truth, no label to learn from, or no test image.
    """
    _check_bound(config, dataset, scenario)
    _check_labels(config, scenario)
    if not (scenario.part == TEST).any():
        raise UserError(f"no image is in the {PART_NAMES[TEST]} part; {_where_to_test(config)}")
    _report_warm_up(config)
    _report_sites(scenario)
    report_parts(dataset, scenario.part)


def _check_bound(config: Config, dataset: ImageDataset, scenario: Scenario) -> None:
    """A bound trains on true labels: somebody must have verified some, or flaws be simulated."""
    if not method_class(config.method).true_labels:
        return
    if reference(dataset, scenario, noise=config.corrupts).kind == UNKNOWN:
        place = Path(config.data_dir or default_folder(config.dataset)) / VERIFIED_FILE
        raise UserError(
            f"--method {config.method}: trains on true labels, but nobody has verified these and "
            f"nothing is simulated; write verified labels into {place} (data/README.md), simulate "
            "flaws with --noise or --missing, or choose --method fedavg"
        )


def _check_labels(config: Config, scenario: Scenario) -> None:
    """Scores of a model that never learnt would be chance that looks like a result."""
    learnt_from = scenario.annotated | scenario.soft  # a label, or the 0.5 of an uncertain one
    if learnt_from[scenario.client >= 0].any() or method_class(config.method).true_labels:
        return
    raise UserError(
        "no training image has a label at any client, so nothing can be learnt; write 0 or 1 into "
        "the label files of the training images, or give a lower --missing"
    )


def _where_to_test(config: Config) -> str:
    if config.split_file:
        return f"write test for some images in the column 'split' of {config.split_file}"
    return "add some to the test file, or remove that file: then --test-share cuts a part off"


def _report_warm_up(config: Config) -> None:
    if config.never_starts:
        logger.warning(
            "--warmup-rounds %d: what %s does after its first phase never starts in %d rounds; "
            "give --rounds %d or more, or --warmup-rounds %d or fewer",
            *(config.warmup_rounds, config.method, config.rounds),
            *(config.warmup_rounds + 1, config.rounds - 1),
        )


def _report_sites(scenario: Scenario) -> None:
    """Name the sites that hold a single image, and those where nothing is annotated."""
    clients = range(int(scenario.client.max()) + 1)
    images = np.bincount(scenario.client[scenario.client >= 0], minlength=len(clients))
    annotated = [bool(scenario.annotated[scenario.rows(client)].any()) for client in clients]
    single = [str(client) for client in clients if images[client] == 1]
    silent = [str(client) for client in clients if not annotated[client]]
    if single:
        logger.warning(
            "a single training image at client %s: such a model is its image's; fewer --clients "
            "or a site of more images would help",
            some(single, SITES_SHOWN),
        )
    if silent:
        logger.warning(
            "no annotated cell at client %s: it cannot learn from labels; annotate some there, or "
            "leave its images out",
            some(silent, SITES_SHOWN),
        )
