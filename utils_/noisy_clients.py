"""Sites with noisy labels told from clean ones, and how much their models count (FedNoRo)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils_.arrays import Expected
from utils_.mixture import fit_two

NOT_HEARD, CLEAN, NOISY = -1, 0, 1
REPLICATES = 99  # of a site's images, drawn with replacement
NOISY_SPREAD = 0.1  # standard deviation of noisy sites' rates of wrong labels
TOLD = {  # what a site reports, once
    "losses": Expected(
        (2, "classes"), unknown=True, optional=True, meaning="mean loss of each class's labels"
    ),
    "evidence": Expected(
        (2 + REPLICATES, 2, "classes"), optional=True, meaning="how sure these losses are"
    ),
}


def class_losses(probability: np.ndarray, observed: np.ndarray, *, min_cells: int) -> np.ndarray:
    """Mean cross-entropy of each class's given labels, for negatives and positives apart.

    Args:
        probability: (n, C) in [0, 1].
        observed: (n, C) labels, 0 or 1, NaN where not annotated.
        min_cells: with fewer labels of a kind the mean is undefined.

    Returns:
        (2, C) float32, negatives first; NaN where undefined.
    """
    p = probability.clip(1e-7, 1 - 1e-7).astype(np.float64)
    table = np.full((2, observed.shape[1]), np.nan, np.float32)
    for value, loss in enumerate((-np.log1p(-p), -np.log(p))):
        cells = observed == value
        count = cells.sum(axis=0)
        mean = np.where(cells, loss, 0).sum(axis=0) / np.maximum(count, 1)
        table[value] = np.where(count >= min_cells, mean, np.nan)
    return table


def tell(
    probability: np.ndarray, observed: np.ndarray, *, min_cells: int, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """What a site reports for :func:`hear`: its losses, and what tells how sure they are.

    Args:
        probability, observed, min_cells: see :func:`class_losses`.
        draw: of the bootstrap.

    Returns:
        ``losses``, (2, C), and ``evidence``, (2 + REPLICATES, 2, C) float32: the number of labels;
        the mean loss if all annotated cells had the label, wherefore a mean of labels at random
        comes to it; and the deviations of the losses' means when images are drawn anew.
    """
    losses = class_losses(probability, observed, min_cells=min_cells)
    annotated = ~np.isnan(observed)
    alike = [np.where(annotated, value, np.nan) for value in (0, 1)]
    blind = [class_losses(probability, a, min_cells=1)[value] for value, a in enumerate(alike)]
    count = np.stack([(observed == value).sum(axis=0) for value in (0, 1)])
    deviation = _deviations(probability, observed, draw)
    evidence = np.concatenate([[count, np.nan_to_num(np.stack(blind))], deviation])
    return {"losses": losses, "evidence": evidence.astype(np.float32)}


def _deviations(p: np.ndarray, observed: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(REPLICATES, 2, C); 0 where a replicate has no such label. Few labels vary too little."""
    p = p.clip(1e-7, 1 - 1e-7).astype(np.float64)
    cells = np.stack([observed == 0, observed == 1], axis=1)
    loss = np.where(cells, np.stack([-np.log1p(-p), -np.log(p)], axis=1), 0)
    count = cells.sum(axis=0)
    loss -= np.where(cells, loss.sum(axis=0) / np.maximum(count, 1), 0)
    n, classes = p.shape
    both = np.concatenate([loss, cells], axis=1).reshape(n, 4 * classes)
    drawn = (draw.integers(max(n, 1), size=n) for _ in range(REPLICATES))
    sums = np.array([np.bincount(rows, minlength=n) @ both for rows in drawn])
    sums = sums.reshape(REPLICATES, 4, classes)
    scale = np.sqrt(count / np.maximum(count - 1, 1))
    deviation: np.ndarray = scale * sums[:, :2] / np.maximum(sums[:, 2:], 1)
    return deviation


# ---- the verdict


