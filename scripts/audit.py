"""The labels of a run that are worth a second look: python scripts/audit.py RUN [--top 200]

Writes for each site suspects.csv and a page for the browser. Answers come back with --apply, which
makes a data folder with corrected label files; the old ones stay. Predictions of an image come from
models that were trained without it (--folds), since a model repeats what it has learnt by heart.
Exit codes: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from scripts.audit_code.answers import correct_files, read_answers
from scripts.audit_code.judge import judge
from scripts.audit_code.page import SiteList, as_data_uri, page, suspects_sheet
from scripts.audit_code.run import (
    PastRun,
    labels_of_run,
    open_run,
    predict_cross_fitted,
    predict_in_sample,
    settings_of_run,
    thumbnails,
)
from scripts.audit_code.worklist import (
    JUDGED,
    NOT_TRAINED,
    TOO_FEW,
    ClassFacts,
    Federation,
    blanks,
    doubts,
    judge_classes,
    suspects,
)
from utils_.errors import UserError
from utils_.files import atomic_folder, write_text
from utils_.script import Parser, end_with
from utils_.suspects import Doubt

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
FOLDS, REPEATS, ROUNDS, TOP, LEAST = 3, 2, 15, 200, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the worklists of a run, or take answers back; return the exit code."""
    try:
        options = parse(arguments)
        if options.apply:
            apply(options)
        else:
            audit(options)
    except (UserError, OSError) as error:
        print(f"audit: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("audit: interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options.

    Raises:
        UserError: a wrong one, or two that clash.
    """
    parser = Parser(description="The labels of a run that are worth a second look.")
    parser.add_argument("run", type=Path, metavar="RUN", help="its folder, such as save/runs/NAME")
    parser.add_argument(
        "--out", type=Path, help="a new folder (RUN/audit; of --apply RUN/reviewed)"
    )
    parser.add_argument("--top", type=int, default=TOP, help=f"labels listed for a site ({TOP})")
    parser.add_argument("--blanks", action="store_true", help="list blank cells too, apart")
    parser.add_argument(
        "--folds",
        type=int,
        default=FOLDS,
        help=f"parts of the images that are left out of training in turn ({FOLDS}); 0: predict "
        "with the run's own model, which has seen all labels",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        help=f"how often the images are dealt to folds anew ({REPEATS}); more are surer",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"rounds of training without a fold ({ROUNDS}, or the run's if those are fewer)",
    )
    parser.add_argument(
        "--least", type=int, default=LEAST, help=f"positives for a class to be judged ({LEAST})"
    )
    parser.add_argument(
        "--apply",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="lists with answers: make a data folder with corrected label files",
    )
    parser.add_argument("--device", help="auto, cpu or cuda (as the run)")
    parser.add_argument("--workers", help="processes that train sites side by side (as the run)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    lowest = {"top": 1, "least": 1, "rounds": 1, "repeats": 1, "folds": 0}
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= 1_000_000:
            raise UserError(f"--{name} {value}: give a number from {low} to 1000000")
    if options.folds == 1:
        raise UserError("--folds 1: leaves no image to train on; give 2 or more, or 0 for none")
    return options


def audit(options: argparse.Namespace) -> None:
    """Predict the training images of a run and write its worklists."""
    out = options.out or options.run / "audit"
    if out.exists():
        raise UserError(f"{out}: exists and may hold answers; move it, or name a new --out")
    config = settings_of_run(options.run, device=options.device, workers=options.workers)
    run = open_run(options.run, config, quiet=options.quiet)
    federation = observe(run, options)
    facts = judge_classes(federation.given, run.dataset.classes, least=options.least)
    doubt = doubts(federation, facts)
    with atomic_folder(out) as draft:
        lines = write_sites(run, federation, doubt, facts, draft=draft, options=options)
        told = judge(run, federation, doubt, draft)
    print("\n".join([*lines, *_told_of_classes(facts, options.least), *told, f"\naudit: {out}"]))


def observe(run: PastRun, options: argparse.Namespace) -> Federation:
    """The given labels, and predictions by the folds that were asked for."""
    from tqdm import tqdm

    client, given = run.scenario.client, run.given
    if not options.folds:
        return Federation(client, given, predict_in_sample(run), "in-sample")
    rounds = options.rounds or min(ROUNDS, run.config.rounds)
    folds, repeats = options.folds, options.repeats
    print(_cost(run, folds=folds, repeats=repeats, rounds=rounds), file=sys.stderr)
    with tqdm(total=repeats * folds * rounds, unit="round", disable=options.quiet) as bar:
        probability = predict_cross_fitted(
            run, folds=folds, repeats=repeats, rounds=rounds, progress=bar.update
        )
    return Federation(client, given, probability, "cross-fitted")


def _cost(run: PastRun, *, folds: int, repeats: int, rounds: int) -> str:
    """What cross-fitting takes, by the rounds of the run."""
    import pandas as pd

    alike = repeats * (folds - 1) * rounds
    told = f"cross-fitting: {repeats * folds} times {rounds} rounds, each without a fold of the "
    told += f"images, as much as {alike} rounds of the run"
    history = run.folder / "metrics.csv"
    if not history.is_file():
        return told
    seconds = float(pd.read_csv(history)["seconds"].median())
    return f"{told} (there about {alike * seconds / 60:.1f} minutes)"


def write_sites(
    run: PastRun,
    federation: Federation,
    doubt: Doubt,
    facts: Sequence[ClassFacts],
    *,
    draft: Path,
    options: argparse.Namespace,
) -> list[str]:
    """Write the files of each site; return a line for each."""
    lines = []
    for site in range(run.config.clients):
        rows = federation.rows(site)
        listed = suspects(federation, doubt, rows, top=options.top)
        unlabelled = None
        if options.blanks:
            unlabelled = blanks(federation, doubt, rows, top=options.top)
        one = SiteList(
            site=run.names.called(site),
            run=run.folder.resolve().name,
            images=len(rows),
            cells=int(np.isfinite(federation.given[rows]).sum()),
            evidence=federation.evidence,
            facts=facts,
            least=options.least,
            suspects=listed,
            blanks=unlabelled,
            files=run.dataset.files,
            classes=run.dataset.classes,
        )
        folder = draft / run.site_folder(site)
        write_text(folder / "suspects.csv", suspects_sheet(one, listed))
        if unlabelled is not None:
            write_text(folder / "blanks.csv", suspects_sheet(one, unlabelled))
        shown = sorted({found.row for found in (*listed, *(unlabelled or ()))})
        pictures = map(as_data_uri, thumbnails(run, shown))
        write_text(folder / "suspects.html", page(one, dict(zip(shown, pictures, strict=True))))
        doubtful = sum(found.wrong > 0.5 for found in listed)
        lines.append(
            f"{one.site}: {one.images} images, {one.cells} given labels, {len(listed)} listed, "
            f"{doubtful} of them rather wrong than right: {folder.name}/suspects.html"
        )
    return lines


def _told_of_classes(facts: Sequence[ClassFacts], least: int) -> list[str]:
    few = [f"{fact.name} (n = {fact.positives})" for fact in facts if fact.status == TOO_FEW]
    absent = [fact.name for fact in facts if fact.status == NOT_TRAINED]
    told = [f"not judged, below {least} positives: {', '.join(few)}"] if few else []
    told += [f"not trained, no site annotates them: {', '.join(absent)}"] if absent else []
    if not any(fact.status == JUDGED for fact in facts):
        told.append("no class is judged; see --least")
    return told


def apply(options: argparse.Namespace) -> None:
    """Make a data folder whose label files hold the answers."""
    config = settings_of_run(options.run)
    if config.noise:
        raise UserError(
            f"--apply: the labels of {options.run} were made wrong on purpose (--noise "
            f"{config.noise:g}), so the answers are not about the files; audit a run with --noise 0"
        )
    dataset = labels_of_run(options.run, config)
    answers = read_answers(options.apply, dataset)
    folder = options.out or options.run / "reviewed"
    made = correct_files(config, dataset, answers, folder=folder)
    print(f"{made.answers} answers, {made.cells} labels changed; the data folder is {made.folder}")
    print(f"train again with --data-dir {made.folder}")


if __name__ == "__main__":
    end_with(main)
