"""From a file of weights to a model: names translated, what does not fit refused, and all said."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from src.weight_files import SavedWeights, read_weights
from utils_.errors import UserError

logger = logging.getLogger("fednml")
NO_MODEL = "it fits none of --list models; give weights of one of these, or --weights none"
STATISTICS = ("running_mean", "running_var")
# Of several networks in one file, such as a teacher and its student, the first of these is meant.
PREFERRED = ("ema", "teacher", "encoder_q", "online", "base_encoder")
# Children of a torchvision ResNet by their number in nn.Sequential(*model.children()).
RESNET_CHILDREN = dict(zip("014567", ("conv1", "bn1", *map("layer{}".format, "1234")), strict=True))
# Parts of a block of timm's EfficientNet without and with expansion, as torchvision numbers them.
PLAIN_BLOCK = {"conv_dw": "0.0", "bn1": "0.1", "se.conv_reduce": "1.fc1", "se.conv_expand": "1.fc2"}
PLAIN_BLOCK |= {"conv_pw": "2.0", "bn2": "2.1"}
WIDE_BLOCK = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1"}
WIDE_BLOCK |= {"se.conv_reduce": "2.fc1", "se.conv_expand": "2.fc2", "conv_pwl": "3.0"}
WIDE_BLOCK |= {"bn3": "3.1"}
TIMM_ENDS = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier.1"}
TIMM_ENDS |= {"conv_head": "features.8.0", "bn2": "features.8.1"}


@dataclass(frozen=True)
class Reading:
    """One way to read the names of a file.

    Attributes:
        names: the file's name of each tensor that the model may want, by the model's name.
        prefix: what stood before all of them.
        spelling: whose names they were, "" for the model's own.
        found: how many of the wanted names are there.
        rivals: other prefixes that would do as well.
    """

    names: dict[str, str]
    prefix: str = ""
    spelling: str = ""
    found: int = -1
    rivals: tuple[str, ...] = ()


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    classes: Sequence[str] | None,
    others: Callable[[], Mapping[str, nn.Module]],
) -> None:
    """Load all but the head; the head too where it is for the same classes. Log what was taken.

    Args:
        module: a model whose head is its last linear layer.
        path: a .safetensors or .pt file.
        classes: what the module's outputs mean; None takes any head of the right shape.
        others: the models there are, asked for when the file fits none of ``module``.

    Raises:
        UserError: the file cannot be read, or does not fit, or would spoil the model.
    """
    saved = read_weights(path)
    tensors = {name: value for name, value in saved.tensors.items() if value.is_floating_point()}
    own, head, body = _parts(module)
    reading = match_names(tensors, body)
    _check_one_network(path, tensors, reading)
    taken = {name: tensors[old] for name, old in reading.names.items() if name in own}
    _check_statistics(path, body, taken)
    _check_shapes(path, {name: own[name] for name in body}, taken, reading)
    if not _fits(own, body, taken):
        _refuse(path, own, body, taken, others=others(), tensors=tensors)
    kept, head_text = _head(saved, {name: own[name] for name in head}, taken, classes)
    fitting = {name: taken[name] for name in body} | kept
    _check_values(path, fitting)
    module.load_state_dict(fitting, strict=False)
    _report(path, tensors, reading, fitting, head_text)


def _parts(module: nn.Module) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the float tensors by name, the names of the head's and those of the others."""
    own = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    place = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    head = [f"{place}.weight", f"{place}.bias"]
    return own, head, [name for name in own if name not in head]


def match_names(tensors: Mapping[str, Tensor], wanted: Sequence[str]) -> Reading:
    """Return the reading of a file's names that finds most of the wanted ones.

    Args:
        tensors: the file.
        wanted: the model's names, of which the first decides about prefixes.
    """
    best = Reading({})
    for spelling, translate in _spellings(wanted):
        translated = {translate(name): name for name in tensors}
        for prefix in _prefixes(list(translated), wanted[0]):
            begun = {new: old for new, old in translated.items() if new.startswith(prefix)}
            names = {new[len(prefix) :]: old for new, old in begun.items()}
            found = sum(name in names for name in wanted)
            if found > best.found:
                best = Reading(names, prefix, spelling, found)
            elif found == best.found and spelling == best.spelling:
                best = replace(best, rivals=(*best.rivals, prefix))
    return best


def _prefixes(names: Sequence[str], anchor: str) -> list[str]:
    """Return what may stand before the names, what is preferred first."""
    found = [name.removesuffix(anchor) for name in names if f".{name}".endswith(f".{anchor}")]
    return sorted(found, key=_rank) or [""]


def _rank(prefix: str) -> int:
    marks = [number for number, mark in enumerate(PREFERRED) if mark in prefix]
    return min(marks, default=len(PREFERRED))


def _spellings(wanted: Sequence[str]) -> list[tuple[str, Callable[[str], str]]]:
    children = RESNET_CHILDREN if wanted[0] == "conv1.weight" else {"0": "features"}
    return [
        ("", lambda name: name),
        ("old DenseNet names", _old_densenet),
        ("timm names", _timm_efficientnet),
        ("numbers of nn.Sequential", lambda name: _sequential(name, children)),
    ]


