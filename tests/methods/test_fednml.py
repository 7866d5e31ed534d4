"""FedNML against plain loops written from docs/fednml.md; what was published has its own file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import cross_entropy, float32_tolerance, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import (
    PRIOR,
    ROUNDS,
    WARMUP,
    C,
    FakeClient,
    N,
    TwoLayers,
    make_batch,
    make_client,
    make_method,
    make_observed,
    make_server,
    message,
    predictions,
)
from tiny import make_plan

from src.messages import Report
from utils_.augment import mix_up
from utils_.errors import UserError
from utils_.labels import CORRECTED, MISSING, OBSERVED, PSEUDO, LabelState
from utils_.rng import derive
from utils_.suspects import doubt_share, mixture_share, share_of_strangers, weigh_labels

MANY = 200


def fednml(**param: Any) -> Any:
    """Without the guard unless asked for: most tables here are too small for it."""
    changed = {"min_noise": 0, "mixup_epochs": 0, "doubted_weight": 0.5}
    return make_method("fednml", **(changed | param))


def judge(method: Any, client: FakeClient, round: int, predicted: np.ndarray) -> None:
    client.round, client.predicted, client.cache = round, predicted, {}
    method.before_local(client, None, message(round))


def site(noise: float, *, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, ...]:
    """True labels, given ones (``noise`` of the images have another's), good predictions."""
    draw = derive(seed, "site")
    true = (draw.random((MANY, classes)) < 0.3).astype(np.float32)
    wrong = draw.random(MANY) < noise
    observed = np.where(wrong[:, None], true[draw.permutation(MANY)], true)
    logits = 3.0 * (2 * true - 1) + draw.normal(0, 1, true.shape)
    return true, observed, (1 / (1 + np.exp(-logits))).astype(np.float32)


def estimate(client: FakeClient) -> float:
    """The guard's, of the predictions that the client judged by last."""
    given = client.labels.observed
    evidence = weigh_labels(client.predicted, given)
    return share_of_strangers(evidence, given, client.draw("strangers"))


# ---- which images are doubted


@pytest.mark.numerics
def test_evidence_and_labels_against_the_reference() -> None:
    method = fednml(judge_from=3, memory=0.6, trust=0.9, doubted_weight=0.4, pseudo_weight=0.3)
    observed = make_observed()
    client = FakeClient(LabelState(observed))
    evidence, mean, share = np.zeros(N), np.zeros((N, C)), 0.0
    for seen, round in enumerate(range(3, WARMUP + 6)):
        predicted = predictions(round)
        predicted[::2] = (predicted[::2] + 3 * np.nan_to_num(observed[::2])) / 4  # these fit
        judge(method, client, round, predicted)
        now = weigh_labels(predicted, observed)
        keep = min(0.6, seen / (seen + 1))
        evidence = keep * evidence + (1 - keep) * now.log_odds
        keep = min(keep, 1 - 16 / ROUNDS)
        mean = keep * mean + (1 - keep) * predicted
        if round <= WARMUP:
            share = mixture_share(evidence)  # alone, since twelve images are too few for the other
        if round < WARMUP:
            assert set(np.unique(client.labels.status)) == {MISSING, OBSERVED}
        doubt = doubt_share(evidence, share)
        np.testing.assert_allclose(client.memory["noise_score"], doubt, atol=1e-5)
        for i, c in np.ndindex(N, C) if round >= WARMUP else ():
            expected = by_hand(observed[i, c], mean[i, c], doubt[i])
            found = client.labels.target[i, c], client.labels.weight[i, c]
            assert found == pytest.approx(expected, abs=1e-5)
    missing = np.isnan(observed)
    assert (client.labels.status[missing] == PSEUDO).all()
    assert set(np.unique(client.labels.status[~missing])) == {OBSERVED, CORRECTED}


def by_hand(given: float, predicted: float, doubt: float) -> tuple[float, float]:
    """Target and weight of one cell."""
    if math.isnan(given):
        return predicted, 0.3
    believed, guess = 1 - 0.9 * doubt, 0.4 * doubt if doubt > 0.5 else 0.0
    return (believed * given + guess * predicted) / (believed + guess), believed + guess


def test_the_share_is_the_mean_of_two_estimates_and_kept_after_the_warm_up() -> None:
    _, observed, predicted = site(0.4)
    client, method = FakeClient(LabelState(observed)), fednml(memory=0.0)
    judge(method, client, WARMUP, predicted)
    evidence = weigh_labels(predicted, observed).log_odds
    two = mixture_share(evidence), estimate(client)
    assert two[0] < two[1]
    assert client.memory["share"] == pytest.approx(sum(two) / 2, abs=1e-6)
    before = client.memory["share"].copy()
    judge(method, client, WARMUP + 1, 1 - predicted)
    assert client.memory["share"] == before
    assert client.memory["noise_score"].mean() == pytest.approx(before, abs=1e-6)


def test_nothing_is_judged_before_its_round() -> None:
    client = make_client()
    judge(fednml(judge_from=4), client, 3, predictions(0))
    assert not client.memory
    judge(fednml(judge_from=4), client, 4, predictions(0))
    assert client.memory["judged"] == 1


def test_each_round_starts_from_what_was_observed() -> None:
    """A correction that later evidence takes back leaves no trace in the labels."""
    method, (_, observed, predicted) = fednml(memory=0.0), site(0.4)
    twice, once = FakeClient(LabelState(observed)), FakeClient(LabelState(observed))
    for client in (twice, once):
        judge(method, client, WARMUP, predicted)
    judge(method, twice, WARMUP + 1, 1 - predicted)
    for client in (twice, once):
        judge(method, client, WARMUP + 2, predicted)
    for name in ("target", "weight", "status"):
        np.testing.assert_array_equal(getattr(twice.labels, name), getattr(once.labels, name))


def test_wrong_images_are_found_and_what_is_changed_was_wrong() -> None:
    true, observed, predicted = site(0.4)
    client = FakeClient(LabelState(observed))
    for round in (WARMUP - 1, WARMUP):
        judge(fednml(min_noise=0.2), client, round, predicted)
    wrong, doubt = (observed != true).any(axis=1), client.memory["noise_score"]
    assert (doubt[wrong][:, None] > doubt[~wrong]).mean() > 0.95
    turned = np.abs(client.labels.target - observed) > 0.5
    assert turned.sum() > 50
    assert (true != observed)[turned].mean() > 0.9
    np.testing.assert_array_equal((client.labels.target != observed).any(axis=1), doubt > 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-200, 200), min_size=1, max_size=40), st.floats(0, 1))