def hear(
    memory: dict[str, np.ndarray],
    reports: Iterable[Any],
    *,
    clients: int,
    seeds: Sequence[int],
    alpha: float,
    fill_minimum: bool = False,
) -> None:
    """Take what sites told and judge anew among all that have been heard.

    Three entries of ``memory`` are kept; where nothing was told, all are left alone:

    - ``losses`` and ``evidence``, (K, ...) float32, of :func:`tell`, NaN where nothing was told;
    - ``noisy``, (K,) int8 of NOT_HEARD, CLEAN and NOISY.

    Args:
        memory: the server's.
        reports: those of a round, each with the number ``client`` of a site and its ``extras``;
            those without what :func:`tell` makes are left out.
        clients: K.
        seeds: see :func:`vote_noisy`.
        alpha: see :func:`told_apart`; from 1 on the vote of mixtures, as released.
        fill_minimum: see :func:`normalised`; for the vote.
    """
    found = memory.get("noisy", np.full(clients, NOT_HEARD, np.int8)).copy()
    told = [report for report in reports if report.extras.keys() >= TOLD.keys()]
    for report in told:
        found[report.client] = CLEAN
        for name in TOLD:
            array = report.extras[name]
            table = np.full((clients, *array.shape), np.nan, np.float32)
            memory.setdefault(name, table)[report.client] = array
    if not told:
        return
    heard = found != NOT_HEARD
    losses = memory["losses"][heard].reshape(heard.sum(), -1)
    if alpha >= 1:
        found[heard] = vote_noisy(normalised(losses, fill_minimum=fill_minimum), seeds=seeds)
    else:
        evidence = memory["evidence"][heard].reshape(heard.sum(), -1, losses.shape[1])
        found[heard] = told_apart(losses, evidence, alpha=alpha)
    memory["noisy"] = found


def told_apart(losses: np.ndarray, evidence: np.ndarray, *, alpha: float) -> np.ndarray:
    """Tell the noisy sites by a test: alike sites are accused with probability ``alpha``.

    The sites' :func:`surplus` is compared with that of replicates in which all are alike. If few
    of these scatter as much, no more than a share of ``alpha``, the sites themselves counted, the
    sites are cut in two, and the upper part is noisy.

    Args:
        losses: (K, F), NaN where untold.
        evidence: (K, 2 + M, F) of :func:`tell`.
        alpha: 0 accuses nobody; below 1 / (M + 1) it does the same.

    Returns:
        (K,) bool.
    """
    rate, information = surplus(losses, evidence)
    known, noisy = information > 0, np.zeros(len(losses), bool)
    if known.sum() < 2:
        return noisy
    squares = scatter(rate[:, known], information[known])
    if (squares >= squares[0]).mean() <= alpha:
        noisy[known] = likeliest_cut(rate[0, known], information[known])
    return noisy


