"""One look for all figures, and figures as SVG that follows the colours of its page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils_.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers too (Okabe and Ito); beyond eight the lines are dashed, dotted.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#7a6a00", "#56b4e9", "#8c4a9e", "#5f6770"),
)
DASHES = ("-", "--", ":")
INK, GRID = "#1b1f24", "#d9dde2"
# What the page calls these colours, so that it can be dark or light.
VARIABLES = {INK: "currentColor", GRID: "var(--grid)"}
VARIABLES |= {colour: f"var(--c{place})" for place, colour in enumerate(COLOURS, 1)}
FONT = "Verdana, 'DejaVu Sans', sans-serif"  # alike in width, so that nothing is cut off


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report, or the reason why there is none.

    Attributes:
        name: of its file, without a suffix.
        title: above it.
        caption: what is drawn, and how the round was chosen.
        figure: None where the data are absent.
        absent: why.
    """

    name: str
    title: str
    caption: str = ""
    figure: Figure | None = None
    absent: str = ""


def new_figure(columns: int = 1, *, height: float = 2.9, width: float = 6.2) -> tuple[Figure, Any]:
    """A figure with panels beside each other; they are returned as a list."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for panel in panels:
        dress(panel)
    return figure, panels


def dress(panel: Axes) -> None:
    """Thin lines, small letters, a pale grid."""
    panel.patch.set_alpha(0)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=INK, length=3)
    for side, spine in panel.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))


def name_axes(panel: Axes, across: str, up: str, title: str = "") -> None:
    """Write what the axes show."""
    if across == "round":
        from matplotlib.ticker import MaxNLocator

        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    panel.set_xlabel(across, fontsize=8.5, color=INK)
    panel.set_ylabel(up, fontsize=8.5, color=INK)
    if title:
        panel.set_title(title, fontsize=9, color=INK, loc="left")


def legend(figure: Figure, panel: Axes, *, columns: int = 4) -> None:
    """Names of the lines of ``panel``, below the figure."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        shown = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=8
        )
        shown.get_frame().set_alpha(0)
        shown.get_frame().set_linewidth(0)
        for text in shown.get_texts():
            text.set_color(INK)
            text.set_parse_math(False)


def look(place: int) -> dict[str, Any]:
    """Colour and dashes of the method at this place of the order."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
    }


def write_figure(picture: ReportFigure, folder: Path) -> list[Path]:
    """Write a figure as SVG and PDF; returns the files."""
    if picture.figure is None:
        return []
    paths = [folder / f"{picture.name}.{kind}" for kind in ("svg", "pdf")]
    for path in paths:
        with atomic_path(path) as temporary, _no_glyph_warnings():
            # Without the hour, so that the same runs give the same files.
            date = "Date" if path.suffix == ".svg" else "CreationDate"
            picture.figure.savefig(temporary, format=path.suffix[1:], metadata={date: None})
    return paths


def inline_svg(picture: ReportFigure) -> str:
    """The figure as an element of a page: its colours are the page's, its text can be selected."""
    import matplotlib as mpl

    if picture.figure is None:
        return ""
    buffer = io.StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}),
        _no_glyph_warnings(),
    ):
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<style.*?</style>", "", text, count=1, flags=re.DOTALL
    )  # it styles all of a page
    text = re.sub(r"\s*\n\s*", "\n", _own_names(text, picture.name))
    text = re.sub(r"<[^>]*>", _page_tag, text)  # names of classes, between tags, stay as they are
    # The figure's caption says what it shows, so that readers aloud may skip its parts.
    hidden = r'<svg \1 aria-hidden="true" focusable="false">'
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", hidden, text, count=1)


def _page_tag(found: re.Match[str]) -> str:
    """One tag in the page's colours and fonts, without the digits that nobody sees."""
    tag = found[0]
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, variable)
    tag = re.sub(r"font-family: [^;\"]*", f"font-family: {FONT}", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", rf"font: \1 {FONT}", tag)
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", tag)


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Names in scripts that the drawing font lacks are drawn by the reader's own fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _own_names(text: str, name: str) -> str:
    """Names of parts that nothing refers to are dropped; the others are unlike any other figure's.

    Two elements of one name on a page would each be drawn with the other's clip path.
    """
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))

    def own(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    text = re.sub(r" id=\"([^\"]*)\"", own, text)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
