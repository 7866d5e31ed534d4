"""Noisy sites are found, and alike sites are not told apart: FedNoRo, FedELC, FedCorr.

Sites are made here as a trained model would see them: 20 classes of different difficulty, rare to
frequent, half of them annotated at each site; its predictions are calibrated but for what it has
learned of the noise. Their labels pass through the functions that sites and server run.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from src.methods.fedcorr import mean_dimensionality
from utils_.mixture import apart, mean_and_error
from utils_.noisy_clients import NOISY, hear, tell
from utils_.rng import derive

CLASSES, ALPHA = 20, 0.01
COUNTS = (4, 8, 20)


# ---- sites


def make_site(draw: np.random.Generator, prior: np.ndarray, ease: np.ndarray, noise: str) -> tuple:
    """Probabilities and observed labels of 60 to 400 images."""
    images = int(draw.integers(60, 401))
    true = draw.random((images, CLASSES)) < prior
    seen = ease * true + 0.8 * draw.normal(size=true.shape) + 0.6 * draw.normal(size=(images, 1))
    logit = np.log(prior / (1 - prior)) + ease * seen - ease**2 / 2
    probability = 0.8 / (1 + np.exp(-logit)) + 0.2 * prior
    given = true.copy()
    if noise == "redraw":
        wrong = draw.random(images) < 0.4
        given[wrong] = draw.random((int(wrong.sum()), CLASSES)) < prior
    if noise == "flip":
        given ^= draw.random(given.shape) < 0.2
    observed = given.astype(np.float32)
    observed[:, draw.permutation(CLASSES)[::2]] = np.nan
    return probability.astype(np.float32), observed


def make_reports(seed: int, noise: list[str]) -> list[SimpleNamespace]:
    """What the sites tell, one for each kind of noise."""
    draw = derive(seed, "world")
    prior, ease = np.exp(draw.uniform(*np.log([0.01, 0.2]), CLASSES)), draw.uniform(1, 3, CLASSES)
    reports = []
    for k, kind in enumerate(noise):
        site = make_site(derive(seed, "site", k), prior, ease, kind)
        extras = tell(*site, min_cells=5, draw=derive(seed, "bootstrap", k))
        reports.append(SimpleNamespace(client=k, extras=extras))
    return reports


def accused(reports: list[SimpleNamespace], alpha: float = ALPHA) -> list[bool]:
    memory: dict = {}
    hear(memory, reports, clients=len(reports), seeds=range(9), alpha=alpha)
    return (memory["noisy"] == NOISY).tolist()


def half_of(sites: int, kind: str, seed: int) -> list[str]:
    noisy = derive(seed, "who").permutation(sites) < sites // 2
    return [kind if site else "none" for site in noisy]


# ---- FedNoRo and FedELC


@pytest.mark.parametrize("kind", ["redraw", "flip"])
@pytest.mark.parametrize(("sites", "draws"), [(4, 20), (8, 10), (20, 10)])
def test_the_noisy_half_of_the_sites_is_found(sites: int, draws: int, kind: str) -> None:
    """Somebody in at least 9 of 10 draws; exactly the half in as many, or 2 % of sites mistaken.

    Of 20 sites with as few as 60 images one may lie on the wrong side of any cut. These draws are
    fixed: of the first 60, with 4 sites redrawn, 54 found exactly the half.
    """
    right = mistaken = found = 0
    for seed in range(draws):
        noise = half_of(sites, kind, seed)
        verdict = accused(make_reports(seed, noise))
        wrong = sum((n != "none") != v for n, v in zip(noise, verdict, strict=True))
        right, mistaken, found = right + (wrong == 0), mistaken + wrong, found + any(verdict)
    assert found >= 0.9 * draws
    assert right >= 0.9 * draws or mistaken <= 0.02 * draws * sites, (right, mistaken)


@pytest.mark.parametrize("kind", ["none", "redraw", "flip"])
@pytest.mark.parametrize("sites", COUNTS)
def test_alike_sites_are_not_told_apart(sites: int, kind: str) -> None:
    """However noisy they are, as long as they are so equally."""
    blamed = sum(any(accused(make_reports(100 + seed, [kind] * sites))) for seed in range(20))
    assert blamed <= 1


def test_the_verdict_does_not_depend_on_the_order_of_the_sites() -> None:
    noise = half_of(8, "redraw", 0)
    reports, order = make_reports(0, noise), derive(0, "order").permutation(8)
    turned = [SimpleNamespace(client=k, extras=reports[j].extras) for k, j in enumerate(order)]
    verdict = accused(reports)
    assert any(verdict) and accused(turned) == [verdict[j] for j in order]
    assert accused(reports[::-1]) == verdict


def test_a_site_that_tells_nothing_is_not_accused_and_no_alpha_accuses_nobody() -> None:
    reports = make_reports(0, ["none", "none", "redraw", "redraw", "redraw"])
    silent = np.full((50, CLASSES), 0.1, np.float32), np.full((50, CLASSES), np.nan, np.float32)
    reports[4].extras = tell(*silent, min_cells=5, draw=derive(0, "silent"))
    assert accused(reports) == [False, False, True, True, False]
    assert not any(accused(reports, alpha=0))
    assert any(accused(make_reports(100, ["none"] * 4), alpha=1)), "as released"


def test_a_site_without_images_tells_finite_evidence() -> None:
    empty = np.zeros((0, CLASSES), np.float32)
    extras = tell(empty, empty, min_cells=5, draw=derive(0, "empty"))
    assert np.isnan(extras["losses"]).all() and not extras["evidence"].any()


def test_replicates_vary_as_the_means_of_other_images_do() -> None:
    """The standard deviation of a mean, known for a fair draw of cells, is that of replicates."""
    draw = derive(0, "cells")
    probability = draw.uniform(0.05, 0.95, (400, CLASSES)).astype(np.float32)
    observed = (draw.random((400, CLASSES)) < 0.3).astype(np.float32)
    evidence = tell(probability, observed, min_cells=5, draw=draw)["evidence"]
    loss = -np.log(probability)
    spread = [loss[observed[:, c] == 1, c].std(ddof=1) for c in range(CLASSES)]
    expected = spread / np.sqrt(evidence[0, 1])
    ratio = evidence[2:, 1].std(axis=0, ddof=1) / expected
    assert abs(ratio.mean() - 1) < 0.05 and (abs(ratio - 1) < 0.3).all()


# ---- FedCorr


def make_scores(seed: int, shift: np.ndarray, iterations: int = 10) -> np.ndarray:
    """Mean LIDs whose image error is 0.2 and lasts; every training adds another of 0.2."""
    draw = derive(seed, "lid")
    lasting = draw.normal(5 + shift, 0.2)
    drift = draw.normal(0, 1, (iterations, 1))
    lid = lasting + drift + draw.normal(0, 0.2, (iterations, len(shift)))
    return np.stack([lid, np.full_like(lid, 0.2)], axis=-1)


def upper(seed: int, shift: np.ndarray, iterations: int = 10) -> np.ndarray:
    scores = make_scores(seed, shift, iterations)
    return apart(*mean_and_error(scores), seed=seed, alpha=ALPHA)


@pytest.mark.slow
@pytest.mark.parametrize("sites", COUNTS)
def test_sites_of_higher_dimension_are_found(sites: int) -> None:
    right = 0
    for seed in range(10):
        noisy = derive(seed, "who").permutation(sites) < sites // 2
        right += np.array_equal(upper(seed, 2.0 * noisy), noisy)
    assert right >= 9


@pytest.mark.parametrize("sites", COUNTS)
def test_sites_of_alike_dimension_are_not_told_apart(sites: int) -> None:
    assert sum(upper(seed, np.zeros(sites)).any() for seed in range(20)) <= 1


def test_the_errors_of_mean_scores_are_recovered() -> None:
    """Images 0.2, trainings 0.2 over ten iterations."""
    errors = [mean_and_error(make_scores(seed, np.zeros(20)))[1] for seed in range(5)]
    assert np.mean(errors) == pytest.approx(np.hypot(0.2, 0.2 / np.sqrt(10)), rel=0.02)
    scores = make_scores(0, np.zeros(4), iterations=1)
    np.testing.assert_allclose(mean_and_error(scores)[1], 0.2)


def test_the_error_of_a_mean_dimension_covers_other_images() -> None:
    """Alike sites: predictions of other images of one kind; the neighbours overlap."""
    draw = derive(0, "clouds")
    mixing = draw.normal(size=(4, 12))
    clouds = (1 / (1 + np.exp(-draw.normal(size=(200, 4)) @ mixing)) for _ in range(40))
    means, errors = np.transpose([mean_dimensionality(cloud, neighbours=20) for cloud in clouds])
    assert 0.5 < means.std(ddof=1) / errors.mean() < 1.5