def surplus(losses: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of labels that are as if drawn at random, beyond that of the other sites.

    With m the pooled mean of a column and e what it lacks to labels drawn at random, the losses are
    taken as m + r e with an error whose variance is that of the bootstrap, by number of labels. The
    rates r of the sites are the weighted least squares of that, without a mean.

    Args:
        losses, evidence: see :func:`told_apart`.

    Returns:
        (1 + M, K) rates, the sites' own and those of replicates in which all are alike; (K,)
        information on each.
    """
    count = np.where(np.isnan(losses), 0, evidence[:, 0]).astype(np.float64)
    total = np.maximum(count.sum(axis=0), 1)
    tables = np.concatenate([np.nan_to_num(losses)[None], evidence[:, 2:].swapaxes(0, 1)])
    apart = tables - ((count * tables).sum(axis=1) / total)[:, None]
    own = (count * np.nan_to_num(losses)).sum(axis=0) / total
    lacking = np.maximum((count * evidence[:, 1]).sum(axis=0) / total - own, 0)
    variance = (count**2 * tables[1:].var(axis=0)).sum(axis=0) / total
    used = (variance > 0) & ((count > 0).sum(axis=0) > 1)
    filtered = np.where(used, lacking / np.where(used, variance, 1), 0)
    informed = count * filtered * lacking
    among = np.diag(informed.sum(axis=1)) - (informed / total) @ count.T
    rates = (count * filtered * apart).sum(axis=2) @ np.linalg.pinv(among, hermitian=True)
    return rates, np.diag(among)


def scatter(values: np.ndarray, information: np.ndarray) -> np.ndarray:
    """(R,) squared distances of each row's numbers from their mean, all weighted by (K,)."""
    mean = (values * information).sum(axis=1, keepdims=True) / information.sum()
    squares: np.ndarray = (information * (values - mean) ** 2).sum(axis=1)
    return squares


def likeliest_cut(values: np.ndarray, information: np.ndarray) -> np.ndarray:
    """Cut numbers in two where a common value below and scattered ones above fit them best.

    Clean sites have one rate of wrong labels, none; noisy ones have each its own.

    Args:
        values: (K,), K at least 2, with Gaussian errors.
        information: (K,) above 0, one over the variances of the errors.

    Returns:
        (K,) bool, the upper part.
    """
    order = np.argsort(values, kind="stable")
    ranked, variance = values[order], 1 / information[order]
    fits = [
        _log_likelihood(ranked[:cut], variance[:cut])
        + _log_likelihood(ranked[cut:], variance[cut:] + NOISY_SPREAD**2)
        for cut in range(1, len(values))
    ]
    upper = np.zeros(len(values), bool)
    upper[order[1 + int(np.argmax(fits)) :]] = True
    return upper


def _log_likelihood(values: np.ndarray, variance: np.ndarray) -> float:
    """Of numbers about one mean, the likeliest; but for a constant a number."""
    mean = np.average(values, weights=1 / variance)
    return -0.5 * float(((values - mean) ** 2 / variance + np.log(variance)).sum())


# ---- the published vote


def normalised(losses: np.ndarray, *, fill_minimum: bool) -> np.ndarray:
    """Bring the columns of a table to [0, 1]; those without two different values are left out.

    Args:
        losses: (K, F), NaN where undefined.
        fill_minimum: an undefined entry becomes 0, the best of its column. Otherwise it becomes the
            mean of its row, so that what a site does not annotate speaks neither for nor against
            it.
    """
    known = ~np.isnan(losses)
    least = np.where(known, losses, np.inf).min(axis=0)
    spread = np.where(known, losses, -np.inf).max(axis=0) - least
    used = spread > 0  # not where the column is empty: -inf
    scaled = (losses[:, used] - least[used]) / spread[used]
    known = known[:, used]
    own = np.where(known, scaled, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.where(known, scaled, 0 if fill_minimum else own[:, None])


def vote_noisy(table: np.ndarray, *, seeds: Sequence[int]) -> np.ndarray:
    """Tell the noisy sites by vote: each mixture names the group of larger losses.

    A mixture of two Gaussians is fitted for each seed. The set that most of them name wins, of sets
    named equally often the first. Nobody is noisy where fewer than two rows differ. Alike sites
    are split as well.

    Args:
        table: (K, F) in [0, 1], see :func:`normalised`.
        seeds: of the mixtures.

    Returns:
        (K,) bool.
    """
    nobody = np.zeros(len(table), bool)
    if not table.size or len(np.unique(table, axis=0)) < 2:
        return nobody
    ballots = [_group_of_larger_losses(table, seed) for seed in seeds]
    (winner, _), *_ = Counter(tuple(b.tolist()) for b in ballots).most_common()
    noisy = np.array(winner, bool)
    return nobody if noisy.all() else noisy


def _group_of_larger_losses(table: np.ndarray, seed: int) -> np.ndarray:
    mixture, posterior = fit_two(table, seed=seed)
    named: np.ndarray = posterior.argmax(axis=1) == int(np.argmax(mixture.means_.sum(axis=1)))
    return named


# ---- how much a noisy site counts


def weighed(reports: Iterable[Any], verdict: np.ndarray, *, own: int) -> Iterator[Any]:
    """Yield the reports by client number, those of noisy sites with less weight (FedNoRo's DaAgg).

    Args:
        reports: those of a round, dataclasses with ``client``, ``model``, ``samples``, ``credit``.
        verdict: (K,) of NOT_HEARD, CLEAN and NOISY.
        own: so many numbers at the start of a model are parameters; they make the distance.
    """
    held = sorted(reports, key=lambda report: report.client)
    noisy = verdict[[report.client for report in held]] == NOISY
    factors = closeness([report.model[:own] for report in held], noisy).tolist()
    for report, factor in zip(held, factors, strict=True):
        yield replace(report, samples=report.samples * factor, credit=report.credit * factor)


def closeness(vectors: Sequence[Tensor], noisy: np.ndarray) -> np.ndarray:
    """Factors for models: exp(-d), d the distance from the nearest clean one over its maximum.

    d is 0 for clean models. All factors are 1 where everybody is noisy or nobody is, and where no
    distance differs from 0.

    Args:
        vectors: n tensors (P,).
        noisy: (n,) bool.

    Returns:
        (n,) float64 in [1/e, 1].
    """
    distance = np.zeros(len(vectors))
    clean = np.flatnonzero(~noisy).tolist()
    for k in np.flatnonzero(noisy).tolist() if clean else ():
        distance[k] = min(float(torch.dist(vectors[k], vectors[j])) for j in clean)
    largest = distance.max(initial=0)
    return np.exp(-distance / largest) if largest > 0 else np.ones(len(vectors))
