"""FedMLP against plain loops written from its equations (docs/methods.md 4 and its docstring)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cosine, cross_entropy, float32_tolerance, sigmoid
from stand_ins import FakeClient
from tiny import PARAMS, Trace, make_config, make_dataset, make_plan, make_scenario, simulate

from src.config import Config
from src.messages import Broadcast, Report, message_bytes
from src.methods.base import parse_params
from src.methods.fedmlp import FedMLP, most_positives, pool_prototypes, similarity_margin, tag
from utils_.labels import MISSING, OBSERVED, PSEUDO, LabelState
from utils_.prototypes import class_prototypes
from utils_.rng import derive

N, C, D, WARMUP = 30, 4, 5, 3
VECTOR = torch.zeros(3)


def make_method(**param: Any) -> FedMLP:
    return FedMLP(make_plan(rounds=10, warmup_rounds=WARMUP), parse_params(FedMLP, param))


def make_observed(seed: int = 0) -> np.ndarray:
    """Class 1 has no positive, class 2 gaps, class 3 is annotated nowhere."""
    draw = derive(seed, "observed")
    observed = (draw.random((N, C)) < 0.4).astype(np.float32)
    observed[:, 1] = 0
    observed[draw.random(N) < 0.6, 2] = np.nan
    observed[:, 3] = np.nan
    return observed


def make_features(seed: int = 0) -> np.ndarray:
    return derive(seed, "features").normal(0.3, 1, (N, D)).astype(np.float32)


def make_site(labels: LabelState | None = None) -> FakeClient:
    """Its images are logits, and its teacher's a line of them."""
    features, probability = make_features(), derive(1, "p").random((N, C))
    return FakeClient(
        labels or LabelState(make_observed()),
        embedded=features,
        predicted=probability,
        teach=lambda images: (images.detach() / 2 + 0.1).sigmoid(),
    )


def message(round: int, **extras: np.ndarray) -> Broadcast:
    return Broadcast(round, VECTOR, {"prior": np.full(C, 0.5, np.float32)} | extras)


# ---- prototypes, one number after the other


def reference_prototypes(features: np.ndarray, observed: np.ndarray) -> np.ndarray:
    table = np.zeros((2, observed.shape[1], features.shape[1]))
    for b, c, d in np.ndindex(table.shape):
        own = [float(features[i, d]) for i in range(len(features)) if observed[i, c] == b]
        table[b, c, d] = sum(own) / len(own) if own else 0
    return table


@pytest.mark.numerics
def test_prototypes_are_means_over_annotated_cells() -> None:
    features, observed = make_features(), make_observed()
    found = class_prototypes(features, observed)
    expected = reference_prototypes(features, observed)
    atol = float32_tolerance(N, features)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    assert not found[1, 1].any(), "no positive, no prototype"
    assert not found[:, 3].any()
    assert found[0, 1].any() and found[:, 2].any()


@pytest.mark.numerics
def test_the_pool_is_a_mean_by_images_over_the_sites_that_have_a_prototype() -> None:
    draw = derive(0, "pool")
    sites = draw.normal(size=(3, 2, C, D)).astype(np.float32)
    sites[0, 1, 1] = sites[1, :, 2] = sites[:, 0, 3] = 0
    samples, last = np.array([10, 30, 7]), draw.normal(size=(2, C, D)).astype(np.float32)
    for old in (last, None):
        found = pool_prototypes(sites, samples, old)
        for b, c in np.ndindex(2, C):
            own = [k for k in range(3) if sites[k, b, c].any()]
            total = sum(int(samples[k]) for k in own)
            for d in range(D):
                expected = sum(int(samples[k]) * float(sites[k, b, c, d]) for k in own)
                kept = 0.0 if old is None else float(old[b, c, d])
                expected = expected / total if own else kept
                atol = float32_tolerance(2 * len(sites), sites)
                assert found[b, c, d] == pytest.approx(expected, abs=atol)


# ---- tags


def reference_margin(feature: np.ndarray, absent: np.ndarray, present: np.ndarray) -> float:
    return cosine(feature, absent) - cosine(feature, present)


