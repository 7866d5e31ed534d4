"""Settings that clash, or of which one lacks another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from src.aggregator_options import RANKING
from utils_.errors import UserError
from utils_.missing import UP_TO_ALL

if TYPE_CHECKING:
    from src.config import Config

LEAST_DENSENET = 29  # pixels that its five halvings need
MAX_NAME_BYTES = 200  # most file systems allow 255, of which drafts beside the folder need some


def check_together(config: Config) -> None:
    """Check the settings against each other.

    Raises:
        UserError: two of them clash, or one lacks another.
    """
    all_hidden = config.missing == 1 and config.missing_type in UP_TO_ALL
    if isinstance(config.missing, float) and config.missing >= 1 and not all_hidden:
        raise UserError(f"--missing {config.missing}: give a share below 1.0 or a whole count")
    _check_files(config)
    _check_model(config)
    _check_attack(config)


def _check_files(config: Config) -> None:
    if config.split == "file" and not config.split_file:
        raise UserError("--split file: give the file as --split-file FILE")
    if config.split_file and config.split != "file":
        raise UserError(f"--split-file: clashes with --split {config.split}; leave out one of them")
    if config.dataset == "csv" and config.data_dir is None:
        raise UserError("--dataset csv: give the folder with your files as --data-dir DIR")
    _check_name(config.name)


def _check_model(config: Config) -> None:
    if config.weights == "imagenet" and config.model == "small":
        raise UserError(
            "--weights imagenet: model 'small' has no such weights; use a larger --model such as "
            "resnet18, or --weights none"
        )
    if config.model == "densenet121" and config.image_size < LEAST_DENSENET:
        raise UserError(
            f"--image-size {config.image_size}: densenet121 shrinks such images to nothing; use "
            f"--image-size {LEAST_DENSENET} or more"
        )


def _check_attack(config: Config) -> None:
    if config.attack != "none" and config.attackers > config.clients:
        raise UserError(
            f"--attackers {config.attackers}: there are {config.clients} clients only; give fewer "
            "attackers or more --clients"
        )
    if config.attack != "none" and config.attackers == config.clients:
        raise UserError(
            f"--attackers {config.attackers}: then all {config.clients} clients attack and nothing "
            f"honest is left; {_fewer_attackers(config.clients)}"
        )
    if config.attack == "collude" and config.attackers < 2:
        raise UserError(
            f"--attack collude: {config.attackers} attackers have nobody to collude with; give 2 "
            "--attackers or more"
        )
    if config.suppress_outliers and config.aggregator in RANKING:
        raise UserError(
            f"--suppress-outliers: {config.aggregator} does not weigh clients; leave one of the "
            "two out or choose mean, uniform, geometric, clip or classwise"
        )


def _fewer_attackers(clients: int) -> str:
    if clients == 1:
        return "use --attack none, or two --clients or more"
    return f"give at most {clients - 1}, or more --clients"


def _check_name(name: str | None) -> None:
    if name is None:
        return
    if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
        raise UserError(f"--name {name!r}: give a plain folder name without slashes")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise UserError(f"--name {name[:20]}...: too long; give at most {MAX_NAME_BYTES} bytes")
