"""Look a data set over before training: scripts/check_data.py NAME [--data-dir DIR] [--clients K]

Shows counts, labels, prevalence (with --clients for each client, split as a run would with the same
options) and a contact sheet, and names what is wrong: cells that are no label, images that cannot
be read, duplicates, patients in several parts. Exit codes: 0 nothing is wrong, 1 something is,
2 bad input, such as an unknown option or a folder that is not there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from scripts.contact_sheet import choose, draw
from src.command_line import parse_command_line
from src.config import Config, resolve
from src.job import data_options, load_dataset, settle
from utils_ import datasets
from utils_.datasets.base import ImageDataset
from utils_.datasets.cache.decode import decode_alike
from utils_.datasets.columns import choose_columns
from utils_.datasets.doctor import (
    Finding,
    client_prevalence,
    examine,
    find_thin_parts,
    label_table,
    part_counts,
)
from utils_.datasets.listing import AbsentData
from utils_.errors import UserError
from utils_.scenario import ScenarioSettings, build_scenario, client_names
from utils_.script import Parser, end_with

FINE, WRONG, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
TILE, TILES, COLUMNS = 160, 32, 8  # of the contact sheet
NAMES_SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one data set; return the exit code."""
    try:
        options, config, by_client = parse(arguments)
        dataset, findings = load(config, quiet=options.quiet)
        if dataset is not None:
            findings += examine(dataset, assume_negative=config.assume_negative)
            describe(dataset)
            if by_client:
                findings += check_clients(dataset, config)
            sheet = options.sheet or Path(config.save_dir) / "checks" / f"{config.dataset}.png"
            draw_sheet(dataset, config, sheet)
    except (UserError, OSError) as error:
        print(f"check_data: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("check_data: interrupted", file=sys.stderr)
        return INTERRUPTED
    return conclude(findings)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Config, bool]:
    """Return this script's options, the main job's, and whether clients were asked for.

    Raises:
        UserError: an option that neither has, or a wrong value.
    """
    parser = Parser(
        description="Look a data set over before training.",
        epilog="All options of main_fednml.py that concern data work too: --data-dir, --cache-dir, "
        "--image-size, --fit, --min-positives, --class-order, --clients, --split, --alpha, ...",
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(datasets.DATASETS))
    parser.add_argument("--sheet", type=Path, help="the contact sheet (save/checks/NAME.png)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options, rest = parser.parse_known_args(arguments)
    settings, commands = parse_command_line(rest)
    if commands:
        raise UserError(
            f"--{next(iter(commands)).replace('_', '-')}: only main_fednml.py does that"
        )
    config = _settled(settings | {"dataset": options.name, "noise": 0, "missing": 0})
    by_client = "clients" in settings or "split" in settings or config.split == "site"
    return options, config, by_client


def _settled(settings: dict[str, Any]) -> Config:
    """The settings as a run would have them; wrong label files are a finding, told later."""
    try:
        with _notes():
            return settle(settings)
    except AbsentData:
        raise
    except UserError:
        return resolve(settings)


def load(config: Config, *, quiet: bool) -> tuple[ImageDataset | None, list[Finding]]:
    """Return the images that can be read, or None where the label files are wrong.

    Raises:
        UserError: the data are not there, the cache cannot be written, or no class is left.
    """
    every_class = replace(
        config,
        skip_bad_images=True,
        allow_duplicates=True,
        min_positives=0,
        class_order="official",
    )
    try:
        with _notes() as notes:
            listed = load_dataset(every_class, labels_only=True, quiet=quiet)
    except AbsentData:
        raise
    except UserError as error:
        return None, [Finding(True, str(error))]
    with _notes() as later:
        dataset = load_dataset(every_class, quiet=quiet)
    findings = [Finding(False, note) for note in dict.fromkeys([*notes, *later])]
    unread = sorted(set(listed.files) - set(dataset.files))
    if unread:
        names = ", ".join(unread[:NAMES_SHOWN]) + (", ..." if len(unread) > NAMES_SHOWN else "")
        findings.insert(0, Finding(True, f"{len(unread)} images are absent or broken: {names}"))
    dataset = choose_columns(
        dataset, min_positives=config.min_positives, class_order=config.class_order
    )
    return dataset, findings


@contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect what is logged meanwhile, but for what is said in a finding of its own."""
    said = (
        *("report_straddling", "report_empty_classes", "report_unknown_patients"),
        *("report_one_sided", "report_flat", "settle_copies", "_judge"),
    )
    notes: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: (
        None if record.funcName in said else notes.append(record.getMessage())
    )
    logger = logging.getLogger("fednml")
    before = logger.propagate
    before_level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before_level)
        logger.propagate = before


def describe(dataset: ImageDataset) -> None:
    """Print counts and the table of labels."""
    counts = ", ".join(f"{name} {count:,}" for name, count in part_counts(dataset).items())
    print(
        f"{dataset.name}: {len(dataset.files):,} images ({counts}), {len(dataset.classes)} classes"
    )
    if dataset.groups is not None:
        print(f"{len(np.unique(dataset.groups)):,} patients or lesions")
    if dataset.sites is not None:
        sites, images = np.unique(dataset.sites, return_counts=True)
        pairs = zip(sites.tolist(), images.tolist(), strict=True)
        print("sites: " + ", ".join(f"{site} {count:,}" for site, count in pairs))
    shown = np.bincount((dataset.labels == 1).sum(axis=1)).tolist()
    print("classes an image: " + ", ".join(f"{k}: {n:,}" for k, n in enumerate(shown) if n))
    table = label_table(dataset)
    print("\n" + table.to_string(index=False, float_format="{:.3f}".format) + "\n")


def check_clients(dataset: ImageDataset, config: Config) -> list[Finding]:
    """Print the share of positives of every class at every client, before noise and hiding.

    Returns:
        What the parts and the clients lack.

    Raises:
        UserError: the data cannot be split so.
    """
    with _notes() as notes:
        scenario = build_scenario(dataset, config.part(ScenarioSettings), folder=None)
    counts = np.bincount(scenario.client[scenario.client >= 0]).tolist()
    print(f"prevalence at {len(counts)} clients ({config.split}), images: {counts}")
    names = client_names(scenario, dataset, split=config.split)
    table = client_prevalence(dataset, scenario.client, names)
    print(table.to_string(index=False, float_format="{:.3f}".format) + "\n")
    return [Finding(False, note) for note in notes] + find_thin_parts(dataset, scenario)


def draw_sheet(dataset: ImageDataset, config: Config, path: Path) -> None:
    """Write the contact sheet, from the files again where they are larger than the cache."""
    rows = choose(dataset.labels, TILES, seed=1)
    if not rows:
        return
    images = np.stack([dataset.images[row] for row in rows])
    if config.dataset in datasets.READERS and config.image_size < TILE:
        folder = Path(config.data_dir or datasets.default_folder(config.dataset))
        with _notes():  # they are told already
            listing = datasets.listed(config.dataset, folder, data_options(config, quiet=True))
        file_of = dict(zip(listing.names, listing.files, strict=True))
        paths = [listing.folder / file_of[dataset.files[row]] for row in rows]
        images = decode_alike(
            paths, image_size=TILE, fit=config.fit, pixel_range=config.pixel_range
        )
    shown = replace(dataset, images=images, labels=dataset.labels[rows])
    try:
        draw(shown, range(len(rows)), columns=COLUMNS, path=path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--sheet {path}: {reason}; name another place for the picture") from error
    print(f"contact sheet: {path}")


def conclude(findings: Sequence[Finding]) -> int:
    """Print the findings; return the exit code."""
    for finding in findings:
        print(f"{'WRONG' if finding.wrong else 'note'}: {finding.text}")
    wrong = sum(finding.wrong for finding in findings)
    print({0: "nothing is wrong", 1: "1 thing is wrong"}.get(wrong, f"{wrong} things are wrong"))
    return WRONG if wrong else FINE


if __name__ == "__main__":
    end_with(main)