def reference_tags(
    features: np.ndarray, free: np.ndarray, prototypes: np.ndarray, rates: Any, left: list
) -> dict:
    """{cell: value} of one round; ``rates[b][c]`` is the share of group b tagged.

    ``left[c]`` says how many positives the class may still have.
    """
    tags = {}
    for c in range(C):
        absent, present = prototypes[0, c], prototypes[1, c]
        if not absent.any() or not present.any():
            continue
        margin = {i: reference_margin(features[i], absent, present) for i in range(N) if free[i, c]}
        groups = [i for i in margin if margin[i] >= 0], [i for i in margin if margin[i] < 0]
        for b, group in enumerate(groups):
            count = max(1, math.floor(float(rates[b][c]) * len(group) + 1e-6))
            count = min(count, left[c]) if b == 1 else count
            farthest = sorted(group, key=lambda i: -abs(margin[i]))
            tags |= {(i, c): float(b) for i in farthest[:count]}
    return tags


def make_prototypes() -> np.ndarray:
    prototypes = derive(0, "prototypes").normal(0.3, 1, (2, C, D)).astype(np.float32)
    prototypes[1, 1] = 0  # nobody has a positive of class 1
    return prototypes


def room_for_positives(target: dict, observed: np.ndarray, c: int, prior: float) -> int:
    """How many more of a class may be tagged present: its prior share of the tags, rounded up."""
    tags = [v for (i, k), v in target.items() if k == c and math.isnan(observed[i, c])]
    return math.ceil(prior * (len(tags) + 1) - 1e-4) - int(sum(tags))


@pytest.mark.numerics
@pytest.mark.parametrize("adaptive", [True, False])
def test_tagging_against_the_reference_round_by_round(adaptive: bool) -> None:
    method = make_method(negative_rate=0.2, positive_rate=0.35, adaptive=adaptive)
    observed = make_observed()
    observed[::2, 1] = np.nan
    client, prototypes = make_site(LabelState(observed)), make_prototypes()
    degree = np.array([1, 0.7, 0.55, 0.9], np.float32)
    prior = np.array([0.3, 0.3, 0.1, 0.42], np.float32)
    target = {cell: float(observed[cell]) for cell in zip(*np.nonzero(observed >= 0), strict=True)}
    tagged = 0
    for round in range(WARMUP, WARMUP + 4):
        client.embedded, client.cache = make_features(round), {}
        free = np.array([[(i, c) not in target for c in range(C)] for i in range(N)])
        pace = degree if adaptive else np.ones(C)
        left = [room_for_positives(target, observed, c, float(prior[c])) for c in range(C)]
        rates = (0.2 * pace, 0.35 * pace)
        tags = reference_tags(client.embedded, free, prototypes, rates, left)
        target |= tags
        tagged += len(tags)
        told = message(round, prototypes=prototypes, degree=degree, prior=prior)
        method.before_local(client, None, told)
        expected = np.zeros((N, C))
        for cell, value in target.items():
            expected[cell] = value
        np.testing.assert_array_equal(client.labels.target, expected)
        known = np.array([[(i, c) in target for c in range(C)] for i in range(N)])
        np.testing.assert_array_equal(client.labels.weight, known.astype(np.float32))
    assert tagged > 12
    tags = [value for (i, c), value in target.items() if math.isnan(observed[i, c]) and c == 2]
    assert 0 < sum(tags) <= 0.1 * len(tags) + 1, "a tenth of class 2 is positive"
    status = client.labels.status
    assert (status == PSEUDO).sum() == tagged
    assert (status[~np.isnan(observed)] == OBSERVED).all(), "annotations are never changed"
    assert (status[np.isnan(observed[:, 1]), 1] == MISSING).all(), "no prototype, no tag"


def test_a_small_group_gets_one_tag_and_an_empty_one_none() -> None:
    """Trap: 0.5 % of a group of fewer than 200 is nothing, for ever."""
    margin = np.array([[0.3], [0.1], [0.2], [-0.1]])
    rates = np.array([0.005]), np.array([0.01])
    limits = {"shares": rates, "most": np.array([9])}
    cells, values = tag(margin, np.ones((4, 1), bool), **limits)
    assert cells[:, 0].tolist() == [True, False, False, True]
    assert values[cells].tolist() == [0, 1]
    cells, _ = tag(margin, np.array([[False], [True], [True], [False]]), **limits)
    assert cells[:, 0].tolist() == [False, False, True, False]
    assert not tag(margin, np.zeros((4, 1), bool), **limits)[0].any()
    assert not tag(np.full((4, 1), np.nan), np.ones((4, 1), bool), **limits)[0].any()


