"""The flat view of a model against the plain module, and what a model file holds."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ROOT, make_plan
from torch import nn

from src.models import MODELS, PREDICT_BATCH, FlatAdamW, FlatModel, FlatSGD, build_module
from utils_.augment import Augmenter
from utils_.errors import UserError
from utils_.rng import derive

CLASSES = 4
BOTH = pytest.mark.parametrize("name", ["small", "resnet18"])


def build(name: str = "small", *, seed: int = 1, weights: str = "none") -> nn.Module:
    return build_module(name, classes=CLASSES, weights=weights, seed=seed)


def pair(name: str = "small") -> tuple[nn.Module, FlatModel]:
    """A plain module and the flat view of its twin."""
    module = build(name)
    return copy.deepcopy(module), FlatModel(module)


def batch(size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, size, size, generator=generator)


def float_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t for n, t in module.state_dict().items() if t.is_floating_point()}


@BOTH
def test_the_flat_state_is_the_plain_state(name: str) -> None:
    plain, flat = pair(name)
    unpacked = flat.unpack(flat.snapshot())
    expected = float_state(plain)
    assert set(unpacked) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(unpacked[key], tensor), key
        assert unpacked[key].is_contiguous()
    assert flat.vector.numel() == sum(t.numel() for t in expected.values())
    assert flat.parameter_count == sum(p.numel() for p in plain.parameters())


@BOTH
def test_integer_buffers_are_neither_in_the_vector_nor_in_the_file(name: str) -> None:
    plain, flat = pair(name)
    integers = [n for n, t in plain.state_dict().items() if not t.is_floating_point()]
    assert integers
    assert all(key.endswith("num_batches_tracked") for key in integers)
    assert not set(integers) & set(flat.unpack(flat.vector))


@BOTH
def test_pack_is_the_inverse_of_unpack(name: str) -> None:
    _, flat = pair(name)
    vector = torch.randn(flat.vector.numel(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(flat.pack(flat.unpack(vector)), vector)
    state = flat.unpack(vector)
    state.pop(next(iter(state)))
    with pytest.raises(KeyError):
        flat.pack(state)


def assert_near(found: torch.Tensor, expected: torch.Tensor, *, share: float, name: str) -> None:
    """Equal up to a share of the largest number."""
    atol = share * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=name)


@pytest.mark.numerics
@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_forward_gradient_and_statistics_equal_the_plain_module(name: str, training: bool) -> None:
    """Up to what ResNet-18 makes of other kernels here: its last layers normalise four numbers.

    In another memory format its gradients differ by up to 4e-4 of the largest one in a tensor.
    """
    plain, flat = pair(name)
    plain = plain.to(memory_format=torch.channels_last)  # as the flat kernels lie
    images = batch(32).contiguous(memory_format=torch.channels_last)
    plain.train(training)
    flat.module.train(training)
    expected, found = plain(images), flat.forward(images)
    assert_near(found, expected, share=1e-3, name="logits")
    expected.square().sum().backward()
    found.square().sum().backward()
    for piece, (key, parameter) in zip(flat.slices, plain.named_parameters(), strict=False):
        assert_near(piece.view(flat.gradient), parameter.grad, share=1e-2, name=key)
    state = flat.unpack(flat.vector)
    for key, tensor in float_state(plain).items():
        assert_near(state[key], tensor, share=1e-3, name=key)


@pytest.mark.numerics
def test_the_gradient_is_summed_in_place_until_it_is_cleared() -> None:
    _, flat = pair()
    flat.module.eval()
    flat.forward(batch()).sum().backward()
    once = flat.gradient.clone()
    assert once.any()
    assert flat.parameters.grad.data_ptr() == flat.gradient.data_ptr()
    flat.forward(batch()).sum().backward()
    torch.testing.assert_close(flat.gradient, 2 * once)
    flat.gradient.zero_()
    assert all(not p.grad.any() for p in flat.module.parameters())


def test_one_step_changes_the_module_and_no_buffer() -> None:
    _, flat = pair()
    before = flat.snapshot()
    flat.module.eval()
    flat.forward(batch()).sum().backward()
    flat.optimizer(make_plan(lr=1e-2, weight_decay=0), 0).step()
    moved = flat.vector != before
    assert moved[: flat.parameter_count].float().mean() > 0.9
    assert not moved[flat.parameter_count :].any()
    name, parameter = next(flat.module.named_parameters())
    assert torch.equal(parameter, flat.unpack(flat.vector)[name])


@pytest.mark.numerics
def test_the_optimiser_is_torchs_fused_adamw() -> None:
    """To the bit on any processor: both call the same kernel."""
    _, flat = pair()
    expected = flat.parameters.detach().clone().requires_grad_()
    options = {"lr": 3e-3, "weight_decay": 0.1}
    theirs = torch.optim.AdamW([expected], fused=True, **options)
    walk(flat, flat.optimizer(make_plan(**options), 0), theirs, expected)
    assert torch.equal(flat.parameters, expected)


def walk(flat: FlatModel, ours: FlatAdamW | FlatSGD, theirs: Any, expected: torch.Tensor) -> None:
    """Twenty steps of both on the same gradients."""
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        flat.gradient.copy_(torch.randn(flat.parameter_count, generator=generator))
        expected.grad = flat.gradient.clone()
        ours.step()
        theirs.step()


@pytest.mark.numerics
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    _, flat = pair()
    expected = flat.parameters.detach().clone().requires_grad_()
    options = {"lr": 3e-2, "weight_decay": 0.1, "momentum": momentum}
    theirs = torch.optim.SGD([expected], **options)
    ours = flat.optimizer(make_plan(optimizer="sgd", **options), 0)
    before = expected.detach().clone()
    walk(flat, ours, theirs, expected)
    torch.testing.assert_close(flat.parameters, expected, rtol=1e-5, atol=1e-6)
    assert (before - expected).abs().mean() > 0.05


def test_the_course_of_the_learning_rate() -> None:
    constant, cosine = (make_plan(lr=0.2, lr_schedule=s, rounds=10) for s in ("constant", "cosine"))
    assert {constant.lr_at(t) for t in range(10)} == {0.2}
    found = [cosine.lr_at(t) for t in range(10)]
    assert found == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])
    assert found[0] == 0.2 and found[5] == pytest.approx(0.1) and 0 < found[9] < 0.006


def test_a_view_aside_changes_no_statistics() -> None:
    _, flat = pair()
    flat.train()
    kept, images = flat.buffers.clone(), batch()
    aside = flat.forward_aside(images)
    assert torch.equal(flat.buffers, kept)
    assert torch.equal(aside, flat.forward(images))
    assert not torch.equal(flat.buffers, kept)
    aside.sum().backward()
    assert flat.gradient.abs().sum() > 0


def test_training_does_not_import_the_compiler() -> None:
    """It costs every process seconds; torch's optimiser classes bring it."""
    code = (
        "import sys, torch; from src.models import FlatAdamW, FlatModel, build_module; "
        "flat = FlatModel(build_module('small', classes=3, weights='none', seed=1)); "
        "flat.forward(torch.zeros(2, 3, 16, 16)).sum().backward(); "
        "FlatAdamW(flat.parameters, lr=1e-3, weight_decay=0).step(); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_load_and_snapshot_are_copies() -> None:
    _, flat = pair()
    vector = torch.randn(flat.vector.numel(), generator=torch.Generator().manual_seed(5))
    flat.load(vector)
    taken = flat.snapshot()
    flat.vector.zero_()
    assert torch.equal(taken, vector)
    assert not any(p.any() for p in flat.module.parameters())


def test_weights_depend_on_seed_and_name_alone() -> None:
    vectors = []
    for _ in range(2):
        torch.rand(7)  # other uses of the global generator are of no account
        vectors.append(FlatModel(build()).snapshot())
    assert torch.equal(*vectors)
    assert not torch.equal(vectors[0], FlatModel(build(seed=2)).snapshot())


def test_building_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    build()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_small_has_about_eighty_thousand_parameters() -> None:
    assert 70_000 < pair()[1].parameter_count < 90_000


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_head_of_the_right_size(name: str) -> None:
    module = build(name).eval()
    with torch.no_grad():
        assert module(batch(32)[:2]).shape == (2, CLASSES)


@pytest.mark.numerics
@pytest.mark.parametrize("images", [1, 5, PREDICT_BATCH + 3])
def test_predict_is_the_plain_prediction(images: int) -> None:
    plain, flat = pair()
    pixels = derive(0, "pixels").integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    rows = derive(0, "rows").choice(300, images, replace=False)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    before = flat.snapshot()
    found = flat.predict(pixels, rows, augmenter=Augmenter(mean, std))
    inputs = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2) / 255
    inputs = (inputs - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = plain.eval()(inputs).sigmoid().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    assert torch.equal(flat.vector, before)  # evaluation mode: no statistic moved
    assert flat.module.training


@BOTH
def test_the_file_loads_strictly_into_the_plain_module(name: str, tmp_path: Path) -> None:
    _, flat = pair(name)
    flat.vector.add_(0.25)
    save_file(flat.unpack(flat.vector), tmp_path / "model.safetensors")
    other = build(name, seed=9)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    found = float_state(other)
    for key, tensor in float_state(flat.module).items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.numerics
def test_torchvision_itself_takes_the_file(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    flat = FlatModel(build("resnet18"))
    save_file(flat.unpack(flat.vector), tmp_path / "model.safetensors")
    theirs = resnet18(num_classes=CLASSES)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = batch()
    flat.module.eval()
    torch.testing.assert_close(theirs.eval()(images), flat.forward(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_weights_is_loaded(suffix: str, tmp_path: Path) -> None:
    source, path = build(seed=5), tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(float_state(source), path)
    found = FlatModel(build(weights=str(path))).snapshot()
    assert torch.equal(found, FlatModel(source).snapshot())


def test_a_head_for_other_classes_starts_anew(tmp_path: Path) -> None:
    source = build_module("small", classes=9, weights="none", seed=5)
    save_file(float_state(source), tmp_path / "weights.safetensors")
    found = build(weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(found.stem[0].weight, source.stem[0].weight)
    assert torch.equal(found.head.weight, build().head.weight)


PT_ONLY = ("pickle", "nested", "tensor")


def write_wrong(kind: str, path: Path) -> None:
    if kind == "other model":
        save_file(float_state(build("resnet18")), path)
    if kind == "garbage":
        path.write_bytes(b"not a model\n" * 10)
    if kind == "empty":
        path.touch()
    if kind == "nested":
        torch.save({"model": {"weight": torch.zeros(2)}, "epoch": 3}, path)
    if kind == "tensor":
        torch.save(torch.zeros(2), path)
    if kind == "pickle":
        torch.save({"a": Path("code")}, path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", ["absent", "other model", "garbage", "empty", *PT_ONLY])
def test_wrong_weights_are_one_line(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    write_wrong(kind, path)
    with pytest.raises(UserError) as caught:
        build(weights=str(path))
    assert str(path) in str(caught.value)
    assert "--weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_has_no_imagenet_weights() -> None:
    with pytest.raises(UserError, match="--weights none"):
        build(weights="imagenet")
