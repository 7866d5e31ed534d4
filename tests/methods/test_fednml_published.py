"""FedNML as published against plain loops written from its equations (docs/methods.md 1.5, 1.6)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import float32_tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import ROUNDS, WARMUP, C, FakeClient, N, make_observed, predictions
from tiny import make_plan

from src.messages import Broadcast, Report
from src.methods import fednml as refinement
from src.methods.base import parse_params
from src.methods.fednml import FedNML
from utils_.labels import CORRECTED, MISSING, OBSERVED, PSEUDO, LabelState
from utils_.mixture import NoiseSplit
from utils_.priors import class_counts, class_prior
from utils_.pseudo_labels import agreement_and_loss, snap
from utils_.rng import derive

VECTOR = torch.zeros(3)
TERMS = 4 * 5 * C  # cells of a batch of five with their teacher's, and as many steps


def make_method(**param: Any) -> FedNML:
    plan = make_plan(rounds=ROUNDS, warmup_rounds=WARMUP)
    return FedNML(plan, parse_params(FedNML, {"published": True} | param))


def message(round: int, shared: np.ndarray | None = None) -> Broadcast:
    shared = np.full(C, 0.25, np.float32) if shared is None else shared
    return Broadcast(round, VECTOR, {"prior": shared})


# ---- the reference: one number after the other, in Python's floats


def reference_ramp(round: int, kappa: float) -> float:
    share = min(max((round - WARMUP) / (ROUNDS - WARMUP), 0), 1)
    return math.exp(-kappa * (1 - share) ** 2)


def reference_snap(p: float, confident: float, share: float | None = None) -> float:
    if p > confident:
        return 1.0
    if share is None or math.isnan(share):
        share = 0.5
    share = min(max(share, 1e-4), 0.5)
    odds = math.inf if p == 1 else p / (1 - p)
    return 0.0 if odds < (1 - confident) / confident * share / (1 - share) else p


class Reference:
    """One client's labels through the refinement phase."""

    def __init__(self, observed: np.ndarray, params: Any, hidden: np.ndarray | None) -> None:
        self.observed, self.params, self.hidden = observed, params, hidden
        self.target = {c: float(observed[c]) for c in np.ndindex(N, C) if not self.is_missing(c)}
        self.weight = dict.fromkeys(self.target, 1.0)
        self.counts = [sum(self.first(i, c) for i in range(N)) for c in range(C)]

    def first(self, i: int, c: int) -> float:
        """Label by which the published class counts start: 0 where it is hidden and not leaked."""
        if not self.is_missing((i, c)):
            return float(self.observed[i, c])
        return 0.0 if self.hidden is None else float(self.hidden[i, c])

    def is_missing(self, cell: tuple[int, int]) -> bool:
        return bool(np.isnan(self.observed[cell]))

    def known(self, i: int) -> list[int]:
        return [c for c in range(C) if not self.is_missing((i, c))]

    def margin_prior(self) -> list[float]:
        return [n / N for n in self.counts]

    def follow(self, round: int) -> None:
        """Step 6 of 1.6, after the labels of a refresh."""
        rate = 0.8 * reference_ramp(round, 2)
        for c in range(C):
            now = sum(self.target[i, c] for i in range(N))
            self.counts[c] = rate * now + (1 - rate) * self.counts[c]

    def score(self, predicted: np.ndarray) -> list[tuple[float, float]]:
        """Agreement and loss of each image."""
        scores = []
        for i in range(N):
            agreement = loss = 0.0
            for c in self.known(i):
                p = min(max(float(predicted[i, c]), 1e-7), 1 - 1e-7)
                y = self.target[i, c]
                agreement += (y * p + (1 - y) * (1 - p)) / len(self.known(i))
                loss -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / len(self.known(i))
            scores.append((agreement, loss))
        return scores

    def refresh(self, predicted: np.ndarray, posterior: np.ndarray) -> None:
        for i, c in np.ndindex(N, C):
            snapped = reference_snap(float(predicted[i, c]), self.params.confident)
            if self.is_missing((i, c)):
                start = snapped if self.hidden is None else float(self.hidden[i, c])
                old, keep = self.target.get((i, c), start), self.params.inertia
                keep = keep if self.hidden is None else max(keep, 0.8)  # the leak as published
                self.target[i, c] = keep * old + (1 - keep) * snapped
                self.weight[i, c] = 1
            elif posterior[i] > 0.5:
                self.target[i, c] = snapped


def table(cells: dict) -> np.ndarray:
    filled = np.zeros((N, C))
    for cell, value in cells.items():
        filled[cell] = value
    return filled