def test_positives_are_capped_and_negatives_are_not() -> None:
    margin = np.array([[-0.3], [-0.5], [-0.4], [0.2], [0.1]])
    both = np.ones(1), np.ones(1)
    for most, expected in ((9, [1, 1, 1]), (2, [0, 1, 1]), (1, [0, 1, 0]), (0, [0, 0, 0])):
        cells, values = tag(margin, np.ones((5, 1), bool), shares=both, most=np.array([most]))
        assert cells[:3, 0].tolist() == values[:3, 0].tolist() == expected
        assert cells[3:].all() and not values[3:].any()
    below = tag(margin, np.ones((5, 1), bool), shares=both, most=np.array([-2]))
    assert not below[1].any(), "the prior has fallen since"


def test_the_most_positives_are_the_prior_s_share_rounded_up() -> None:
    prior = np.array([0.06, 0.1, 1e-5, 0, np.nan, 0.06, 1], np.float32)
    missing = np.array([100, 30, 100, 100, 100, 0, 7])
    assert most_positives(prior, missing).tolist() == [6, 3, 1, 0, 0, 0, 7]


def test_positives_are_tagged_where_no_negative_is() -> None:
    """Trap: in the release a clause drops the positives where there are no negatives."""
    limits = {"shares": (np.ones(1), np.ones(1)), "most": np.array([5])}
    cells, values = tag(-np.ones((5, 1)), np.ones((5, 1), bool), **limits)
    assert cells.all() and values.all()


def test_the_margin_of_an_image_without_features_is_zero() -> None:
    features = np.zeros((2, D), np.float32)
    margin = similarity_margin(features, make_prototypes())
    np.testing.assert_array_equal(margin[:, [0, 2, 3]], 0)
    assert np.isnan(margin[:, 1]).all()


# ---- the objective


def objectives(round: int, **param: Any) -> tuple[float, float]:
    """FedMLP's loss of a batch, and the same by loops."""
    method, labels = make_method(**param), LabelState(make_observed())
    tags = np.zeros((N, C), bool)
    tags[:9, 3] = True
    if round >= WARMUP:
        labels.correct(tags, np.arange(N)[:, None] % 2 * np.ones((1, C)))
    client, rows = make_site(labels), np.array([3, 0, 7, 11, 5, 20])
    method.before_local(client, None, message(round))
    views = 2 * torch.randn(2, len(rows), C, generator=torch.Generator().manual_seed(0))
    tables = (torch.from_numpy(table[rows].copy()) for table in (labels.target, labels.weight))
    batch = SimpleNamespace(
        **dict(zip(("images", "second"), views, strict=True)),
        **dict(zip(("target", "weight"), tables, strict=True)),
        rows=rows,
    )
    model = SimpleNamespace(forward=lambda images: images, forward_aside=lambda images: images)
    found = method.loss(client, model, batch, message(round)).item()
    adjust, distil = param.get("logit_adjustment", True), param.get("distil", True)
    used = views if round < WARMUP else views[:1]  # the second stage trains one view
    expected = [reference_loss(v, rows, labels, round, adjust, distil) for v in used]
    return found, sum(expected) / len(expected)


def reference_loss(
    logits: torch.Tensor, rows: Any, labels: LabelState, round: int, adjust: bool, distil: bool
) -> float:
    supervised, distilled = [], []
    for b, c in np.ndindex(len(rows), C):
        z, i = float(logits[b, c]), rows[b]
        given = [float(y) for y in labels.observed[:, c] if not math.isnan(y)]
        odds = (sum(given) + 0.5) / (len(given) - sum(given) + 0.5)
        if labels.weight[i, c] > 0:
            shifted = z + (math.log(odds) if adjust else 0)
            supervised.append(cross_entropy(shifted, float(labels.target[i, c])))
        else:
            distilled.append((sigmoid(z) - sigmoid(z / 2 + 0.1)) ** 2)
    if round < WARMUP:
        return sum(supervised) / len(supervised) + sum(distilled) / len(distilled)
    if not distil:
        return sum(supervised) / len(supervised)
    return (sum(supervised) + sum(distilled)) / (len(supervised) + len(distilled))


@pytest.mark.numerics
@pytest.mark.parametrize("distil", [True, False])
@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("round", [0, WARMUP - 1, WARMUP, WARMUP + 5])
def test_the_objective_against_the_reference(round: int, adjust: bool, distil: bool) -> None:
    found, expected = objectives(round, logit_adjustment=adjust, distil=distil)
    cells = 2 * 6 * C  # of both views
    assert found == pytest.approx(expected, abs=float32_tolerance(2 * cells, expected))


