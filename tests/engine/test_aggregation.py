"""The aggregation rules against plain loops, golden values and their reductions to the mean."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import float32_tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from src import aggregation
from src.aggregation import (
    AGGREGATORS,
    Frame,
    Layout,
    coordinate_median,
    fault,
    geometric_weights,
    krum_scores,
    mean_by_images,
    trimmed_mean,
    uniform_mean,
)
from src.aggregator_options import RANKING, RULES, resolve_parameters
from src.messages import ANNOTATED_CELLS, Report
from utils_.errors import UserError

LENGTH, CLASSES = 11, 2
# Two classes with two features each, the bias, five more parameters at the front, one variance.
LAYOUT = Layout(10, slice(4, 8), slice(8, 10), (slice(10, 11),))
GOLDEN = torch.tensor([[0.0, 0], [0, 1], [1, 0], [10, 10]])  # docs/methods.md 19
FOLDING = ("mean", "uniform", "classwise")
EACH_RULE = pytest.mark.parametrize("rule", AGGREGATORS)


def make_reports(sizes: list[int], length: int = LENGTH, seed: int = 0) -> list[Report]:
    generator = torch.Generator().manual_seed(seed)
    reports = []
    for k, n in enumerate(sizes):
        vector = torch.randn(length, generator=generator)
        vector[-1] = vector[-1].abs()
        counts = np.array([n, n // 2], np.float32)
        reports.append(Report(k, n, vector, {ANNOTATED_CELLS: counts}))
    return reports


def make_frame(rule: str, n: int, **given: Any) -> Frame:
    parameters = resolve_parameters(rule, given, reports=n, attackers=1, attacked=False)
    start = torch.linspace(-0.5, 0.5, LENGTH)
    return Frame(start, LAYOUT, parameters, AGGREGATORS[rule].needs)


def combine(rule: str, reports: list[Report], **given: Any) -> torch.Tensor:
    return AGGREGATORS[rule](iter(reports), make_frame(rule, len(reports), **given))


def table(reports: list[Report]) -> np.ndarray:
    return np.stack([report.model.double().numpy() for report in reports])


sizes_of = st.lists(st.integers(1, 10_000), min_size=3, max_size=8)
seeds = st.integers(0, 99)


# ---- all rules


@EACH_RULE
@settings(max_examples=25, deadline=None)
@given(sizes_of, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_reports_is_irrelevant(
    rule: str, sizes: list[int], seed: int, random: Any
) -> None:
    reports = make_reports(sizes, seed=seed)
    found = combine(rule, reports)
    shuffled = random.sample(reports, len(reports))
    if rule in FOLDING:  # sums in another order may differ in the last bit
        torch.testing.assert_close(combine(rule, shuffled), found, rtol=1e-6, atol=1e-7)
    else:
        torch.testing.assert_close(combine(rule, shuffled), found, rtol=0, atol=0)


@EACH_RULE
@settings(max_examples=25, deadline=None)
@given(sizes_of, seeds)
def test_every_coordinate_lies_between_the_reported_and_the_old_ones(
    rule: str, sizes: list[int], seed: int
) -> None:
    """So variances stay positive."""
    reports = make_reports(sizes, seed=seed)
    frame = make_frame(rule, len(sizes))
    found = AGGREGATORS[rule](reports, frame).double().numpy()
    values = table(reports)
    if rule == "clip":
        values = np.vstack([values, frame.model.double().numpy()])
    assert (found >= values.min(axis=0) - 1e-6).all()
    assert (found <= values.max(axis=0) + 1e-6).all()


@EACH_RULE
def test_equal_reports_stay_as_they_are(rule: str) -> None:
    """Distances of 0 and spreads of 0 divide nothing."""
    vector = make_reports([1], length=LENGTH, seed=5)[0].model
    reports = [replace(report, model=vector) for report in make_reports([5, 6, 7, 8, 9])]
    torch.testing.assert_close(combine(rule, reports), vector, rtol=1e-6, atol=1e-7)


@EACH_RULE
def test_of_one_report_nothing_is_lost(rule: str) -> None:
    """As when all others were rejected, though the rule was set for five."""
    frame = make_frame(rule, 5)
    report = make_reports([37])[0]
    found = AGGREGATORS[rule]([report], frame)
    torch.testing.assert_close(found, report.model, rtol=1e-6, atol=1e-7)
    assert found.dtype == torch.float32
    assert found.shape == (LENGTH,)


@EACH_RULE
@pytest.mark.parametrize("left", [2, 3, 4])
def test_fewer_reports_than_the_rule_was_set_for_will_do(rule: str, left: int) -> None:
    found = AGGREGATORS[rule](make_reports([3] * left), make_frame(rule, 5))
    assert torch.isfinite(found).all()


@EACH_RULE
def test_the_reports_are_not_changed(rule: str) -> None:
    reports = make_reports([2, 3, 4, 5])
    before = [report.model.clone() for report in reports]
    combine(rule, reports)
    assert all(torch.equal(r.model, b) for r, b in zip(reports, before, strict=True))


@EACH_RULE
def test_no_report_is_an_error(rule: str) -> None:
    with pytest.raises(ValueError, match="no report"):
        AGGREGATORS[rule]([], make_frame(rule, 5))


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum", "multikrum", "geometric", "clip"])
def test_two_of_seven_that_lie_far_away_are_withstood(rule: str) -> None:
    honest = make_reports([20] * 5)
    false = [replace(r, client=r.client + 5, model=r.model + 1e6) for r in make_reports([20] * 2)]
    frame = replace(make_frame(rule, 7), parameters=resolve(rule, 7, 2))
    found = AGGREGATORS[rule]([*false, *honest], frame)
    assert (found - uniform_mean(honest)).norm() < 6
    assert (uniform_mean([*false, *honest]) - uniform_mean(honest)).norm() > 1e5


# ---- the means


@pytest.mark.numerics
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), seeds)
def test_the_mean_is_weighted_by_images(sizes: list[int], seed: int) -> None:
    reports = make_reports(sizes, seed=seed)
    found = mean_by_images(iter(reports))
    for i in range(LENGTH):
        expected = sum(n * float(r.model[i]) for n, r in zip(sizes, reports, strict=True))
        assert found[i].item() == pytest.approx(expected / sum(sizes), abs=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.numerics
def test_the_uniform_mean_is_not_weighted() -> None:
    reports = make_reports([1, 10, 10_000])
    expected = table(reports).mean(axis=0)
    atol = float32_tolerance(2, expected)
    np.testing.assert_allclose(uniform_mean(reports), expected, rtol=0, atol=atol)


def test_the_mean_of_one_is_the_same_to_the_bit() -> None:
    report = make_reports([37])[0]
    assert torch.equal(mean_by_images([report]), report.model)


@pytest.mark.numerics
def test_the_mean_of_equals_is_the_same_to_the_bit() -> None:
    vector = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    reports = [Report(k, n, vector) for k, n in enumerate((1, 3, 7))]
    torch.testing.assert_close(mean_by_images(reports), vector, rtol=0, atol=0)


@pytest.mark.numerics
def test_small_differences_survive_a_large_sum() -> None:
    """The sum is in float64: in float32 a billion would lose each of a thousand fives."""
    large, small = torch.tensor([1.0]), torch.tensor([5.0])
    reports = [Report(k, 10**6, large) for k in range(1000)]
    reports += [Report(1000 + k, 1, small) for k in range(1000)]
    expected = (10**9 + 5000) / (10**9 + 1000)
    found = mean_by_images(reports).item()
    assert found == pytest.approx(expected, rel=0, abs=float32_tolerance(2))


@pytest.mark.numerics
def test_suppressed_reports_count_less_in_both_means() -> None:
    one, two = make_reports([10, 10])
    half = replace(two, samples=5.0, credit=0.5)
    for rule in (mean_by_images, uniform_mean):
        expected = (one.model.double() + two.model.double() / 2) / 1.5
        atol = float32_tolerance(2, expected)
        torch.testing.assert_close(rule([one, half]).double(), expected, rtol=0, atol=atol)


# ---- the class-wise head


@pytest.mark.numerics
def test_rows_of_the_head_are_weighted_by_annotated_images() -> None:
    reports = make_reports([10, 20, 30])
    counts = np.array([[10, 0], [0, 7], [5, 21]], np.float32)
    reports = [
        replace(r, extras={ANNOTATED_CELLS: c}) for r, c in zip(reports, counts, strict=True)
    ]
    found = combine("classwise", reports)
    expected = mean_by_images(reports)
    rows = {0: [4, 5, 8], 1: [6, 7, 9]}  # where weights and bias of a class lie
    for c, places in rows.items():
        for i in places:
            values = table(reports)[:, i]
            expected[i] = float((counts[:, c] * values).sum() / counts[:, c].sum())
    torch.testing.assert_close(found, expected, rtol=0, atol=float32_tolerance(4, expected))
    assert not torch.allclose(found, mean_by_images(reports))
    torch.testing.assert_close(found[:4], mean_by_images(reports)[:4], rtol=0, atol=0)


def test_a_class_that_nobody_annotates_keeps_the_mean() -> None:
    counts = np.array([4, 0], np.float32)
    reports = [replace(r, extras={ANNOTATED_CELLS: counts}) for r in make_reports([10, 20])]
    found, mean = combine("classwise", reports), mean_by_images(reports)
    assert torch.equal(found[[6, 7, 9]], mean[[6, 7, 9]])
    torch.testing.assert_close(found[[4, 5, 8]], uniform_mean(reports)[[4, 5, 8]])


@pytest.mark.numerics
def test_the_class_wise_head_is_the_mean_where_all_annotate_all() -> None:
    reports = make_reports([10, 20, 30])
    for report in reports:
        report.extras[ANNOTATED_CELLS] = np.full(CLASSES, report.samples, np.float32)
    mean = mean_by_images(reports)
    atol = float32_tolerance(2, mean)
    torch.testing.assert_close(combine("classwise", reports), mean, rtol=0, atol=atol)


# ---- median and trimmed mean


@pytest.mark.numerics
def test_golden_median_and_trimmed_mean() -> None:
    half = torch.tensor([0.5, 0.5])
    assert torch.equal(coordinate_median(GOLDEN), half)
    assert torch.equal(GOLDEN.median(dim=0).values, torch.zeros(2)), "what the rule must not use"
    assert torch.equal(trimmed_mean(GOLDEN, trim=1), half)


@pytest.mark.numerics
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), seeds, st.integers(1, 40))
def test_median_and_trimmed_mean_against_plain_code(n: int, seed: int, chunk: int) -> None:
    """And cut into pieces of any size."""
    vectors = torch.randn(n, LENGTH, generator=torch.Generator().manual_seed(seed))
    values, close = vectors.double().numpy(), {"rtol": 0, "atol": float32_tolerance(2, vectors)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "CHUNK", chunk)
        np.testing.assert_allclose(coordinate_median(vectors), np.median(values, 0), **close)
        for trim in range((n - 1) // 2 + 1):
            kept = [sorted(column)[trim : n - trim] for column in values.T]
            found = trimmed_mean(vectors, trim=trim)
            np.testing.assert_allclose(found, np.mean(kept, axis=1), **close)


def test_what_would_cut_everything_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is left"):
        trimmed_mean(GOLDEN, trim=2)


def test_trimmed_without_trimming_is_the_uniform_mean_to_the_bit() -> None:
    reports = make_reports([1, 50, 7, 9])
    assert torch.equal(combine("trimmed", reports, share=0.0), uniform_mean(reports))


@pytest.mark.numerics
def test_a_share_cuts_as_many_as_it_says() -> None:
    """0.29 of 100 is 28.99... in floating point."""
    reports = [Report(k, 1, torch.tensor([float(k**3)] * LENGTH)) for k in range(100)]
    expected = np.mean([k**3 for k in range(29, 71)])
    found = combine("trimmed", reports, share=0.29)[0].item()
    assert found == pytest.approx(expected, rel=1e-6)


# ---- krum


@pytest.mark.numerics
def test_golden_krum_scores() -> None:
    scores = krum_scores(GOLDEN, attackers=1)
    np.testing.assert_allclose(scores, [1, 1, 1, 181], rtol=1e-12)


@pytest.mark.numerics
@settings(max_examples=50, deadline=None)
@given(st.integers(3, 8), st.integers(0, 3), seeds, st.integers(1, 40))
def test_krum_scores_against_plain_loops(n: int, attackers: int, seed: int, chunk: int) -> None:
    vectors = torch.randn(n, LENGTH, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "CHUNK", chunk)
        found = krum_scores(vectors, attackers=attackers)
    for i in range(n):
        others = [v for j, v in enumerate(vectors) if j != i]
        squares = sorted(float(((vectors[i].double() - v.double()) ** 2).sum()) for v in others)
        expected = sum(squares[: max(n - attackers - 2, 1)])
        assert found[i].item() == pytest.approx(expected, rel=1e-9)


def test_krum_gives_one_report_and_ties_to_the_lower_client() -> None:
    reports = [replace(report, model=torch.zeros(LENGTH)) for report in make_reports([1] * 5)]
    for k, point in enumerate([[10.0, 10], [1, 0], [0, 1], [0, 0], [9, 9]]):
        reports[k].model[:2] = torch.tensor(point)
    # Scores by the two nearest others: clients 1 and 2 have 1 + 2, client 3 has 1 + 1.
    assert torch.equal(combine("krum", reports, assumed_attackers=1), reports[3].model)
    places = (0, 1, 2, 1, 2)
    tied = [replace(r, model=reports[k].model) for k, r in zip(places, reports, strict=True)]
    assert torch.equal(combine("krum", tied, assumed_attackers=1), tied[1].model)


@pytest.mark.numerics
def test_multikrum_means_the_best() -> None:
    reports = make_reports([1, 2, 3, 4, 5, 6, 7])
    scores = krum_scores([r.model[: LAYOUT.parameters] for r in reports], attackers=1)
    for keep in (1, 3, 6):
        found = combine("multikrum", reports, assumed_attackers=1, keep=keep)
        best = np.argsort(scores.numpy(), kind="stable")[:keep]
        expected = table(reports)[best].mean(axis=0)
        atol = float32_tolerance(2, expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    default = combine("multikrum", reports, assumed_attackers=1)
    assert torch.equal(default, combine("multikrum", reports, assumed_attackers=1, keep=4))


def test_multikrum_that_keeps_all_is_the_uniform_mean_to_the_bit() -> None:
    reports = make_reports([1, 50, 7, 9])
    found = combine("multikrum", reports, assumed_attackers=0, keep=4)
    assert torch.equal(found, uniform_mean(reports))


def test_multikrum_that_keeps_one_is_krum() -> None:
    reports = make_reports([3] * 6)
    one = combine("multikrum", reports, keep=1)
    assert torch.equal(one, combine("krum", reports))
    assert any(torch.equal(one, report.model) for report in reports)


# ---- geometric median


def geometric_median(vectors: torch.Tensor, weights: list[float], **options: Any) -> torch.Tensor:
    options = {"iterations": 1000, "smoothing": 1e-6} | options
    shares = geometric_weights(vectors, torch.tensor(weights, dtype=torch.float64), **options)
    assert shares.sum().item() == pytest.approx(1)
    return shares @ vectors.double()


def test_golden_geometric_median() -> None:
    np.testing.assert_allclose(geometric_median(GOLDEN, [1] * 4), [0.5, 0.5], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 7), seeds)
def test_no_step_away_from_the_geometric_median_is_better(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 3, generator=generator)
    weights = (torch.rand(n, generator=generator) + 0.2).tolist()

    def objective(point: torch.Tensor) -> float:
        distances = (vectors.double() - point).norm(dim=1)
        return float(distances @ torch.tensor(weights, dtype=torch.float64))

    center = geometric_median(vectors, weights)
    for i, step in itertools.product(range(3), (-1e-2, 1e-2)):
        moved = center.clone()
        moved[i] += step
        assert objective(center) <= objective(moved) + 1e-5


def test_one_step_of_weiszfeld_by_hand() -> None:
    """From the weighted mean (2): distances 2, 1 and 4, weights 3, 2 and 1 over them."""
    points = torch.tensor([[0.0], [3.0], [6.0]])
    found = geometric_median(points, [3, 2, 1], iterations=1)
    assert found.item() == pytest.approx((3 / 2 * 0 + 2 / 1 * 3 + 1 / 4 * 6) / (3.75))


def test_the_geometric_median_of_the_rule_weighs_images() -> None:
    reports = make_reports([1, 1, 1000])
    torch.testing.assert_close(combine("geometric", reports), reports[2].model, rtol=0, atol=1e-4)


# ---- clipping


def test_clip_with_a_huge_radius_is_the_mean_to_the_bit() -> None:
    reports = make_reports([1, 50, 7])
    assert torch.equal(combine("clip", reports, radius=1e6), mean_by_images(reports))


@pytest.mark.numerics
def test_clip_shortens_updates_and_not_models() -> None:
    reports = make_reports([1, 2, 3, 4])
    start = make_frame("clip", 4).model.double().numpy()
    updates = table(reports) - start
    norms = np.linalg.norm(updates[:, : LAYOUT.parameters], axis=1)
    for radius in (0, 0.5, 3.0):
        limit = radius or np.median(norms)
        shortened = updates * np.minimum(1, limit / norms)[:, None]
        expected = start + np.average(shortened, axis=0, weights=[1, 2, 3, 4])
        np.testing.assert_allclose(combine("clip", reports, radius=radius), expected, atol=1e-6)


def test_clip_of_clients_that_did_not_move() -> None:
    frame = make_frame("clip", 3)
    reports = [replace(r, model=frame.model.clone()) for r in make_reports([1, 2, 3])]
    assert torch.equal(AGGREGATORS["clip"](reports, frame), frame.model)


# ---- BatchNorm's statistics


@pytest.mark.parametrize("rule", ["krum", "multikrum", "geometric", "clip"])
def test_distances_are_those_of_the_parameters(rule: str) -> None:
    """A huge statistic changes no other number, and moves with its report's weight."""
    reports = make_reports([3] * 5)
    reports[0].model[:10] += 100  # the report that no robust rule believes
    found = combine(rule, reports)
    reports[0].model[-1] = 1e4
    again = combine(rule, reports)
    assert torch.equal(again[:10], found[:10])
    if rule in ("krum", "multikrum"):
        assert torch.equal(again, found)


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_rules_for_each_coordinate_treat_statistics_alike(rule: str) -> None:
    reports = make_reports([3] * 5)
    expected = combine(rule, reports)[-1]
    reports[int(np.argmax(table(reports)[:, -1]))].model[-1] = 1e4
    assert torch.equal(combine(rule, reports)[-1], expected)