@pytest.mark.numerics
@pytest.mark.parametrize("leak", [False, True])
def test_the_refinement_phase_against_the_reference(
    leak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def mixture(agreement: np.ndarray, loss: np.ndarray, **options: Any) -> NoiseSplit:
        """Stands in for the mixture: half the images are noisy, others the next time."""
        asked.append((np.stack([agreement, loss], axis=1), options))
        posterior = derive(len(asked), "posterior").random(len(loss)).astype(np.float32)
        posterior[posterior < 0.3] = 0
        return NoiseSplit(posterior, True, "", np.zeros((2, 2)))

    monkeypatch.setattr(refinement, "split_noisy", mixture)
    method = make_method(hidden_label_leak=leak, inertia=0.7)
    observed = make_observed()
    hidden = (derive(0, "hidden").random((N, C)) < 0.5).astype(np.float32) if leak else None
    client = FakeClient(LabelState(observed), hidden=hidden)
    reference = Reference(observed, method.params, hidden)
    for round in range(ROUNDS - 60):
        client.predicted, client.cache = predictions(round), {}
        method.before_local(client, None, message(round))
        if round < WARMUP:
            assert not client.cache
            assert not client.memory
            continue
        predicted = client.predicted
        if round % 5 == 0:
            evidence, options = asked[-1]
            np.testing.assert_allclose(evidence, reference.score(predicted), atol=1e-5, rtol=1e-5)
            assert (options["min_images"], options["min_gap"]) == (4, 0)  # no guard there
            reference.refresh(predicted, client.memory["noise_score"])
            reference.follow(round)
        atol = float32_tolerance(4 * 6)  # running means of six refreshes
        for found, expected in (
            (client.labels.target, table(reference.target)),
            (client.labels.weight, table(reference.weight)),
            (client.cache["prior"], reference.margin_prior()),
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    assert len(asked) == 6
    assert len({options["seed"] for _, options in asked}) == 1
    missing = np.isnan(observed)
    assert (client.labels.status[missing] == PSEUDO).all()
    assert set(np.unique(client.labels.status[~missing])) == {OBSERVED, CORRECTED}


@pytest.mark.parametrize("leak", [False, True])
def test_the_published_class_counts_are_golden(leak: bool) -> None:
    """nu <- l sum(y) + (1 - l) nu with l = 0.10827 at t = 10 and 0.13438 at t = 15."""
    observed = np.full((N, C), np.nan, np.float32)
    observed[:, 0] = np.arange(N) < 3
    hidden = np.ones((N, C), np.float32) if leak else None
    client = FakeClient(LabelState(observed), hidden=hidden)
    client.predicted = np.full((N, C), 0.5, np.float32)
    method = make_method(hidden_label_leak=leak, kd_weight=0.1)
    found = []
    for round in (WARMUP, WARMUP + 1, WARMUP + 5):
        method.before_local(client, None, message(round))
        found.append(client.cache["prior"].tolist())
    if leak:  # 12; labels of 0.9 and 0.82 each
        one = 0.10827 * 10.8 + 0.89173 * 12
        two = 0.13438 * 9.84 + 0.86562 * one
    else:  # 0; predictions of one half, of twelve images
        one = 0.10827 * 6
        two = 0.13438 * 6 + 0.86562 * one
    for prior, missing in zip(found, (one, one, two), strict=True):
        expected = [3 / N, *[missing / N] * (C - 1)]
        np.testing.assert_allclose(prior, expected, rtol=0, atol=2e-5)
    assert client.memory["running_counts"].shape == (C,)


def test_a_site_that_waits_for_its_first_refresh_counts_what_it_observed() -> None:
    client = FakeClient(LabelState(make_observed()), predicted=predictions(0))
    make_method().before_local(client, None, message(WARMUP + 1))
    expected = np.nansum(make_observed(), axis=0) / N
    np.testing.assert_allclose(client.cache["prior"], expected, atol=1e-6)
    assert "running_counts" not in client.memory


def test_the_warm_up_touches_no_label() -> None:
    client = FakeClient(LabelState(make_observed()), predicted=predictions(0))
    make_method().before_local(client, None, message(WARMUP - 1))
    assert set(np.unique(client.labels.status)) == {MISSING, OBSERVED}


@pytest.mark.numerics
def test_the_leaked_label_fades_by_a_fifth_at_each_refresh() -> None:
    """docs/methods.md 19: weight 0.8 ** j after j refreshes, 0.0180 after those of t = 10 .. 95."""
    method = make_method(hidden_label_leak=True)
    hidden = np.ones((N, C), np.float32)
    hidden[:, 0] = 0
    labels = LabelState(np.full((N, C), np.nan))
    client = FakeClient(labels, hidden=hidden, predicted=1 - hidden)
    golden = {1: 0.8, 2: 0.64, 3: 0.512, 4: 0.4096, 18: 0.0180}
    refreshes = 0
    for round in range(WARMUP, ROUNDS):
        method.before_local(client, None, message(round))
        refreshes += round % 5 == 0
        expected = 0.8**refreshes
        assert expected == pytest.approx(golden.get(refreshes, expected), abs=5e-5)
        atol = float32_tolerance(4 * refreshes)
        np.testing.assert_allclose(labels.target[:, 1:], expected, rtol=0, atol=atol)
        np.testing.assert_allclose(labels.target[:, 0], 1 - expected, rtol=0, atol=atol)
    assert refreshes == 18


def test_without_the_leak_missing_cells_start_from_the_prediction() -> None:
    labels = LabelState(np.full((N, C), np.nan))
    predicted = predictions(3)
    client = FakeClient(labels, predicted=predicted)
    make_method().before_local(client, None, message(WARMUP))
    np.testing.assert_allclose(labels.target, snap(predicted, 0.9), atol=1e-6)


# ---- the objective


def reference_entropy(logit: float, target: float) -> float:
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def make_batch(method: FedNML, *, weight: float = 0.7) -> tuple[FakeClient, Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, C, generator=generator)
    target = torch.rand(5, C, generator=generator).round(decimals=1)
    target[0] = 1
    weights = (torch.rand(5, C, generator=generator) < weight).float()
    target = torch.where(weights > 0, target, 0)
    teacher = torch.rand(N, C, generator=generator)
    client = FakeClient(LabelState(make_observed()), teach=lambda images: images)
    client.cache = {"prior": torch.tensor([0.2, 0.02, 0.5, float("nan")])}
    rows = np.array([3, 0, 7, 11, 5])
    images = teacher[:5]  # the tests hand the batch teacher's answer over as images
    batch = SimpleNamespace(images=images, rows=rows, target=target, weight=weights, strong=None)
    return client, batch, logits


def objective(method: FedNML, round: int) -> tuple[float, float]:
    """FedNML's loss, and the same by loops."""
    client, batch, logits = make_batch(method)
    found = method.loss(client, SimpleNamespace(forward=lambda x: logits), batch, message(round))
    weight = method.params.kd_weight * reference_ramp(round, method.params.kappa)
    supervised, total, distilled = 0.0, 0.0, 0.0
    for b, c in np.ndindex(5, C):
        z, y, w = float(logits[b, c]), float(batch.target[b, c]), float(batch.weight[b, c])
        share = float(client.cache["prior"][c])
        shift = math.log(share) if y == 1 else math.log(1 - share)
        shift = 0.0 if math.isnan(share) else method.params.margin * shift
        distilled += reference_entropy(z + shift, float(batch.images[b, c])) / (5 * C)
        supervised += w * reference_entropy(z + shift, y)
        total += w
    return found.item(), weight * distilled + (1 - weight) * supervised / total


@pytest.mark.numerics
@pytest.mark.parametrize("margin", [0, 1, 2.5])
@pytest.mark.parametrize("round", [10, 11, 50, 99])
def test_the_objective_against_the_reference(round: int, margin: float) -> None:
    method = make_method(margin=margin, kd_weight=0.5)
    found, expected = objective(method, round)
    assert found == pytest.approx(expected, abs=float32_tolerance(TERMS, expected))


@pytest.mark.numerics
def test_the_objective_of_the_warm_up_is_fedavg_s() -> None:
    method = make_method()
    client, batch, logits = make_batch(method)
    model = SimpleNamespace(forward=lambda x: logits)
    client.cache = {}
    found = method.loss(client, model, batch, message(WARMUP - 1)).item()
    pairs = [
        (reference_entropy(float(logits[cell]), float(batch.target[cell])), batch.weight[cell])
        for cell in np.ndindex(5, C)
    ]
    expected = float(sum(h * w for h, w in pairs) / sum(w for _, w in pairs))
    assert found == pytest.approx(expected, abs=float32_tolerance(TERMS, expected))


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("round", "golden"), [(10, 0.10827), (20, 0.16474), (50, 0.43153), (99, 0.79980)]
)
def test_the_weight_of_distillation_is_golden(round: int, golden: float) -> None:
    """docs/methods.md 19, read off the loss: a teacher who is right and labels that are wrong."""
    method = make_method(kd_weight=0.8, margin=0)
    client, batch, _ = make_batch(method)
    logits = torch.full((5, C), 2.0)
    batch.images, batch.target = torch.ones(5, C), torch.zeros(5, C)
    batch.weight = torch.ones(5, C)
    loss = method.loss(client, SimpleNamespace(forward=lambda x: logits), batch, message(round))
    distilled, supervised = reference_entropy(2, 1), reference_entropy(2, 0)
    weight = (loss.item() - supervised) / (distilled - supervised)
    assert weight == pytest.approx(golden, abs=1e-5)


# ---- its parts


@pytest.mark.numerics
@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 1, width=32),
    st.floats(0.5, 0.99),
    st.floats(0, 1, width=32) | st.just(math.nan) | st.none(),
)
def test_snap_against_the_odds(p: float, confident: float, share: float | None) -> None:
    table = np.array([[p]], np.float32)
    found = snap(table, confident, None if share is None else np.array([share])).item()
    nearby = {reference_snap(min(max(p + d, 0), 1), confident, share) for d in (-1e-6, 0, 1e-6)}
    assert any(found == pytest.approx(value, abs=1e-5) for value in nearby)


