"""A site's worklist as files: suspects.csv and a page that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.audit_code.worklist import ClassFacts, Suspect
from utils_.spreadsheet import harmless, sheet

HEADER = (
    *("image", "class", "given", "answer", "suggestion"),
    *("wrong", "probability", "value", "evidence"),
)
DIGITS = 4
HERE = Path(__file__).parent
EXPLAINED = {
    "cross-fitted": "made by models that were trained without the image.",
    "in-sample": "made by the run's model, which has seen these labels in training and may repeat "
    "what is wrong in them.",
}


@dataclass(frozen=True)
class SiteList:
    """What the files of a site are made of.

    Attributes:
        site: what it is called.
        run: name of the run.
        images, cells: how many it holds, and how many of their labels are given.
        evidence: where predictions come from.
        facts: the classes.
        least: positives below which a class is not judged.
        suspects, blanks: its lists; None where blanks were not asked for.
        files, classes: names of all images and classes of the data set.
    """

    site: str
    run: str
    images: int
    cells: int
    evidence: str
    facts: Sequence[ClassFacts]
    least: int
    suspects: Sequence[Suspect]
    blanks: Sequence[Suspect] | None
    files: Sequence[str]
    classes: Sequence[str]


def suspects_sheet(site: SiteList, suspects: Sequence[Suspect]) -> str:
    """The list as CSV; the column ``answer`` is for the reader."""
    return sheet(
        HEADER,
        [
            (
                site.files[one.row],
                site.classes[one.column],
                label_text(one.given),
                "",
                one.suggestion,
                "" if np.isnan(one.wrong) else round(one.wrong, DIGITS),
                round(one.probability, DIGITS),
                round(one.value, DIGITS),
                site.evidence,
            )
            for one in suspects
        ],
    )


def page(site: SiteList, pictures: Mapping[int, str]) -> str:
    """The list as HTML.

    Args:
        pictures: of rows of the data set, as data URIs; a row without one shows its name alone.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = (HERE / "worklist.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    given = len(site.suspects)
    tables = [
        _table(site, site.suspects, pictures)
        | {
            "name": "suspects",
            "title": "Given labels",
            "given": True,
            "measure": "probably wrong",
            "caption": f"The first {given} of {site.cells} given labels, {site.evidence}.",
        }
    ]
    if site.blanks is not None:
        tables.append(
            _table(site, site.blanks, pictures)
            | {
                "name": "blanks",
                "title": "Blank cells",
                "given": False,
                "measure": "probably there",
                "caption": "Cells without a label, those first in which the finding is most "
                "probably there.",
            }
        )
    return environment.get_template("worklist.html").render(
        site=site.site,
        run=site.run,
        images=site.images,
        cells=site.cells,
        evidence=site.evidence,
        explanation=EXPLAINED[site.evidence],
        facts=site.facts,
        least=site.least,
        tables=tables,
        # The script is ours, and no part of it comes from data.
        script=Markup(script),  # nosec B704
        script_hash=f"sha256-{digest}",
    )


def _table(
    site: SiteList, suspects: Sequence[Suspect], pictures: Mapping[int, str]
) -> dict[str, object]:
    rows = []
    for number, one in enumerate(suspects, start=1):
        image, name = site.files[one.row], site.classes[one.column]
        rows.append(
            {
                "number": number,
                "image": image,
                "image_key": harmless(image),
                "class": name,
                "class_key": harmless(name),
                "given": label_text(one.given),
                "probability": one.probability,
                "value": one.value,
                "share": one.value if np.isnan(one.wrong) else one.wrong,
                "suggestion": one.suggestion,
                "picture": pictures.get(one.row),
            }
        )
    return {"rows": rows}


def label_text(label: float) -> str:
    """1, 0, or nothing for a blank."""
    return "" if np.isnan(label) else f"{label:.0f}"


def as_data_uri(pixels: np.ndarray) -> str:
    """An image, (H, W, 3) uint8, as text that a page can hold."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