# ---- reports that cannot be used


def faulty(change: Any) -> str | None:
    report = make_reports([10])[0]
    frame = make_frame("classwise", 1)
    assert fault(report, frame) is None
    return fault(change(report), frame)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, LENGTH - 1])
def test_what_is_not_finite_is_a_fault(place: int, value: float) -> None:
    def change(report: Report) -> Report:
        report.model[place] = value
        return report

    assert faulty(change) == "its model holds values that are not finite"


@pytest.mark.parametrize("sign", [1, -1])
def test_values_whose_squares_would_overflow_are_a_fault(sign: int) -> None:
    def report_of(size: float) -> str | None:
        def change(report: Report) -> Report:
            report.model[:2] = sign * size
            return report

        return faulty(change)

    assert report_of(9e14) is None
    assert report_of(3e38) == (
        "its model holds values beyond 1e+15, as training that diverges makes"
    )


@pytest.mark.parametrize("shape", [(LENGTH + 1,), (LENGTH - 1,), (1, LENGTH), (0,)])
def test_another_shape_is_a_fault(shape: tuple[int, ...]) -> None:
    found = faulty(lambda report: replace(report, model=torch.zeros(shape)))
    assert found == f"its model has shape {shape} instead of ({LENGTH},)"


def test_a_negative_variance_is_a_fault() -> None:
    """BatchNorm takes its root: one would make every prediction NaN."""

    def change(report: Report) -> Report:
        report.model[-1] = -1e-3
        return report

    assert faulty(change) == "its model holds variances below 0"