def test_snap_golden_values() -> None:
    predicted = np.array([[0.95, 0.5, 0.05, 0.9, 0.1]], np.float32)
    np.testing.assert_allclose(snap(predicted, 0.9), [[1, 0.5, 0, 0.9, 0.1]], rtol=1e-6)
    # At a prior of 2 % the odds must be a ninth of 0.02 / 0.98: below 0.00226.
    rare = np.array([[0.95, 0.05, 0.0023, 0.0022]], np.float32)
    np.testing.assert_allclose(snap(rare, 0.9, np.full(4, 0.02)), [[1, 0.05, 0.0023, 0]], rtol=1e-6)


def test_a_likely_positive_of_a_frequent_class_is_never_called_absent() -> None:
    predicted = np.array([[0.91, 0.6, 0.11, 0.09]], np.float32)
    np.testing.assert_allclose(snap(predicted, 0.9, np.full(4, 0.99)), [[1, 0.6, 0.11, 0]], 1e-6)


@pytest.mark.numerics
def test_agreement_and_loss_read_the_given_cells_alone() -> None:
    p = np.array([[0.8, 0.4], [0.3, 0.6]], np.float32)
    y, cells = np.array([[1, np.nan], [np.nan, 1e30]]), np.array([[True, False], [False, False]])
    agreement, loss = agreement_and_loss(p, y, cells)
    np.testing.assert_allclose(agreement, [0.8, 0], atol=1e-6)
    np.testing.assert_allclose(loss, [-math.log(0.8), 0], atol=1e-6)