@pytest.mark.numerics
def test_the_adjustment_of_a_class_without_positives_or_annotations_is_finite() -> None:
    client = make_site()
    make_method(logit_adjustment=True).before_local(client, None, message(0))
    shift = client.cache["shift"].numpy()
    assert shift[1] == pytest.approx(math.log(0.5 / (N + 0.5)), rel=1e-6)
    assert shift[3] == 0


# ---- what is sent, and the server


@pytest.mark.numerics
def test_the_report_against_the_reference() -> None:
    method, client = make_method(), make_site()
    told = method.after_local(client, None, message(WARMUP - 2))
    assert told.keys() == {"positives", "annotated"}
    extras = method.after_local(client, None, message(WARMUP - 1))
    expected = reference_prototypes(client.embedded, make_observed())
    atol = float32_tolerance(N, client.embedded)
    np.testing.assert_allclose(extras["prototypes"], expected, rtol=0, atol=atol)
    for c in range(C):
        known = [y for y in client.labels.observed[:, c] if not math.isnan(y)]
        assert (extras["positives"][c], extras["annotated"][c]) == (sum(known), len(known))
        missing = [i for i in range(N) if np.isnan(client.labels.observed[i, c])]
        sure = [i for i in missing if not 0.3 <= client.predicted[i, c] <= 0.7]
        assert extras["missing"][c] == len(missing)
        assert extras["sure"][c] == len(sure)
    assert extras["sure"][3] > 0


def make_report(client: int, samples: int, sure: list, missing: list) -> Report:
    prototypes = derive(client, "sent").normal(size=(2, C, D)).astype(np.float32)
    counts = {"sure": np.array(sure, np.float32), "missing": np.array(missing, np.float32)}
    return Report(client, samples, None, {"prototypes": prototypes, **counts, **cells(client)})


def cells(client: int) -> dict[str, np.ndarray]:
    """Class counts: client 0 annotates class 0 alone, of which it has 3 positives."""
    annotated = np.array([10, 0, 0, 0] if client == 0 else [10, 40, 0, 20], np.float32)
    positives = np.array([3, 0, 0, 0] if client == 0 else [0, 4, 0, 0], np.float32)
    return {"positives": positives, "annotated": annotated}


@pytest.mark.numerics
def test_the_server_against_the_reference() -> None:
    """Degrees are the sites' confidences, weighted by images, over the sites that miss a class."""
    method, server = make_method(), SimpleNamespace(memory={}, round=WARMUP)
    assert np.isnan(method.extras(server)["prior"]).all()
    method.after_round(server, [Report(0, 5, None, cells(0))])
    first = method.extras(server)
    assert first.keys() == {"prior"}, "nothing else is told in the first stage"
    np.testing.assert_allclose(first["prior"], [0.3, np.nan, np.nan, np.nan], atol=1e-6)
    one = make_report(0, 10, [5, 0, 0, 10], [10, 10, 0, 10])
    two = make_report(1, 30, [0, 15, 0, 0], [0, 30, 0, 0])
    method.after_round(server, [two, one])
    sent = method.extras(server)
    np.testing.assert_allclose(sent["prior"], [3 / 20, 4 / 40, np.nan, 0], atol=1e-6)
    expected = [5 / 10, (10 * 0 + 30 * 15 / 30) / 40, 1, 1]
    np.testing.assert_allclose(sent["degree"], expected, atol=1e-6)
    mean = (10 * one.extras["prototypes"] + 30 * two.extras["prototypes"]) / 40
    atol = float32_tolerance(8, mean)
    np.testing.assert_allclose(sent["prototypes"], mean, rtol=0, atol=atol)
    method.after_round(server, [two])  # the first site does not take part
    np.testing.assert_allclose(method.extras(server)["degree"], [0.5, 0.5, 1, 1], atol=1e-6)
    found, own = method.extras(server)["prototypes"], two.extras["prototypes"]
    np.testing.assert_allclose(found, own, rtol=0, atol=float32_tolerance(8, own))


# ---- whole runs


def run(mask: str, clients: int = 3, **settings: Any) -> Trace:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask=mask, noise=0.2, clients=clients)
    return simulate(make_config("fedmlp", clients=clients, **settings), dataset, scenario)