@pytest.mark.parametrize(
    "counts", [None, np.ones(3), np.array([1, np.nan]), np.array([-1, 1]), np.array([1, 11])]
)
def test_impossible_counts_are_a_fault(counts: np.ndarray | None) -> None:
    extras = {} if counts is None else {ANNOTATED_CELLS: counts}
    assert "absent or impossible" in faulty(lambda report: replace(report, extras=extras))


def test_counts_are_asked_for_by_the_class_wise_head_alone() -> None:
    report = replace(make_reports([10])[0], extras={})
    assert fault(report, make_frame("mean", 1)) is None


# ---- parameters


def resolve(
    rule: str, reports: int, attackers: int = 1, attacked: bool = True, **given: Any
) -> dict[str, float]:
    return resolve_parameters(rule, given, reports=reports, attackers=attackers, attacked=attacked)


def test_every_parameter_gets_a_value() -> None:
    assert resolve("mean", 4) == {}
    assert resolve("clip", 4) == {"radius": 0.0}
    assert resolve("geometric", 4, iterations=4) == {"iterations": 4, "smoothing": 1e-6}
    assert resolve("krum", 7, 2) == {"assumed_attackers": 2}
    assert resolve("multikrum", 7, 2) == {"assumed_attackers": 2, "keep": 3}
    assert resolve("multikrum", 5, 1, keep=4) == {"assumed_attackers": 1, "keep": 4}
    assert resolve("trimmed", 8, 2) == {"share": 0.25}


