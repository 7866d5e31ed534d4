"""Files of weights: what other programs write loads, what would spoil the model is refused."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from src.models import build_module
from src.weight_files import describe_weights
from src.weights import match_names
from utils_.errors import UserError

NAMES = ("cat", "dog", "eel", "fox")
State = dict[str, Tensor]


def build(
    name: str = "small", *, weights: object = "none", seed: int = 1, **rest: Any
) -> nn.Module:
    return build_module(name, classes=len(NAMES), weights=str(weights), seed=seed, **rest)


def source_state(name: str = "small") -> State:
    """Weights that no start has, statistics among them."""
    state = build(name, seed=5).state_dict()
    return {k: v + 0.25 if v.is_floating_point() else v for k, v in state.items()}


def body(state: State) -> State:
    """All float tensors but the head's, which are the last two."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    return {name: state[name] for name in names[:-2]}


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def assert_loads(content: Any, path: Path, *, name: str = "small", state: State | None = None):
    torch.save(content, path)
    found = build(name, weights=path, class_names=NAMES).state_dict()
    for key, value in body(state or source_state(name)).items():
        assert torch.equal(found[key], value), key


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "DataParallel": prefixed("module."),
    "model.": prefixed("model."),
    "MoCo's backbone.": prefixed("backbone."),
    "encoder.": prefixed("encoder."),
    "torch.compile": prefixed("_orig_mod."),
    "compiled and parallel": prefixed("module._orig_mod."),
    "TorchXRayVision's net.": prefixed("net."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: torch.ones(2)}}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "global_step": 7},
    "two tables deep": lambda state: {"checkpoint": {"model": prefixed("module.")(state)}},
    "DINO": lambda state: {
        "student": prefixed("module.backbone.")({k: v + 1 for k, v in state.items()}),
        "teacher": prefixed("backbone.")(state),
    },
    "MoCo": lambda state: {
        "state_dict": prefixed("module.encoder_k.")({k: v + 1 for k, v in state.items()})
        | prefixed("module.encoder_q.")(state)
    },
    "timm's EMA": lambda state: {
        "state_dict": {k: v + 1 for k, v in state.items()},
        "state_dict_ema": state,
    },
    "twice the same": lambda state: {"model": state, "best": state},
    "a projection beside it": lambda state: state | {"projector.weight": torch.ones(3, 3)},
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_and_prefixes(case, tmp_path):
    assert_loads(WRAPPED[case](source_state()), tmp_path / "weights.pt")


def test_another_precision_is_converted(tmp_path):
    state = source_state()
    doubles = {k: v.to(torch.float64) if v.is_floating_point() else v for k, v in state.items()}
    assert_loads(doubles, tmp_path / "weights.pt")


def test_what_was_taken_and_left_is_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fednml")
    content = {"model": prefixed("module.")(source_state()), "queue": torch.ones(3)}
    assert_loads(content, tmp_path / "weights.pt")
    (record,) = caplog.records
    message = record.getMessage()
    count = len(body(source_state()))
    assert f"took {count} tensors without 'model.module.'" in message and "\n" not in message
    assert "the head starts anew, for the file does not name its classes" in message
    assert "left: 3 others such as" in message  # the head's two and the queue


# ---- names of other programs


def old_densenet(name: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)


# timm's name for each part of a torchvision block, by the number of parts.
TIMM_BLOCK = {
    6: ["conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"],
    8: ["conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"],
}


def timm_efficientnet(names: list[str]) -> dict[str, str]:
    """timm's names by torchvision's, from the order in which both list the layers of a block."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    table: dict[str, str] = {}
    blocks = dict.fromkeys(layer.split(".block.")[0] for layer in layers if ".block." in layer)
    for block in blocks:
        own = [layer for layer in layers if layer.startswith(f"{block}.block.")]
        _, stage, number = block.split(".")
        pairs = zip(own, TIMM_BLOCK[len(own)], strict=True)
        table |= {layer: f"blocks.{int(stage) - 1}.{number}.{part}" for layer, part in pairs}
    outer = [layer for layer in layers if layer not in table]
    ends = ["conv_stem", "bn1", "conv_head", "bn2", "classifier"]
    table |= dict(zip(outer, ends, strict=True))
    split = {name: name.rpartition(".") for name in names}
    return {name: f"{table[layer]}.{kind}" for name, (layer, _, kind) in split.items()}


def numbered(children: tuple[str, ...]) -> Callable[[str], str]:
    """The names of nn.Sequential(*model.children()), as RadImageNet's files have them."""

    def rename(name: str) -> str:
        first, dot, rest = name.partition(".")
        return f"backbone.{children.index(first)}{dot}{rest}" if first in children else name

    return rename


RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
SPELLINGS = {
    "CheXNet": ("densenet121", lambda name: f"module.densenet121.{old_densenet(name)}"),
    "old DenseNet": ("densenet121", old_densenet),
    "RadImageNet ResNet": ("resnet18", numbered(RESNET)),
    "RadImageNet DenseNet": ("densenet121", numbered(("features",))),
    "timm EfficientNet": ("efficientnet_b0", None),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_names_of_other_programs(case):
    model, rename = SPELLINGS[case]
    state = state_on_meta(model)
    table = timm_efficientnet(list(state)) if rename is None else {n: rename(n) for n in state}
    wanted = list(body(state))
    found = match_names({table[name]: value for name, value in state.items()}, wanted)
    assert {name: found.names[name] for name in wanted} == {name: table[name] for name in wanted}


def state_on_meta(model: str) -> State:
    """Names and shapes are enough."""
    import torchvision.models

    with torch.device("meta"):
        return getattr(torchvision.models, model)(num_classes=4).state_dict()


def test_timm_names_are_timms():
    """Some of them, as printed by timm.create_model("efficientnet_b0").state_dict()."""
    names = set(timm_efficientnet(list(state_on_meta("efficientnet_b0"))).values())
    assert {
        "conv_stem.weight",
        "bn1.running_var",
        "blocks.0.0.conv_dw.weight",
        "blocks.0.0.bn2.bias",
        "blocks.1.0.se.conv_reduce.bias",
        "blocks.2.1.conv_pwl.weight",
        "blocks.6.0.bn3.running_mean",
        "conv_head.weight",
        "classifier.bias",
    } <= names


# ---- the head


def with_head(path: Path, classes: tuple[str, ...], *, form: str = "safetensors") -> State:
    """Weights whose file names the classes."""
    state = {k: v for k, v in source_state().items() if v.is_floating_point()}
    if form == "safetensors":
        facts = describe_weights(model="small", classes=classes, image_size=64)
        save_file(state, path, metadata=facts)
    if form == "torch":
        torch.save({"state_dict": state, "classes": list(classes)}, path)
    if form == "run of 0.1":
        save_file(state, path)
        path.with_name("result.json").write_text(json.dumps({"classes": list(classes)}))
    return state


@pytest.mark.parametrize("form", ["safetensors", "torch", "run of 0.1"])
def test_a_head_of_the_same_classes_is_taken_in_their_order(form, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fednml")
    path, order = tmp_path / "model.safetensors", (2, 0, 3, 1)
    path = path if form != "torch" else tmp_path / "model.pt"
    state = with_head(path, tuple(NAMES[place] for place in order), form=form)
    head = build(weights=path, class_names=NAMES).head
    for row, place in enumerate(order):
        assert torch.equal(head.weight[place], state["head.weight"][row])
        assert torch.equal(head.bias[place], state["head.bias"][row])
    assert "with its head, whose classes were sorted" in caplog.text
    with_head(path, NAMES, form=form)
    assert torch.equal(build(weights=path, class_names=NAMES).head.weight, state["head.weight"])


OTHERS = {
    "one other": ("cat", "dog", "eel", "gnu"),
    "other case": ("Cat", "dog", "eel", "fox"),
    "none alike": ("N", "D", "G", "C"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_head_of_other_classes_starts_anew_though_its_shape_fits(case, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fednml")
    state = with_head(tmp_path / "model.safetensors", OTHERS[case])
    found = build(weights=tmp_path / "model.safetensors", class_names=NAMES)
    assert torch.equal(found.head.weight, build().head.weight)
    assert torch.equal(found.stem[0].weight, state["stem.0.weight"])
    assert f"is of other classes ({', '.join(OTHERS[case])})" in caplog.text


def test_a_run_writes_what_the_next_needs(tmp_path, csv_data, capsys):
    """Its model names its classes; with the columns in another order its head follows them."""
    first = tiny.command(csv_data, tmp_path / "save", name="first", rounds=1, warmup_rounds=0)
    assert tiny.call_main(first) == 0
    path = tmp_path / "save/runs/first/model.safetensors"
    with safe_open(path, framework="pt") as file:
        (facts,) = (json.loads(text) for text in file.metadata().values())
    assert facts["classes"] == [f"class{c}" for c in range(4)]
    assert facts["model"] == "small" and facts["image_size"] == 16
    module = build_module(
        "small", classes=4, weights=str(path), seed=1, class_names=facts["classes"][::-1]
    )
    with safe_open(path, framework="pt") as file:
        assert torch.equal(module.head.weight, file.get_tensor("head.weight").flip(0))


# ---- what is refused


def error_of(content: Any, path: Path, *, name: str = "small") -> str:
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        build(name, weights=path, class_names=NAMES)
    message = str(caught.value)
    assert message.startswith(f"--weights {path}: ") and "\n" not in message
    return message


def spoilt(name: str, value: float) -> State:
    state = source_state()
    state[name].view(-1)[3] = value
    return state


REFUSED = {
    "NaN": (spoilt("stem.0.weight", float("nan")), "stem.0.weight holds NaN or infinity"),
    "infinity": (spoilt("stem.1.running_var", float("inf")), "stem.1.running_var holds NaN"),
    "beyond float32": (
        {k: v.double() * 1e300 for k, v in source_state().items()},
        "stem.0.weight holds NaN or infinity",
    ),
    "parameters alone": (
        {k: v for k, v in source_state().items() if "running" not in k},
        "lacks the statistics of BatchNorm (first: stem.1.running_mean)",
    ),
    "two networks": (
        {"a": source_state(), "b": {k: v + 1 for k, v in source_state().items()}},
        "holds several networks ('a.', 'b.')",
    ),
    "integers": ({k: v.to(torch.int8) for k, v in source_state().items()}, "does not fit"),
    "a list": ([torch.ones(3)], "holds no tensors by name"),
    "a single tensor": (torch.ones(3), "holds no tensors by name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_spoil_the_model_is_refused_and_good_weights_load(case, tmp_path):
    content, words = REFUSED[case]
    assert words in error_of(content, tmp_path / "weights.pt")
    assert_loads(source_state(), tmp_path / "weights.pt")


def test_a_grey_stem_says_how_to_repeat_it(tmp_path):
    """TorchXRayVision's networks take one channel; the advice keeps what they see in grey."""
    state, path = source_state(), tmp_path / "grey.pt"
    grey = prefixed("module.")(state)
    grey["module.stem.0.weight"] = state["stem.0.weight"].sum(1, keepdim=True)
    message = error_of(grey, path)
    assert "takes one channel (grey images)" in message
    advice = message.partition("state dict: ")[2]
    exec(advice, {"state": grey})
    torch.save(grey, path)
    stem = build(weights=path).stem[0].weight
    image = torch.rand(1, 1, 8, 8)
    seen = nn.functional.conv2d(image.repeat(1, 3, 1, 1), stem)
    meant = nn.functional.conv2d(image, state["stem.0.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(seen, meant)


def test_weights_of_another_model_name_it(tmp_path):
    message = error_of(prefixed("module.")(source_state("resnet18")), tmp_path / "weights.pt")
    advised = re.search(r"use --model (\w+)", message)[1]
    build(advised, weights=tmp_path / "weights.pt")
    message = error_of({"x": torch.ones(2)}, tmp_path / "weights.pt")
    assert "it fits none of --list models" in message


def pickles(kind: str, path: Path) -> None:
    if kind == "whole module":
        torch.save(build(seed=5), path)
    if kind == "with its options":  # as MoCo and DINO write their checkpoints
        torch.save({"model": source_state(), "args": argparse.Namespace(lr=1)}, path)
    if kind == "TorchScript":
        torch.jit.trace(build(seed=5).eval(), torch.ones(1, 3, 16, 16)).save(str(path))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", ["whole module", "with its options", "TorchScript"])
def test_code_in_a_file_is_refused_by_name_and_the_advice_converts_it(kind, tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    pickles(kind, old)
    message = error_of(None, old)
    named = {"whole module": "src.models.SmallNet", "with its options": "argparse.Namespace"}
    assert named.get(kind, "TorchScript") in message and "can run any code" in message
    advice = message.partition("its tensors alone: ")[2]
    exec(advice, {"torch": torch, "OLD": old, "NEW": new})
    found = build(weights=new).state_dict()
    expected = source_state() if kind == "with its options" else build(seed=5).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in body(expected))


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a Git LFS pointer, not the file; run git lfs pull" in error_of(None, path)


def test_safetensors_are_known_by_content(tmp_path):
    """Hubs call such files .bin or .ckpt, too."""
    state = {k: v for k, v in source_state().items() if v.is_floating_point()}
    save_file(state, tmp_path / "weights.bin")
    found = build(weights=tmp_path / "weights.bin")
    assert torch.equal(found.stem[0].weight, state["stem.0.weight"])


# ---- --weights imagenet


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of downloads; the network is a file on the disk, at first unreachable."""
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    url = ResNet18_Weights.DEFAULT.url
    return tmp_path / "torch/hub/checkpoints" / url.rpartition("/")[2]


def unreachable(*arguments: Any, **options: Any) -> None:
    raise OSError("<urlopen error [Errno -2] Name or service not known>")


def reached(url: str, target: str, *arguments: Any, **options: Any) -> None:
    import torchvision.models

    torch.save(torchvision.models.resnet18().state_dict(), target)


def imagenet_error() -> str:
    with pytest.raises(UserError) as caught:
        build("resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04half a download", b"\x80\x02}q\x00"])
def test_a_half_download_is_named_and_deleting_it_helps(hub, monkeypatch, content):
    hub.parent.mkdir(parents=True)
    hub.write_bytes(content)
    message = imagenet_error()
    assert f"{hub} is damaged" in message and "delete it and run again" in message
    hub.unlink()
    monkeypatch.setattr("torch.hub.download_url_to_file", reached)
    build("resnet18", weights="imagenet")


def test_without_a_network_a_file_by_hand_serves(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    message = imagenet_error()
    assert "cannot fetch the weights of resnet18" in message and hub.name in message
    assert not hub.exists()
    reached("", str(tmp_path / "by_hand.pth"))
    build("resnet18", weights=tmp_path / "by_hand.pth")
