"""FedLSM against plain loops written from its equations (docs/methods.md 5 and its docstring)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, float32_tolerance
from stand_ins import FakeClient
from tiny import Trace, make_config, make_dataset, make_plan, make_scenario, simulate

from src.aggregation import HeadMean, Layout, mean_by_images
from src.messages import Broadcast, Report
from src.methods.base import parse_params
from src.methods.fedlsm import FedLSM, imbalance, pair_up, split_pools, uncertainty
from src.models import FlatModel, build_module
from src.plan import Batch
from utils_.labels import LabelState
from utils_.rng import derive

N, C, D = 20, 4, 3
VECTOR = torch.arange(5.0)
WEIGHT = np.array([0.1, 1, 0.4, 0.05], np.float32)


def make_method(**param: Any) -> FedLSM:
    return FedLSM(make_plan(), parse_params(FedLSM, param))


def make_observed(seed: int = 0) -> np.ndarray:
    """Class 1 has no positive, class 2 gaps, class 3 is annotated nowhere."""
    draw = derive(seed, "observed")
    observed = (draw.random((N, C)) < 0.4).astype(np.float32)
    observed[:, 1] = 0
    observed[draw.random(N) < 0.5, 2] = np.nan
    observed[:, 3] = np.nan
    return observed


def make_predictions(seed: int = 0) -> np.ndarray:
    """(N, C) with very small, middling and very large ones."""
    return derive(seed, "predicted").beta(0.3, 0.3, (N, C)).astype(np.float32)


def make_site() -> FakeClient:
    """The teacher's answers come from the first numbers of the images."""
    labels = LabelState(make_observed())
    return FakeClient(
        labels, index=1, round=2, predicted=make_predictions(), teach=lambda images: images[:, 0]
    )


class FakeModel:
    """Logits are the second numbers of the images."""

    def __init__(self) -> None:
        self.vector = VECTOR.clone()
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return images[:, 1]


def message(round: int = 2) -> Broadcast:
    return Broadcast(round, VECTOR, {"imbalance": WEIGHT})


# ---- pools


@pytest.mark.numerics
def test_uncertainty_against_the_reference() -> None:
    predicted, missing = make_predictions(), np.isnan(make_observed())
    predicted[0], missing[1] = 0, False
    found = uncertainty(predicted, missing)
    for i in range(N):
        terms = [
            -float(p) * math.log(p) for p in predicted[i][missing[i]] if p > 0
        ]  # an annotated class contributes nothing
        assert found[i] == pytest.approx(sum(terms) / C, abs=1e-6)
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] == 0