def test_without_an_attack_fewer_are_assumed_where_so_many_are_impossible() -> None:
    assert resolve("krum", 5, 1, False) == {"assumed_attackers": 1}
    assert resolve("krum", 4, 1, False) == {"assumed_attackers": 0}
    assert resolve("krum", 8, 2, False) == {"assumed_attackers": 2}
    assert resolve("trimmed", 4, 1, False) == {"share": 0.25}
    assert resolve("trimmed", 2, 1, False) == {"share": 0.0}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 30), st.integers(0, 12), st.booleans())
def test_what_was_resolved_resolves_to_itself(
    rule: str, reports: int, attackers: int, attacked: bool
) -> None:
    """As when a run is resumed; or the rule refuses."""
    try:
        found = resolve(rule, reports, attackers, attacked)
    except UserError as error:
        assert str(error).startswith(f"--aggregator {rule}: ")
        assert "\n" not in str(error)
        assert attacked or reports < 3
        return
    assert resolve(rule, reports, attackers, attacked, **found) == found


@pytest.mark.parametrize(
    ("rule", "reports", "attackers", "given", "told"),
    [
        ("krum", 4, 1, {}, "withstanding f = 1 takes 2f + 3 = 5 reports a round, there are 4"),
        ("krum", 2, 0, {}, "takes 2f + 3 = 3 reports a round, there are 2"),
        ("krum", 6, 0, {"assumed_attackers": 2}, "f = 2 takes 2f + 3 = 7"),
        ("multikrum", 5, 1, {"keep": 5}, "keep=5: without the assumed attackers 4"),
        ("multikrum", 5, 0, {"keep": 0}, "from 1 to"),
        ("trimmed", 4, 2, {}, "takes more than 4 reports a round, there are 4"),
        ("trimmed", 4, 0, {"share": 0.5}, "from 0 to 0.499"),
        ("mean", 4, 0, {"share": 0.1}, "share: unknown parameter"),
        ("clip", 4, 0, {"radios": 1}, "did you mean 'radius'?"),
        ("clip", 4, 0, {"radius": "big"}, "give a value of type float"),
        ("geometric", 4, 0, {"iterations": 1.5}, "give a value of type int"),
    ],
)
def test_impossible_parameters_are_refused(
    rule: str, reports: int, attackers: int, given: dict, told: str
) -> None:
    with pytest.raises(UserError) as error:
        resolve(rule, reports, attackers, **given)
    assert told in str(error.value)
    assert str(error.value).startswith("--aggregator")


def test_rules_that_rank_are_known() -> None:
    """Those that a client's weight cannot change."""
    one, *rest = make_reports([3, 4, 5, 6, 7])
    for rule in AGGREGATORS:
        less = combine(rule, [replace(one, samples=0.3, credit=0.1), *rest])
        changed = not torch.equal(less, combine(rule, [one, *rest]))
        if rule in RANKING[:3]:
            assert not changed, rule
        if rule not in RANKING:
            assert changed, rule
