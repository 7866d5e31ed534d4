"""Text and tables for LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from utils_.latex import SPECIAL, booktabs, escape

HOSTILE = r"100 % of {a}_b & \input{x} #1 $5$ ~ ^ < > | --param ± – — ≥"


@pytest.mark.parametrize("character", [c for c in SPECIAL if c.isascii()])
def test_no_special_character_is_left(character):
    text = escape(f"a{character}b")
    left = re.sub(r"\\(text\w+\{\}|[&%$#_{}])|''|\$\\?\w+\$", "", text)
    assert left == "ab"


def test_escape_keeps_plain_text_and_joins_lines():
    assert escape("FedNML 0.351, zwölf") == "FedNML 0.351, zwölf"
    assert escape("two\nlines") == "two lines"
    assert escape("macro_f1 at 50 % ± 1") == r"macro\_f1 at 50 \% $\pm$ 1"
    assert escape("--param") == "-{}-param"


def test_table_has_rules_escaped_cells_and_bold():
    table = booktabs(["method", "mAP"], [["fed_nml", "**0.351 ± 0.007**"], ["[x]", "–"]])
    assert table.splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & mAP \\",
        r"\midrule",
        r"fed\_nml & \textbf{0.351 $\pm$ 0.007} \\",
        r"{[x]} & \textendash{} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_caption_makes_it_a_float():
    lines = booktabs(["a"], [["**"]], caption="50 %").splitlines()
    assert lines[1:4] == [r"\begin{table}", r"\centering", r"\caption{50 \%}"]
    assert lines[-1] == r"\end{table}" and "{**} \\\\" in lines


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_hostile_table_compiles(tmp_path):
    table = booktabs([HOSTILE, "mAP"], [[HOSTILE, f"**{HOSTILE}**"]], caption=HOSTILE)
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    page = tmp_path / "page.tex"
    page.write_text(f"{head}{table}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", page.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
