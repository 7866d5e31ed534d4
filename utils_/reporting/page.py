"""The whole report: what it says of the runs, and its page in HTML without network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils_.finished_runs import SELECTIONS
from utils_.reporting.comparison import Setting, build_settings
from utils_.reporting.drawing import ReportFigure, inline_svg
from utils_.reporting.method_figures import method_pictures
from utils_.reporting.overview_figures import overview_pictures
from utils_.reporting.records import RunRecord
from utils_.reporting.round_figures import round_pictures
from utils_.reporting.tables import (
    ALSO_READ,
    METRICS,
    Cell,
    ReportTable,
    classes,
    differences,
    overview,
    ranks,
    summary,
)
from utils_.run_groups import column_heads, grouped_runs
from utils_.truth import WORDS

if TYPE_CHECKING:
    import pandas as pd

MOST_DETAILED = 8  # settings with figures of their own; more would make the page too large
TEMPLATE = Path(__file__).with_name("template.html")


@dataclass(frozen=True)
class Part:
    """A chapter: of all settings together, or of one."""

    name: str
    title: str
    tables: Sequence[ReportTable] = ()
    pictures: Sequence[ReportFigure] = ()
    words: Sequence[str] = ()


@dataclass(frozen=True)
class RunReport:
    """What a report says.

    Attributes:
        rule: how the round was chosen, for every caption.
        parts: chapters in their order.
        shared: what all settings share.
        warnings: what a reader must know first.
        runs: a table of all runs.
    """

    rule: str
    parts: Sequence[Part]
    shared: str
    warnings: Sequence[str]
    runs: ReportTable
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def tables(self) -> list[ReportTable]:
        """All tables but that of the runs, titled by their chapter where there are several."""
        several = len(self.parts) > 1
        return [
            replace(table, title=f"{part.title}: {table.title}") if several else table
            for part in self.parts
            for table in part.tables
        ]

    @property
    def pictures(self) -> list[ReportFigure]:
        """All figures, by names that differ."""
        return [picture for part in self.parts for picture in part.pictures]


def build_report(
    frame: pd.DataFrame, records: Mapping[Path, RunRecord], *, selection: str
) -> RunReport:
    """Compute all tables and figures of the given runs.

    Args:
        frame: of :func:`utils_.finished_runs.collect`.
        records: of the same runs, by folder.
        selection: one of ``SELECTIONS``.

    Raises:
        UserError: unknown selection, or no run.
    """
    grouped, repeated = grouped_runs(frame, selection)
    heads, shared = column_heads(grouped)
    metrics = [*METRICS.values(), *ALSO_READ]
    settings = build_settings(grouped, heads, records, selection=selection, metrics=metrics)
    rule = f"{SELECTIONS[selection]} (selection rule {selection})"
    parts = [_overview(settings, rule)] if len(settings) > 1 else []
    parts += [_chapter(setting, place, rule) for place, setting in enumerate(settings, 1)]
    notes = _warnings(settings, selection, repeated)
    counts = {"runs": len(grouped), "settings": len(settings)}
    counts |= {"methods": grouped["label"].nunique(), "seeds": grouped["replicate"].nunique()}
    return RunReport(rule, parts, ", ".join(shared), notes, _run_table(settings), counts)


def _overview(settings: Sequence[Setting], rule: str) -> Part:
    tables = [overview(settings, rule), ranks(settings, rule)]
    return Part("all", "All settings", tables, _named("all", overview_pictures(settings, rule)))


def _chapter(setting: Setting, place: int, rule: str) -> Part:
    name, words = f"setting{place}", [_truth(setting)]
    tables = [summary(setting, rule), differences(setting, rule), classes(setting, rule)]
    if place > MOST_DETAILED:
        words.append(f"Figures are drawn of the first {MOST_DETAILED} settings alone.")
        return Part(name, setting.head, tables, words=words)
    pictures = [*round_pictures(setting), *method_pictures(setting, rule)]
    return Part(name, setting.head, tables, _named(name, pictures), words)


def _named(prefix: str, pictures: Sequence[ReportFigure]) -> list[ReportFigure]:
    return [replace(picture, name=f"{prefix}-{picture.name}") for picture in pictures]


def _truth(setting: Setting) -> str:
    """By what the labels were judged, as a sentence."""
    kind = setting.first.result.get("truth", {}).get("reference", "")
    words = WORDS.get(kind, "")
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _warnings(settings: Sequence[Setting], selection: str, repeated: int) -> list[str]:
    rows = [row for setting in settings for row in setting.rows]
    records = {r.folder: r for row in rows for r in row.records}
    found = []
    if selection == "oracle_selected":
        found.append("The round was chosen on the TEST part: scores are optimistic.")
    if selection in ("last5", "oracle_selected"):
        found.append("Intervals and scores over test images are those of the last round's model.")
    if any(not row.images or len(row.images.drawn) < len(row.records) for row in rows):
        found.append("Runs without predictions that can be read are in no figure over test images.")
    if any(record.result.get("leaky") for record in records.values()):
        found.append("Leaky runs were trained with labels hidden from their sites: no fair method.")
    late = [r.folder.name for r in records.values() if r.result.get("warmup_only")]
    if late:
        found.append(f"The method's own part never started (warm-up only): {', '.join(late)}.")
    if repeated:
        found.append(f"{repeated} older repetition(s) of the same run left out.")
    return found


def _run_table(settings: Sequence[Setting]) -> ReportTable:
    """Each run once: what it was, and on what it ran."""
    rows = [row for setting in settings for row in setting.rows]
    labelled = {r.folder: (row.label, r) for row in rows for r in row.records}
    lines = []
    for folder, (label, record) in labelled.items():
        result, facts = record.result, record.environment
        numbers = [result.get("seed"), result.get("data_seed"), result.get("rounds")]
        cells = [Cell(folder.name), Cell(label)]
        cells += [Cell("" if n is None else str(n), n) for n in numbers]
        lines.append(
            [*cells, Cell(str(facts.get("commit", ""))), Cell(str(facts.get("hardware", "")))]
        )
    head = ["run", "method", "seed", "data seed", "rounds", "commit", "hardware"]
    return ReportTable("runs", "All runs", "What was read.", head, lines)


def to_html(report: RunReport, *, notes: Sequence[str] = ()) -> str:
    """The page: one file that loads nothing.

    Args:
        report: what it says.
        notes: more to warn of, such as runs that were left out.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    # matplotlib escapes the texts of its figures, among them names of classes.
    environment.globals["svg"] = lambda picture: Markup(inline_svg(picture))  # nosec B704
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, warnings=[*report.warnings, *notes])


def to_markdown(report: RunReport) -> str:
    """All tables in Markdown."""
    return "\n\n".join(table.markdown() for table in [*report.tables, report.runs]) + "\n"


def to_latex(report: RunReport) -> str:
    """All tables for LaTeX, with the rules of booktabs."""
    return "\n\n".join(text for table in report.tables if (text := table.latex())) + "\n"