def _old_densenet(name: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def _timm_efficientnet(name: str) -> str:
    place, _, kind = name.rpartition(".")
    block = re.fullmatch(r"(.*?)blocks\.(\d+)\.(\d+)\.(\w+(?:\.\w+)?)", place)
    if block:
        before, stage, number, layer = block.groups()
        parts = PLAIN_BLOCK if stage == "0" else WIDE_BLOCK
        return f"{before}features.{int(stage) + 1}.{number}.block.{parts.get(layer, layer)}.{kind}"
    before, dot, layer = place.rpartition(".")
    return f"{before}{dot}{TIMM_ENDS.get(layer, layer)}.{kind}"


def _sequential(name: str, children: Mapping[str, str]) -> str:
    found = re.fullmatch(r"((?:[A-Za-z_]\w*\.)*)(\d)\.(.*)", name)
    if found is None:
        return name
    return f"{found[1]}{children.get(found[2], found[2])}.{found[3]}"


def _check_one_network(path: Path, tensors: Mapping[str, Tensor], reading: Reading) -> None:
    """Stop where a file holds two different networks and none of them is preferred."""
    for rival in reading.rivals:
        if _rank(rival) > _rank(reading.prefix):
            continue
        pairs = ((old, rival + old.removeprefix(reading.prefix)) for old in reading.names.values())
        if any(new not in tensors or not tensors[old].equal(tensors[new]) for old, new in pairs):
            raise UserError(
                f"--weights {path}: holds several networks ('{reading.prefix}', '{rival}'); "
                "save the tensors of one of them alone"
            )


def _check_statistics(path: Path, body: Sequence[str], taken: Mapping[str, Tensor]) -> None:
    absent = [name for name in body if name not in taken]
    if absent and all(name.endswith(STATISTICS) for name in absent):
        raise UserError(
            f"--weights {path}: lacks the statistics of BatchNorm (first: {absent[0]}), without "
            "which the other weights mean something else; save all of model.state_dict()"
        )


def _check_shapes(
    path: Path, body: Mapping[str, Tensor], taken: Mapping[str, Tensor], reading: Reading
) -> None:
    """Stop where the first layer is one for grey images and all the rest fits."""
    stem = next(iter(body))
    if stem not in taken or taken[stem].shape[1:2] != (1,):
        return
    old = reading.names[stem]
    if _fits(body, list(body), {**taken, stem: taken[stem].repeat(1, 3, 1, 1)}):
        raise UserError(
            f"--weights {path}: its first layer takes one channel (grey images), the model's "
            f"three; repeat it in the file's state dict: state[{old!r}] = "
            f"state[{old!r}].repeat(1, 3, 1, 1) / 3"
        )


def _fits(own: Mapping[str, Tensor], body: Sequence[str], taken: Mapping[str, Tensor]) -> bool:
    return all(name in taken and taken[name].shape == own[name].shape for name in body)


def _refuse(
    path: Path,
    own: Mapping[str, Tensor],
    body: Sequence[str],
    taken: Mapping[str, Tensor],
    *,
    others: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
) -> NoReturn:
    """Say how badly a file fits, and which of the models it fits."""
    wrong = [name for name in body if not _fits(own, [name], taken)]
    fitting = []
    for name, module in others.items():
        their, _, parts = _parts(module)
        names = match_names(tensors, parts).names
        if _fits(their, parts, {new: tensors[old] for new, old in names.items()}):
            fitting.append(name)
    advice = f"use --model {fitting[0]}, which it fits" if fitting else NO_MODEL
    raise UserError(
        f"--weights {path}: does not fit this model, {len(wrong)} of {len(body)} tensors are "
        f"absent or of another shape (first: {wrong[0]}); {advice}"
    )


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():  # float64 reaches further than a model
            raise UserError(
                f"--weights {path}: {name} holds NaN or infinity, so the training that made it "
                "had failed; take an earlier checkpoint"
            )


def _head(
    saved: SavedWeights,
    own: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    classes: Sequence[str] | None,
) -> tuple[dict[str, Tensor], str]:
    """Return the head's tensors in the order of ``classes``, none if it is another's; and why."""
    head = {name: taken[name] for name in own if name in taken}
    if not head:
        return {}, "the head starts anew, for the file has none"
    alike = all(name in head and head[name].shape == own[name].shape for name in own)
    if classes is None:
        return (head, "with its head") if alike else ({}, "the head starts anew")
    if saved.classes is None:
        return {}, "the head starts anew, for the file does not name its classes"
    if not alike or sorted(saved.classes) != sorted(classes):
        named = ", ".join(saved.classes[:5]) + ", ..." * (len(saved.classes) > 5)
        return {}, f"the head starts anew, for the file's is of other classes ({named})"
    order = [saved.classes.index(name) for name in classes]
    text = "with its head" if order == sorted(order) else "with its head, whose classes were sorted"
    return {name: tensor[order] for name, tensor in head.items()}, text


def _report(
    path: Path,
    tensors: Mapping[str, Tensor],
    reading: Reading,
    fitting: Mapping[str, Tensor],
    head_text: str,
) -> None:
    used = {reading.names[name] for name in fitting}
    left = [name for name in tensors if name not in used]
    how = f" without '{reading.prefix}'" if reading.prefix else ""
    how += f", from {reading.spelling}" if reading.spelling else ""
    more = f"; left: {len(left)} others such as {left[0]}" if left else ""
    logger.info("--weights %s: took %d tensors%s, %s%s", path, len(fitting), how, head_text, more)