def test_counts_and_priors_by_hand() -> None:
    labels = LabelState(np.array([[1, 0, np.nan], [1, np.nan, np.nan], [0, 0, np.nan]]))
    labels.correct(np.isnan(labels.observed), np.full((3, 3), 0.9))  # pseudo-labels do not count
    labels.correct(np.eye(3, dtype=bool) & labels.annotated, np.full((3, 3), 0.5))
    counts = class_counts(labels)
    assert counts["positives"].tolist() == [1.5, 0, 0]
    assert counts["annotated"].tolist() == [3, 2, 0]
    np.testing.assert_array_equal(class_prior(**counts), np.float32([0.5, 0, np.nan]))


def test_the_server_s_prior_is_that_of_all_annotated_cells() -> None:
    """A client that does not take part counts with its latest report."""
    method, server = make_method(), SimpleNamespace(memory={})
    assert np.isnan(method.extras(server)["prior"]).all()
    told = {
        0: ([2, 0, 0, 0], [10, 10, 0, 0]),
        1: ([1, 5, 0, 0], [10, 30, 0, 0]),
        2: ([0, 0, 3, 0], [0, 0, 4, 0]),
    }

    def report(client: int) -> Report:
        positives, annotated = (np.array(a, np.float32) for a in told[client])
        return Report(client, 1, None, {"positives": positives, "annotated": annotated})

    method.after_round(server, [report(0), report(1)])
    expected = [0.15, 0.125, np.nan, np.nan]
    np.testing.assert_allclose(method.extras(server)["prior"], expected, rtol=1e-6)
    told[0] = ([4, 0, 0, 0], [10, 10, 0, 0])
    method.after_round(server, [report(0), report(2)])
    expected = [0.25, 0.125, 0.75, np.nan]
    np.testing.assert_allclose(method.extras(server)["prior"], expected, rtol=1e-6)


def test_a_site_reports_counts_and_no_image() -> None:
    client = FakeClient(LabelState(make_observed()), teach=lambda images: images)
    extras = make_method().after_local(client, None, message(0))
    assert {name: array.shape for name, array in extras.items()} == {
        "positives": (C,),
        "annotated": (C,),
    }