def test_the_second_stage_runs_with_the_defaults() -> None:
    plan = Config(method="fedmlp").plan(C)
    assert 0 < plan.warmup_rounds <= plan.rounds / 10
    assert FedMLP.Params().distil and FedMLP.Params().adaptive


def test_logits_are_adjusted_by_default_as_in_the_paper() -> None:
    client = make_site()
    make_method().before_local(client, None, message(0))
    assert client.cache["shift"][0] != 0
    make_method(logit_adjustment=False).before_local(client, None, message(0))
    assert not client.cache["shift"].any()


@pytest.mark.parametrize("mask", ["classes", "cells"])
def test_both_stages_are_run_in_the_tiny_federation(mask: str) -> None:
    trace = run(mask)
    assert [sorted(m.extras) for m in trace.sent] == [["prior"]] + 2 * [
        ["degree", "prior", "prototypes"]
    ]
    features = trace.sent[1].extras["prototypes"].shape[-1]
    assert trace.sent[1].extras["prototypes"].shape == (2, 4, features)
    expected = trace.simulation.model.head.in_features
    assert features == expected, "the features before the head, not the logits"
    extra = message_bytes(trace.sent[1]) - message_bytes(trace.sent[0])
    assert extra == 4 * (2 * 4 * features + 4)
    labels = [client.labels for client in trace.simulation.clients]
    tagged = [(s.status == PSEUDO) for s in labels]
    values = np.concatenate([s.target[t] for s, t in zip(labels, tagged, strict=True)])
    assert len(values) > 10 and 0 < values.mean() < 1
    assert torch.isfinite(trace.vector).all()
    assert not np.array_equal(trace.vector.numpy(), run(mask, warmup_rounds=3).vector.numpy())


def test_tags_last_and_grow() -> None:
    seen: list[np.ndarray] = []

    def look(simulation: Any) -> None:
        labels = simulation.clients[0].labels
        seen.append(np.where(labels.status == PSEUDO, labels.target, np.nan))

    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes")
    slow = PARAMS["fedmlp"] | {"negative_rate": 0.1, "positive_rate": 0.1}
    config = make_config("fedmlp", rounds=5, param=slow)
    simulate(config, dataset, scenario, before_round=look)
    counts = [int((~np.isnan(table)).sum()) for table in seen]
    assert counts[:2] == [0, 0] and counts[2] < counts[3] < counts[4]
    for before, after in itertools.pairwise(seen):
        kept = ~np.isnan(before)
        np.testing.assert_array_equal(before[kept], after[kept])


@pytest.mark.parametrize(
    "settings",
    [
        {"clients": 1},
        {"fraction": 0.4, "rounds": 4},
        {"warmup_rounds": 0},
        {"local_epochs": 2, "batch_size": 64},
    ],
)
@pytest.mark.parametrize("mask", ["none", "classes", "cells"])
def test_hard_cases_end_well(mask: str, settings: dict) -> None:
    trace = run(mask, **settings)
    assert torch.isfinite(trace.vector).all()
    sent = [message.extras for message in trace.sent]
    assert all(np.isfinite(e).all() for m in sent for name, e in m.items() if name != "prior")


@pytest.mark.parametrize("mask", ["classes", "cells"])
def test_no_site_tags_more_positives_than_the_shared_prior_calls_for(mask: str) -> None:
    """Half of the images are nearer to presence, so that many would be called positive."""
    greedy = PARAMS["fedmlp"] | {"negative_rate": 0.3, "positive_rate": 1, "adaptive": False}
    trace = run(mask, rounds=4, param=greedy)
    prior, tagged = trace.simulation.server.memory["prior"], 0
    for client in trace.simulation.clients:
        labels = client.labels
        missing = np.isnan(labels.observed)
        for c in range(C):
            count = int((missing[:, c] & (labels.target[:, c] == 1)).sum())
            tags = int((missing[:, c] & (labels.weight[:, c] > 0)).sum())
            assert count <= math.ceil(float(prior[c]) * (tags + 1) + 1)
            tagged += count
    assert tagged > 5


def test_a_federation_without_a_single_positive_tags_nothing() -> None:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="classes")
    scenario = replace(scenario, noisy=np.zeros_like(scenario.noisy))
    trace = simulate(make_config("fedmlp"), dataset, scenario)
    assert torch.isfinite(trace.vector).all()
    assert not any((client.labels.status == PSEUDO).any() for client in trace.simulation.clients)