def test_doubt_has_the_share_it_is_given_and_the_order_of_the_evidence(
    evidence: list[float], share: float
) -> None:
    log_odds = np.array(evidence)
    doubt = doubt_share(log_odds, share)
    assert doubt.mean() == pytest.approx(share, abs=1e-6)
    assert (np.diff(doubt[np.argsort(log_odds)]) >= -1e-9).all()


# ---- the guard


def test_labels_that_fit_are_left_alone_for_good() -> None:
    _, observed, predicted = site(0.0)
    client = FakeClient(LabelState(observed))
    method = fednml(min_noise=0.2)
    for round in (WARMUP - 1, WARMUP):
        judge(method, client, round, predicted)
    assert estimate(client) < 0.2
    judge(method, client, WARMUP + 1, 1 - predicted)  # nothing is doubted again
    assert (client.memory["noise_score"] == 0).all()
    assert (client.labels.weight == 1).all() and (client.labels.status == OBSERVED).all()


def test_noise_is_doubted_and_a_late_fit_proves_nothing() -> None:
    _, observed, predicted = site(0.4)
    by_heart = np.where(observed == 1, 0.99, 0.01).astype(np.float32)
    late, early = (FakeClient(LabelState(observed)) for _ in range(2))
    method = fednml(min_noise=0.2)
    judge(method, late, WARMUP, predicted)
    assert estimate(late) > 0.3
    judge(method, late, ROUNDS // 2 + 1, by_heart)
    assert estimate(late) < 0.2
    assert late.memory["noise_score"].mean() > 0.2
    judge(method, early, ROUNDS // 2, by_heart)
    assert (early.memory["noise_score"] == 0).all()


def test_too_few_images_for_an_estimate_are_not_doubted() -> None:
    client = make_client()
    judge(fednml(min_noise=0.2), client, WARMUP, predictions(0))
    assert math.isnan(estimate(client))
    assert (client.memory["noise_score"] == 0).all()


def test_by_default_labels_fade_and_none_is_changed() -> None:
    _, observed, predicted = site(0.4)
    client = FakeClient(LabelState(observed))
    judge(make_method("fednml"), client, WARMUP, predicted)
    np.testing.assert_array_equal(client.labels.target, observed)
    assert (client.labels.status == OBSERVED).all()
    assert client.labels.weight.min() < 0.1


def test_pseudo_labels_are_the_mean_of_what_was_predicted() -> None:
    """A model that has begun to learn wrong labels by heart moves them little."""
    client, method = make_client(), fednml(memory=0.9, judge_from=WARMUP)
    for round in range(WARMUP, WARMUP + 4):
        judge(method, client, round, np.full((N, C), 0.2, np.float32))
    judge(method, client, WARMUP + 4, np.full((N, C), 0.9, np.float32))
    missing = ~client.labels.annotated
    np.testing.assert_allclose(client.labels.target[missing], 0.8 * 0.2 + 0.2 * 0.9, atol=1e-6)


def test_flags_of_the_truth_take_all_weight_and_nothing_else() -> None:
    method = fednml(oracle_flags=True, doubted_weight=0)
    assert method.leak == "flags"
    flags = np.arange(N) % 3 == 0
    client = FakeClient(LabelState(make_observed()), hidden=flags)
    judge(method, client, WARMUP, predictions(0))
    known = client.labels.annotated
    np.testing.assert_array_equal(client.labels.weight[known], (~flags[:, None] * known)[known])


# ---- the objective


def objective(method: Any, round: int, shift: list[float] | None = None) -> tuple[float, float]:
    """FedNML's loss, and the same by loops over the cells of the mixed batch."""
    client = make_client(round=round)
    batch, model = make_batch(client, [3, 0, 7, 11, 5]), TwoLayers()
    if shift is not None:
        client.cache["shift"] = torch.tensor(shift)
    mixed = mix_up(batch, alpha=method.params.mixup, draw=client.draw("mixup", batch.step))
    logits = model.forward(mixed.images).detach()
    total = weights = 0.0
    for cell in np.ndindex(5, C):
        z = float(logits[cell]) + (0 if shift is None else shift[cell[1]])
        total += float(mixed.weight[cell]) * cross_entropy(z, float(mixed.target[cell]))
        weights += float(mixed.weight[cell])
    return method.loss(client, model, batch, message(round)).item(), total / weights


@pytest.mark.numerics
@pytest.mark.parametrize("shift", [None, [-1.0, -3.0, 0.0, 0.5]])
@pytest.mark.parametrize("mixup", [0, 0.5, 1])
@pytest.mark.parametrize("round", [0, WARMUP, ROUNDS - 1])
def test_the_objective_against_the_reference(
    round: int, mixup: float, shift: list[float] | None
) -> None:
    found, expected = objective(fednml(mixup=mixup), round, shift)
    assert found == pytest.approx(expected, abs=float32_tolerance(4 * 5 * C, expected))


def test_a_short_training_mixes_no_images() -> None:
    epochs = ROUNDS * make_plan().local_epochs
    short, long = (fednml(mixup_epochs=number) for number in (epochs + 1, epochs))
    plain = fednml(mixup=0)
    assert objective(short, 6)[0] == objective(plain, 6)[0]
    assert objective(long, 0)[0] == objective(fednml(), 0)[0] != objective(plain, 0)[0]


# ---- the model that is used


@pytest.mark.numerics
def test_the_averaged_model_is_golden() -> None:
    """1; 0.2 * 1 + 0.8 * 2; 1/3 of that + 2/3 * 3; of 100 rounds 0.84 at most, 1 - 16 / 100."""
    method, averages = fednml(average=0.9), []
    server = make_server(method, size=1)
    for value in (1.0, 2.0, 3.0):
        report = Report(0, 5, torch.tensor([value]), {}, {})
        server.model = method.aggregate(server, [report])
        assert server.model.tolist() == [value]  # what sites train on is the mean of the sites
        averages.append(method.evaluated(server, []).item())
        server.round += 1
    second = 0.2 * 1 + 0.8 * 2
    assert averages == pytest.approx([1, second, second / 3 + 2 * 3 / 3], rel=1e-6)
    server.round = 36
    before = server.memory["average"].item()
    method.aggregate(server, [Report(0, 5, torch.tensor([7.0]), {}, {})])
    assert server.memory["average"].item() == pytest.approx(0.84 * before + 0.16 * 7, rel=1e-6)


def test_without_an_average_the_last_model_is_used() -> None:
    method = fednml(average=0)
    server = make_server(method, size=1)
    method.aggregate(server, [Report(0, 5, torch.tensor([3.0]), {}, {})])
    assert not server.memory
    assert method.evaluated(server, []) is server.model


# ---- logit adjustment


def reference_odds(observed: np.ndarray, shared: np.ndarray) -> list[float]:
    """Half a cell added to either count; of a missing class the other sites' share."""
    odds = []
    for c in range(C):
        known = [y for y in observed[:, c] if not math.isnan(y)]
        share = float(shared[c])
        if known:
            odds.append(math.log((sum(known) + 0.5) / (len(known) - sum(known) + 0.5)))
        else:
            odds.append(0.0 if math.isnan(share) else math.log(share / (1 - share)))
    return odds


@pytest.mark.numerics
@pytest.mark.parametrize("share", [0.25, math.nan])
@pytest.mark.parametrize("round", [0, WARMUP, WARMUP + 1])
def test_logits_are_shifted_by_the_log_prior_odds(round: int, share: float) -> None:
    observed, shared = make_observed(), np.full(C, share, np.float32)
    client = make_client(predicted=predictions(round), round=round)
    told = message(round, prior=shared)
    fednml(logit_adjustment=True).before_local(client, None, told)
    expected = reference_odds(observed, shared)
    np.testing.assert_allclose(client.cache["shift"], expected, atol=1e-6)
    assert expected[3] == (0 if math.isnan(share) else pytest.approx(math.log(1 / 3)))


def test_a_class_absent_at_all_other_sites_shifts_by_a_finite_amount() -> None:
    client = make_client()
    told = message(0, prior=np.zeros(C, np.float32))
    fednml(logit_adjustment=True).before_local(client, None, told)
    assert client.cache["shift"][3] == pytest.approx(math.log(0.001 / 0.999), abs=1e-4)


def test_pseudo_labels_are_predictions_under_the_site_s_priors() -> None:
    """As its annotations are: a plain prediction of 0.5 says no more than the prior."""
    client = make_client(predicted=np.full((N, C), 0.5, np.float32), round=WARMUP)
    fednml(logit_adjustment=True).before_local(client, None, message(WARMUP))
    np.testing.assert_allclose(client.labels.target[:, 3], PRIOR[3], atol=1e-6)
    assert sigmoid(float(client.cache["shift"][3])) == pytest.approx(PRIOR[3], abs=1e-6)


def test_parameters_of_the_two_methods_do_not_mix() -> None:
    for wrong in ({"confident": 0.8}, {"published": True, "mixup": 0.0}):
        with pytest.raises(UserError, match="published=true"):
            make_method("fednml", **wrong)
    make_method("fednml", published=True, confident=0.8)