@pytest.mark.parametrize(("uncertain", "confident"), [(0.05, 0.2), (0.3, 0.4), (0, 0), (1, 1)])
@pytest.mark.parametrize("images", [1, 2, 3, 13, 40])
def test_pools_are_shares_of_the_site_and_apart(
    images: int, uncertain: float, confident: float
) -> None:
    doubt = derive(images, "doubt").random(images) + 0.01
    most, least = split_pools(doubt, uncertain=uncertain, confident=confident)
    expected = max(1, math.floor(uncertain * images)) if uncertain else 0
    assert most.sum() == min(expected, images // 2)
    assert not (most & least).any()
    assert bool(least.any()) == (confident > 0)
    assert doubt[most].min(initial=np.inf) >= doubt[~most].max()
    assert doubt[least].max(initial=0) <= doubt[~least].min(initial=np.inf)


def test_a_site_that_annotates_everything_has_no_uncertain_image() -> None:
    doubt = uncertainty(make_predictions(), np.zeros((N, C), bool))
    most, least = split_pools(doubt, uncertain=0.5, confident=0.2)
    assert not most.any() and least.sum() == 4


def test_an_annotated_class_without_positives_is_not_missing() -> None:
    """Trap: the release takes a class for annotated where the site has a positive."""
    client, method = make_site(), make_method(uncertain=0.3)
    client.predicted[:, 1] = np.arange(N) / N
    method.before_local(client, FakeModel(), message())
    pools = [client.cache[name].copy() for name in ("uncertain", "confident")]
    client.predicted[:, 1] = 0.37
    method.before_local(client, FakeModel(), message())
    for name, pool in zip(("uncertain", "confident"), pools, strict=True):
        np.testing.assert_array_equal(client.cache[name], pool)


def test_every_uncertain_image_of_a_batch_gets_a_confident_partner() -> None:
    uncertain = np.array([True, False, False, True, True, False])
    confident = np.array([False, True, False, False, False, True])
    one, other = pair_up(uncertain, confident, derive(0, "pairs"))
    assert one.tolist() == [0, 3, 4]
    assert set(other.tolist()) == {1, 5} and len(other) == 3
    one, other = pair_up(uncertain, np.zeros(6, bool), derive(0, "pairs"))
    assert len(one) == len(other) == 0
    one, other = pair_up(np.zeros(6, bool), confident, derive(0, "pairs"))
    assert len(one) == len(other) == 0


@pytest.mark.numerics
def test_class_weights_by_hand() -> None:
    positives, annotated = np.array([10, 1, 0, 5, 0, 80]), np.array([50, 1001, 30, 5, 0, 100])
    found = imbalance(positives, annotated, cap=100)
    np.testing.assert_allclose(found, np.array([4, 100, 1, 1, 1, 0.25]) / 100, rtol=1e-6)
    np.testing.assert_allclose(imbalance(np.zeros(2), np.zeros(2), cap=100), 1, rtol=1e-6)


# ---- the objective


def make_batch(client: FakeClient, rows: np.ndarray) -> Batch:
    images = torch.randn(2, len(rows), 2, C, generator=torch.Generator().manual_seed(0))
    images[0, :, 0] = torch.from_numpy(make_predictions(7)[rows])  # the teacher's answers
    tables = (
        torch.from_numpy(t[rows].copy()) for t in (client.labels.target, client.labels.weight)
    )
    return Batch(images[0], images[1], rows, *tables)


class Reference:
    """One step's loss, cell by cell."""

    def __init__(self, params: Any, client: FakeClient, batch: Batch, step: int) -> None:
        self.params, self.client, self.batch, self.step = params, client, batch, step
        self.uncertain = [bool(client.cache["uncertain"][i]) for i in batch.rows]
        self.confident = [bool(client.cache["confident"][i]) for i in batch.rows]

    def label(self, b: int, c: int) -> float | None:
        """The given label, else the teacher's where it is hard, else None."""
        given = float(self.client.labels.observed[self.batch.rows[b], c])
        if not math.isnan(given):
            return given
        p, bounds = float(self.batch.images[b, 0, c]), (self.params.low, self.params.high)
        if self.uncertain[b]:
            bounds = self.params.uncertain_low, self.params.uncertain_high
        return 1.0 if p >= bounds[1] else 0.0 if p <= bounds[0] else None

    def supervised(self) -> float:
        total = weights = 0.0
        for b, c in np.ndindex(len(self.batch.rows), C):
            y = self.label(b, c)
            if y is None or self.uncertain[b]:
                continue
            total += float(WEIGHT[c]) * cross_entropy(float(self.batch.second[b, 1, c]), y)
            weights += float(WEIGHT[c])
        return total / weights

    def pairs(self) -> tuple[list[tuple[int, int]], float]:
        draw = derive(make_plan().seed, "mixup", self.client.index, 2, self.step)
        one = [b for b, flag in enumerate(self.uncertain) if flag]
        other = draw.permutation([b for b, flag in enumerate(self.confident) if flag]).tolist()
        share = draw.beta(self.params.mixup, self.params.mixup)
        return [(b, other[k % len(other)]) for k, b in enumerate(one) if other], share

    def mixed(self) -> float:
        (pairs, share), values = self.pairs(), []
        for (u, v), c in ((pair, c) for pair in pairs for c in range(C)):
            labels = self.label(u, c), self.label(v, c)
            if None in labels:
                continue
            logit = share * self.batch.images[u, 1, c] + (1 - share) * self.batch.images[v, 1, c]
            target = share * labels[0] + (1 - share) * labels[1]
            values.append(cross_entropy(float(logit), float(target)))
        return sum(values) / len(values) if values else 0.0

    def seen(self) -> list[int]:
        rows = [b for b in range(len(self.batch.rows)) if not self.uncertain[b]]
        return [sum(self.label(b, c) == 1 for b in rows) for c in range(C)]


def start(**param: Any) -> tuple[FedLSM, FakeClient, FakeModel]:
    method, client, model = (
        make_method(**param),
        make_site(),
        FakeModel(),
    )
    method.before_local(client, model, message())
    return method, client, model


@pytest.mark.numerics
@pytest.mark.parametrize(
    "param",
    [
        {},
        {"uncertain": 0.3, "confident": 0.3, "mixup_weight": 3, "high": 0.6, "low": 0.2},
        {"uncertain": 0.3, "confident": 0.3, "uncertain_low": 0.4, "mixup": 1},
        {"uncertain": 0.3, "confident": 0},
    ],
)
def test_the_objective_against_the_reference(param: dict) -> None:
    method, client, model = start(**param)
    seen = np.zeros(C)
    for step, rows in enumerate(np.split(derive(3, "rows").permutation(N), 2)):
        batch = replace(make_batch(client, rows), step=step)
        found = method.loss(client, model, batch, message()).item()
        reference = Reference(method.params, client, batch, step)
        expected = reference.supervised() + method.params.mixup_weight * reference.mixed()
        terms = 4 * len(rows) * C
        assert found == pytest.approx(expected, abs=float32_tolerance(terms, expected))
        seen += reference.seen()
    assert reference.mixed() > 0 or param.get("confident") == 0 or not param
    assert seen[3] > 0, "a pseudo-label of the class annotated nowhere"
    np.testing.assert_array_equal(method.after_local(client, model, message())["seen"], seen)


@pytest.mark.numerics
def test_the_student_sees_strong_views_and_mixed_weak_ones() -> None:
    method, client, model = start(uncertain=0.3, confident=0.3)
    batch = make_batch(client, np.arange(N))
    method.loss(client, model, batch, message())
    pairs, share = Reference(method.params, client, batch, 0).pairs()
    expected = batch.second.clone()
    for u, v in pairs:
        expected[u] = share * batch.images[u] + (1 - share) * batch.images[v]
    torch.testing.assert_close(model.seen[0], expected)
    assert len(pairs) == 6


@pytest.mark.numerics
def test_masks_and_class_weights_act_on_single_entries() -> None:
    """Trap: a mean taken before the masks gives every entry the same gradient."""
    method, client, model = start(uncertain=0)
    batch = make_batch(client, np.arange(N))
    logits = batch.second[:, 1].clone().requires_grad_()
    model.forward = lambda images: logits
    method.loss(client, model, batch, message()).backward()
    reference = Reference(method.params, client, batch, 0)
    total = sum(WEIGHT[c] for b, c in np.ndindex(N, C) if reference.label(b, c) is not None)
    hidden = 0
    for b, c in np.ndindex(N, C):
        y = reference.label(b, c)
        slope = 0.0 if y is None else logits[b, c].sigmoid().item() - y
        assert float(logits.grad[b, c]) == pytest.approx(slope * WEIGHT[c] / total, abs=1e-6)
        hidden += y is None
    assert 0 < hidden < N * C


def test_no_mixup_without_a_confident_partner() -> None:
    method, client, model = start(uncertain=0.3, confident=0, mixup_weight=5)
    batch = make_batch(client, np.arange(N))
    plain = make_method(uncertain=0.3, confident=0, mixup_weight=0)
    found = method.loss(client, model, batch, message())
    assert torch.equal(found, plain.loss(client, model, batch, message()))
    assert torch.equal(model.seen[0], batch.second)


@pytest.mark.numerics
def test_the_teacher_is_a_running_mean_that_starts_anew_each_round() -> None:
    method, client, model = start(ema=0.9)
    batch = make_batch(client, np.arange(N))
    expected = VECTOR.double()
    for round in range(2):
        for step in range(4):
            method.loss(client, model, batch, message())
            asked, atol = client.asked[-1][0].double(), float32_tolerance(4 * (step + 1), expected)
            torch.testing.assert_close(asked, expected, rtol=0, atol=atol)
            model.vector += torch.tensor([1.0, -2, 0.5, 3, 0]) * (step + round + 1)
            method.after_step(client, model, message())
            expected = 0.9 * expected + 0.1 * model.vector.double()
        model.vector.copy_(VECTOR)
        expected = VECTOR.double()
        method.before_local(client, model, message())


def test_ranking_changes_no_running_statistics() -> None:
    """Trap: the release ranks in training mode."""
    trace = run("classes", rounds=1)
    client, model = trace.simulation.clients[0], trace.simulation.model
    before = model.vector.clone()
    trace.simulation.method.before_local(client, model, message())
    assert torch.equal(model.vector, before)
    assert model.module.training


# ---- the server


def make_reports(seen: list[list[int]], samples: list[int]) -> tuple[FlatModel, list[Report]]:
    model = FlatModel(build_module("small", classes=C, weights="none", seed=0))
    reports = []
    for k, counts in enumerate(seen):
        vector = torch.from_numpy(derive(k, "vector").normal(size=model.vector.numel())).float()
        reports.append(Report(k, samples[k], vector, {"seen": np.array(counts, np.float32)}))
    return model, reports


def tapped(head: HeadMean, reports: list[Report]) -> Iterator[Report]:
    return head.tap(reports, lambda report: report.extras["seen"])


@pytest.mark.numerics
def test_the_aggregation_against_the_reference() -> None:
    """Row c by the seen cases of c; a row of a class that nobody has seen by images (trap: 0/0)."""
    seen, samples = [[5, 0, 0, 1], [15, 2, 0, 1], [0, 6, 0, 1]], [10, 20, 70]
    model, reports = make_reports(seen, samples)
    head = HeadMean(Layout.of(model))
    found = model.unpack(head.write(mean_by_images(tapped(head, reports))))
    parts = [model.unpack(report.model) for report in reports]
    assert found["head.weight"].shape == (C, model.head.in_features)
    for name, tensor in found.items():
        for place in np.ndindex(tuple(tensor.shape)):
            weights = samples
            if name.startswith("head") and any(row[place[0]] for row in seen):
                weights = [row[place[0]] for row in seen]
            if not name.startswith("head") and any(place[1:]):
                continue  # a thousand numbers are enough
            terms = [w * float(p[name][place]) for w, p in zip(weights, parts, strict=True)]
            assert float(tensor[place]) == pytest.approx(sum(terms) / sum(weights), abs=1e-6)


@pytest.mark.numerics
def test_the_aggregation_is_the_mean_where_sites_see_in_proportion_to_their_images() -> None:
    model, reports = make_reports([[1, 2, 0, 10], [2, 4, 0, 20], [7, 14, 0, 70]], [10, 20, 70])
    head = HeadMean(Layout.of(model))
    found, plain = head.write(mean_by_images(tapped(head, reports))), mean_by_images(reports)
    torch.testing.assert_close(found, plain, rtol=0, atol=float32_tolerance(4, plain))
    kept = [report.model.clone() for report in reports]
    other = HeadMean(Layout.of(model))
    list(tapped(other, reports))
    other.write(reports[0].model)
    assert all(torch.equal(r.model, k) for r, k in zip(reports, kept, strict=True))


def test_class_weights_are_those_of_all_sites() -> None:
    """A site that does not take part counts with its latest report."""
    method, server = make_method(balance=True), SimpleNamespace(memory={})
    assert method.extras(server)["imbalance"].tolist() == [1] * C

    def report(client: int, positives: list, annotated: list) -> Report:
        table = {"positives": positives, "annotated": annotated}
        return Report(client, 1, None, {n: np.array(v, np.float32) for n, v in table.items()})

    method.after_round(server, [report(0, [1, 0, 0, 5], [9, 9, 0, 10])])
    method.after_round(server, [report(2, [1, 0, 0, 0], [3, 3, 0, 0])])
    np.testing.assert_allclose(method.extras(server)["imbalance"], [1, 0.2, 0.2, 0.2], rtol=1e-6)
    assert make_method().extras(server)["imbalance"].tolist() == [1] * C


# ---- whole runs


def run(mask: str, clients: int = 3, **settings: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask=mask, noise=0.2, clients=clients)
    return simulate(make_config("fedlsm", clients=clients, **settings), dataset, scenario)


@pytest.mark.parametrize("mask", ["classes", "cells"])
def test_all_parts_act_in_the_tiny_federation(mask: str) -> None:
    trace = run(mask)
    assert np.stack([r.extras["seen"] for r in trace.received]).sum(axis=0).min() > 0
    assert not np.array_equal(trace.sent[1].extras["imbalance"], np.ones(C))
    for switch in ({"mixup_weight": 0}, {"balance": False}, {"high": 1, "low": 0}):
        other = run(mask, param=switch)
        assert torch.isfinite(other.vector).all()
        assert not torch.equal(other.vector, trace.vector), switch


def test_the_rows_of_the_head_follow_the_reports() -> None:
    trace = run("classes", rounds=1)
    _, bias = trace.simulation.model.head_slices
    seen = np.stack([r.extras["seen"] for r in trace.received]).astype(float)
    biases = np.stack([r.model[bias.start : bias.stop].numpy() for r in trace.received])
    expected = (seen * biases).sum(axis=0) / seen.sum(axis=0)
    np.testing.assert_allclose(trace.vector[bias.start : bias.stop], expected, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"clients": 1}, {"fraction": 0.4, "rounds": 4}, {"batch_size": 64}, {"clients": 20}],
)
@pytest.mark.parametrize("mask", ["none", "classes", "cells"])
def test_hard_cases_end_well(mask: str, settings: dict) -> None:
    trace = run(mask, **settings)
    assert torch.isfinite(trace.vector).all()
    assert all(np.isfinite(e).all() for m in trace.sent for e in m.extras.values())
