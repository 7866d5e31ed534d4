"""What a new user meets first: the help, names as people write them, and programs that end well."""

from __future__ import annotations

import contextlib
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from tiny import ROOT

from scripts.protocol_code.plan import chosen
from src import methods
from src.catalogue import listing
from src.command_line import EXAMPLES, build_parser, read_preset
from src.config import OPTIONS, option_groups, resolve
from src.option import flag
from utils_.errors import UserError, as_known, nearest

PROGRAMS = [p for p in sorted(ROOT.glob("scripts/*.py")) if "def main(" in p.read_text()]


# ---- the help


def test_every_option_stands_under_one_heading() -> None:
    groups = option_groups()
    assert sorted(name for names in groups.values() for name in names) == sorted(OPTIONS)
    text = build_parser().format_help()
    places = [text.index(f"\n{heading}:\n") for heading in groups]
    assert places == sorted(places)
    for heading, names in groups.items():
        below = text[text.index(f"\n{heading}:\n") :].split("\n\n")[0]
        assert all(f"  {flag(name)}" in below for name in names), heading


def test_the_help_ends_in_examples_that_parse() -> None:
    assert build_parser().format_help().rstrip().endswith(EXAMPLES)
    lines = [line.split("   ")[0] for line in EXAMPLES.splitlines() if "main_fednml.py" in line]
    assert len(lines) >= 3
    for line in lines:
        _, unknown = build_parser().parse_known_args(shlex.split(line)[2:])
        assert unknown == []


# ---- names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"method": "FedNML"}, "fednml"),
        ({"method": "FedAvg"}, "fedavg"),
        ({"method": "SCAFFOLD"}, "scaffold"),
        ({"method": "FixMatch"}, "fixmatch"),
        ({"dataset": "ISIC"}, "isic"),
        ({"dataset": "ChestMNIST"}, "chestmnist"),
        ({"model": "ResNet18"}, "resnet18"),
        ({"model": "DenseNet121"}, "densenet121"),
        ({"model": "EfficientNet_B0"}, "efficientnet_b0"),
        ({"noise_type": "Symmetric"}, "symmetric"),
        ({"split": "IID"}, "iid"),
        ({"loss": "BCE"}, "bce"),
        ({"optimizer": "SGD"}, "sgd"),
        ({"weights": "None"}, "none"),
        ({"workers": "AUTO"}, "auto"),
        ({"device": "CPU"}, "cpu"),
        ({"device": "gpu"}, "cuda"),
        ({"device": "GPU:0"}, "cuda"),
        ({"device": "cuda:0"}, "cuda"),
    ],
)
def test_names_in_any_case(given: dict[str, str], name: str) -> None:
    (setting,) = given
    config = resolve(given)
    assert getattr(config, setting) == name
    assert config.canonical_hash() == resolve({setting: name}).canonical_hash()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("mps", "Apple's GPUs are not used; give --device cpu"),
        ("xpu", "Intel's GPUs are not used; give --device cpu"),
        ("TPU", "TPUs are not used; give --device cpu"),
        ("cuda:1", "CUDA_VISIBLE_DEVICES=1 before the command and give --device cuda"),
        ("cuda:one", "unknown device"),
        ("graphics", "known: auto, cpu, cuda"),
        # as they were given to other programs: Federated-Learning-PyTorch#28, rtfm#15,
        # pytorch_connectomics#40; NeuralNLP-NeuralClassifier#21 is cuda:1, optimate#110 cuda:0
        ("0", "known: auto, cpu, cuda"),
        ("cuda:none", "did you mean 'cuda'?"),
        ("train", "known: auto, cpu, cuda"),
    ],
)
def test_other_devices_are_named(device: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^--device {device}: ") as caught:
        resolve({"device": device})
    assert said in str(caught.value)


def test_other_lists_of_names_too() -> None:
    assert listing("Models") == listing("models")
    assert read_preset("Quick") == read_preset("quick")
    assert chosen("FedAvg", ["fedavg", "local"], what="--methods:") == "fedavg"
    assert as_known("fednlm", ["fednml"]) == "fednlm"
    assert nearest("FEDNLM", ["fednml"]) == "did you mean 'fednml'?"
    assert nearest("ResNet-18", ["resnet18", "small"]) == "did you mean 'resnet18'?"


# ---- stray files among the methods


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files count as if they lay in src/methods."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("src.methods.stray")]:
        del sys.modules[name]
        with contextlib.suppress(AttributeError):
            delattr(methods, name.rpartition(".")[2])


STRAY = {
    "stray_notes": ("ideas = []\n", "defines no subclass of Method"),
    "stray_empty": ("", "defines no subclass of Method"),
    "stray_imports": ("from src.methods.fedavg import FedAvg\n", "defines no subclass of Method"),
    "stray_half": ("class Half(\n", "cannot be imported (SyntaxError"),
    "stray_absent": ("import no_such_package\n", "cannot be imported (ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_is_named(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, said = STRAY[name]
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve({"method": name})
    assert str(caught.value).startswith(f"src/methods/{name}.py: ")
    assert said in str(caught.value) and "away" in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="fednml"):
        shown = listing("methods")
    assert said in caplog.text  # and the others are listed all the same
    assert "fedavg" in shown and name not in shown
    (folder / f"{name}.py").unlink()  # as advised
    caplog.clear()
    assert listing("methods") == shown and caplog.text == ""


@pytest.mark.parametrize("name", ["fednml copy", "fednml (1)", "2nd", "fednml-old"])
def test_a_backup_is_no_method(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / f"{name}.py").write_text((ROOT / "src/methods/fednml.py").read_text())
    assert name not in methods.method_names()
    listing("methods")
    assert f"src/methods/{name}.py: the name of no method" in caplog.text
    with pytest.raises(UserError, match="unknown method"):
        resolve({"method": name})


# ---- nothing is fetched to show what would be done


@pytest.mark.parametrize("model", ["resnet18", "densenet121"])
def test_a_dry_run_downloads_nothing(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was begun")

    # In this order: the first line may import torchvision, which keeps what it finds in torch.hub.
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "published", "--model", model, "--dry-run"]
    small = ["--image-size", "32", "--train-images", "60", "--test-images", "30"]
    assert tiny.call_main([*words, *small]) == 0
    assert "weights: imagenet" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


# ---- programs end well


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_all_programs_end_in_the_same_way(path: Path) -> None:
    assert path.read_text().rstrip().endswith("end_with(main)")


@pytest.mark.parametrize("name", ["attack_table", "benchmark", "compare"])
def test_a_program_starts_with_nothing_imported(name: str, tmp_path: Path) -> None:
    """Elsewhere a process that has imported everything starts these, and only these."""
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name}.py ")


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("print('line\\n' * 100_000)", 141),
        ("Parser(usage='x' * 200_000).print_help()", 0),  # argparse itself lets it pass
    ],
)
def test_nobody_reads_on(act: str, code: int) -> None:
    """compare.py --dry-run | head ended in a BrokenPipeError."""
    program = f"from utils_.script import Parser, end_with; end_with(lambda: {act})"
    command = f'{sys.executable} -c "{program}" | head -c 3; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.endswith(f" {code}\n")
