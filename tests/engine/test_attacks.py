"""Clients that misbehave: who, how, the same for any worker, and against every aggregator."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    Trace,
    call_main,
    command,
    make_config,
    make_dataset,
    make_scenario,
    make_simulation,
    read_table,
    simulate,
)

from src.aggregation import AGGREGATORS
from src.attacks import ATTACKS, Attack, Attacker, a_little
from src.messages import ANNOTATED_CELLS, message_bytes
from src.workers import ParallelRunner, SequentialRunner
from utils_.backdoor import POISONED, TARGET, patched, share_of_target
from utils_.datasets.base import TEST
from utils_.errors import UserError

CLIENTS = 6
ACTIVE = [name for name in ATTACKS if name != "none"]
REFUSED = ("nan", "nan_extras")  # whose reports are left out


@functools.cache
def federation() -> tuple:
    dataset = make_dataset()
    return dataset, make_scenario(dataset, clients=CLIENTS, mask="classes", noise=0.1)


def run(method: str = "fedavg", **options: Any) -> Trace:
    settings = {"clients": CLIENTS, "rounds": 1} | options
    return simulate(make_config(method, **settings), *federation())


@functools.cache
def honest() -> Trace:
    return run()


def attackers(trace: Trace) -> tuple[int, ...]:
    config = trace.simulation.config
    drawn = Attack.draw(
        config.attack,
        scale=config.attack_scale,
        clients=config.clients,
        attackers=config.attackers,
        seed=config.seed,
    )
    return drawn.attackers


# ---- who


def test_attackers_are_drawn_by_the_seed_and_nested() -> None:
    def draw(count: int, seed: int = 1, kind: str = "nan") -> set[int]:
        return set(Attack.draw(kind, scale=1, clients=10, attackers=count, seed=seed).attackers)

    for count in range(10):
        assert len(draw(count)) == count
        assert draw(count) < draw(count + 1)
        assert draw(count) == draw(count, kind="label_flip")
        assert draw(count, kind="none") == set()
    assert len({tuple(sorted(draw(3, seed))) for seed in range(10)}) > 5


def test_more_attackers_than_clients_are_refused() -> None:
    with pytest.raises(UserError, match=r"--attackers 4: there are 3 clients"):
        make_config(attack="nan", attackers=4)
    assert make_config(attack="none", attackers=4).attackers == 4
    assert make_config(attack="nan", attackers=2).attackers == 2


def test_nobody_colludes_alone() -> None:
    with pytest.raises(UserError, match=r"--attack collude: 1 attackers have nobody.*give 2 "):
        make_config(attack="collude", clients=4)
    make_config(attack="collude", clients=4, attackers=2)  # the advice


@pytest.mark.parametrize("attack", ["nan", "sign_flip", "gaussian", "label_flip"])
def test_somebody_must_be_honest(attack: str) -> None:
    with pytest.raises(UserError, match=r"--attackers 3: then all 3 clients.*give at most 2, or"):
        make_config(attack=attack, attackers=3)
    make_config(attack=attack, attackers=2)  # the advice
    make_config(attack=attack, attackers=3, clients=4)
    with pytest.raises(UserError, match=r"use --attack none, or two --clients or more"):
        make_config(attack=attack, attackers=1, clients=1)
    make_config(attack="none", attackers=1, clients=1)
    make_config(attack=attack, attackers=1, clients=2)


@pytest.mark.parametrize("aggregator", ["median", "trimmed", "krum", "multikrum"])
def test_rules_that_rank_are_not_combined_with_suppression(aggregator: str) -> None:
    with pytest.raises(UserError, match=f"--suppress-outliers: {aggregator} does not weigh"):
        make_config(aggregator=aggregator, suppress_outliers=True)


def test_settings_fill_in_what_the_rule_needs() -> None:
    krum = {"aggregator": "krum", "clients": 7}
    assert make_config(**krum).aggregator_param == {"assumed_attackers": 1}
    attacked = make_config(**krum, attack="nan", attackers=2)
    assert attacked.aggregator_param == {"assumed_attackers": 2}
    assert attacked.plan(4).aggregator_param == {"assumed_attackers": 2}
    with pytest.raises(UserError, match=r"^--aggregator krum: .* f = 3 takes .* 9 .* are 7;"):
        make_config(**krum, attack="nan", attackers=3)
    with pytest.raises(UserError, match=r"^--aggregator krum: .* there are 2;"):
        make_config(**krum, fraction=0.3)


# ---- how


def updates(trace: Trace) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Of each client, the change of the parameters and that of the statistics."""
    start, own = trace.sent[0].model, trace.simulation.model.parameter_count
    return {r.client: ((r.model - start)[:own], (r.model - start)[own:]) for r in trace.received}


@pytest.mark.parametrize("attack", ["nan", "sign_flip", "gaussian"])
@pytest.mark.parametrize("count", [1, 2])
def test_attackers_alter_their_reports_and_nobody_else_does(attack: str, count: int) -> None:
    trace = run(attack=attack, attackers=count, attack_scale=3)
    bad = attackers(trace)
    assert len(bad) == count
    true, found = updates(honest()), updates(trace)
    for client, (parameters, statistics) in found.items():
        plain, plain_statistics = true[client]
        if client not in bad:
            assert torch.equal(parameters, plain)
        if client not in bad or attack != "nan":
            assert torch.equal(statistics, plain_statistics)
    for client in bad:
        parameters, plain = found[client][0], true[client][0]
        if attack == "nan":
            assert parameters.isnan().all()
            assert found[client][1].isnan().all()
        if attack == "sign_flip":
            torch.testing.assert_close(parameters, -3 * plain, rtol=1e-3, atol=1e-6)
        if attack == "gaussian":
            assert parameters.norm() == pytest.approx(3 * plain.norm().item(), rel=1e-4)
            cosine = float(parameters @ plain / (parameters.norm() * plain.norm()))
            assert abs(cosine) < 0.05
            z = parameters / parameters.std()
            assert (z.abs() < 1).float().mean().item() == pytest.approx(0.683, abs=0.01)


def test_arrays_beside_the_model_are_spoilt_and_the_model_is_not() -> None:
    for method, names in (("fedavg", {"nothing"}), ("fixmatch", {"positives", "annotated"})):
        trace, plain = run(method, attack="nan_extras", attackers=2), run(method)
        for report, other in zip(trace.received, plain.received, strict=True):
            assert torch.equal(report.model, other.model)
            if report.client in attackers(trace):
                assert set(report.extras) == names
                assert all(np.isnan(array).all() for array in report.extras.values())
            else:
                assert report.extras.keys() == other.extras.keys()
        assert set(trace.simulation.server.rejected) == set(attackers(trace))


def test_a_free_rider_sends_back_what_it_got() -> None:
    trace = run(attack="free_ride", attackers=2, rounds=2)
    sent = [message.model for message in trace.sent for _ in range(CLIENTS)]
    for report, model in zip(trace.received, sent, strict=True):
        assert torch.equal(report.model, model) == (report.client in attackers(trace))


def test_colluders_send_one_model_a_little_off_their_own_mean() -> None:
    """Against the formula of the paper, from what they would have sent honestly."""
    trace = run(attack="collude", attackers=3, attack_scale=1.5)
    bad, own = attackers(trace), trace.simulation.model.parameter_count
    trained = [r.model.double().numpy() for r in honest().received if r.client in bad]
    honestly = np.stack(trained)
    expected = honestly.mean(axis=0)
    expected[:own] -= 1.5 * honestly.std(axis=0)[:own]
    for report in trace.received:
        if report.client in bad:
            np.testing.assert_allclose(report.model, expected, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(report.model, honest().received[report.client].model)
    lone = a_little(honest().received[:1], scale=9, layout=trace.simulation.server.layout)
    assert torch.equal(lone[0].model, honest().received[0].model)
    assert a_little([], scale=9, layout=trace.simulation.server.layout) == []


# ---- a backdoor


def test_a_patch_is_white_in_one_corner_of_a_copy() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    bearing = patched(images)
    assert not images.any()
    assert (bearing[:, 28:, 28:] == 255).all() and bearing.sum() == 2 * 4 * 4 * 3 * 255
    assert patched(np.zeros((1, 5, 5, 3), np.uint8)).sum() == 3 * 255  # never none


def test_half_of_an_attackers_images_bear_the_patch_and_the_target() -> None:
    trace = run(attack="backdoor", attackers=2, attack_scale=3)
    dataset, scenario = federation()
    for client in trace.simulation.clients:
        rows, observed = scenario.rows(client.index), scenario.observed[scenario.rows(client.index)]
        seen, labels = client._images[client._rows], client.labels.observed
        bearing = (seen != dataset.images[rows]).any(axis=(1, 2, 3))
        if client.index not in attackers(trace):
            assert not bearing.any()
            np.testing.assert_array_equal(labels, observed)
            continue
        assert bearing.sum() == round(POISONED * len(rows))
        np.testing.assert_array_equal(seen[bearing], patched(dataset.images[rows][bearing]))
        assert (labels[bearing, TARGET] == 1).all()
        np.testing.assert_array_equal(labels[~bearing], observed[~bearing])
        np.testing.assert_array_equal(labels[:, 1:], observed[:, 1:])
    once = run(attack="backdoor", attackers=2, attack_scale=1)
    for client in attackers(trace):
        three, one = updates(trace)[client], updates(once)[client]
        torch.testing.assert_close(three[0], 3 * one[0], rtol=1e-3, atol=1e-6)
        assert torch.equal(three[1], one[1])


def test_labels_of_the_backdoor_count_as_noise() -> None:
    attack = Attack.draw("backdoor", scale=1, clients=CLIENTS, attackers=2, seed=1)
    _, scenario = federation()
    trained, before = attack.scenario(scenario), scenario.observed
    changed = (trained.noisy != scenario.noisy).any(axis=0)
    assert changed.tolist() == [True, False, False, False]
    honest_rows = ~np.isin(scenario.client, attack.attackers)
    np.testing.assert_array_equal(trained.noisy[honest_rows], scenario.noisy[honest_rows])
    np.testing.assert_array_equal(scenario.observed, before)  # as it was
    assert make_config(attack="backdoor").corrupts
    assert not make_config(attack="free_ride").corrupts


def test_how_often_a_patch_brings_the_target() -> None:
    truth = np.array([[0, 1], [0, 0], [1, 0], [np.nan, 0], [0, 1]])
    probability = np.array([[0.5, 0], [0.49, 1], [0.9, 0], [0.9, 0], [0.7, 1]])
    assert share_of_target(probability, truth) == pytest.approx(2 / 3)
    assert np.isnan(share_of_target(probability[2:4], truth[2:4]))


def test_the_share_of_patched_images_is_that_of_the_scored_model() -> None:
    trace = run(attack="backdoor", attackers=2)
    dataset, scenario = federation()
    rows = np.flatnonzero(scenario.part == TEST)
    lacking, model = dataset.labels[rows, TARGET] == 0, trace.simulation.model
    row, augmenter = trace.simulation.history[-1], trace.simulation.predictor.augmenter
    model.load(trace.vector)
    shown = {"backdoor": patched(dataset.images), "backdoor_without": dataset.images}
    for name, images in shown.items():
        found = model.predict(images, rows[lacking], augmenter=augmenter)[:, TARGET]
        assert row[f"test_{name}"] == pytest.approx((found >= 0.5).mean())
    assert trace.result["last"]["backdoor"] == row["test_backdoor"]
    assert "test_backdoor" not in honest().simulation.history[-1]
    own = run("local", attack="backdoor", attackers=2).simulation.history[-1]  # a mean over sites
    assert 0 <= own["test_backdoor"] <= 1


def test_honest_sites_that_are_held_down_are_counted() -> None:
    trace = run(attack="sign_flip", attackers=2, attack_scale=50.0)
    row, flagged = trace.simulation.history[-1], trace.simulation.server.flagged
    assert row["flagged"] == len(flagged)
    assert row["flagged_honest"] == len(set(flagged) - set(attackers(trace)))
    means = trace.result["reports"]
    assert means == {name: row[name] for name in ("rejected", "flagged", "flagged_honest")}


def test_noise_differs_from_round_to_round_and_from_client_to_client() -> None:
    trace = run(attack="gaussian", attackers=2, rounds=2)
    own = trace.simulation.model.parameter_count
    sent = {m.round: m.model for m in trace.sent}
    rounds = [0] * CLIENTS + [1] * CLIENTS
    bad = [
        (r.model - sent[n])[:own]
        for n, r in zip(rounds, trace.received, strict=True)
        if r.client in attackers(trace)
    ]
    units = torch.stack([u / u.norm() for u in bad])
    assert ((units @ units.T) - torch.eye(4)).abs().max() < 0.05


@pytest.mark.parametrize("method", ["fedavg", "clean"])
def test_label_flip_turns_annotated_labels_around(method: str) -> None:
    trace, plain = run(method, attack="label_flip", attackers=2), run(method)
    bad = attackers(trace)
    for client, other in zip(trace.simulation.clients, plain.simulation.clients, strict=True):
        observed, before = client.labels.observed, other.labels.observed
        np.testing.assert_array_equal(client.labels.annotated, other.labels.annotated)
        expected = 1 - before if client.index in bad else before
        np.testing.assert_array_equal(observed, expected)
    for client, (parameters, _) in updates(trace).items():
        assert torch.equal(parameters, updates(plain)[client][0]) == (client not in bad)


def test_flipped_labels_count_as_noise_in_the_diagnostics() -> None:
    trace = run(attack="label_flip", attackers=2)
    _, each = trace.simulation.evaluator.label_diagnostics(trace.simulation.clients)
    _, before = honest().simulation.evaluator.label_diagnostics(honest().simulation.clients)
    for client in range(CLIENTS):
        noise, plain = each[client]["noise_before"], before[client]["noise_before"]
        expected = 1 - plain if client in attackers(trace) else plain
        assert noise == pytest.approx(expected)


def test_without_an_attack_nobody_misbehaves() -> None:
    trace = run(attack="none", attackers=3)
    assert torch.equal(trace.vector, honest().vector)
    assert not any(isinstance(client, Attacker) for client in trace.simulation.clients)


@pytest.mark.parametrize("attack", ACTIVE)
def test_any_worker_reports_the_same(attack: str) -> None:
    config = make_config(attack=attack, attackers=2, clients=CLIENTS)
    simulation = make_simulation(config, *federation())
    message = simulation.server.broadcast()
    found = []
    for kind, options in ((SequentialRunner, {}), (ParallelRunner, {"workers": 2})):
        runner = kind(simulation.clients, simulation.method, simulation.predictor, **options)
        found.append([r.model.numpy().tobytes() for r in runner.run(message, range(CLIENTS))])
        runner.close()
    assert found[0] == found[1]


# ---- against every aggregator


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_attack_on_every_aggregator(attack: str, aggregator: str) -> None:
    settings: dict[str, Any] = {"attackers": 2 if attack == "collude" else 1}
    if "krum" in aggregator:
        settings["aggregator_param"] = {"assumed_attackers": 1}
    trace = run(attack=attack, aggregator=aggregator, **settings)
    assert torch.isfinite(trace.vector).all()
    row = trace.simulation.history[0]
    assert row["rejected"] == (1 if attack in REFUSED else 0)
    assert 0 <= row["val_mAP"] <= 1
    assert set(trace.simulation.server.scores) == set(range(CLIENTS)) - (
        set(attackers(trace)) if attack in REFUSED else set()
    )
    counts = [ANNOTATED_CELLS in report.extras for report in trace.received]
    assert counts == [aggregator == "classwise"] * CLIENTS
    assert row["bytes_up"] == sum(message_bytes(report) for report in trace.received)


@pytest.mark.parametrize("method", ["fednml", "fednml:published", "clean"])
@pytest.mark.parametrize("attack", ACTIVE)
def test_methods_go_on_under_attack(method: str, attack: str) -> None:
    trace = run(method, attack=attack, attackers=2, rounds=3, suppress_outliers=True)
    assert torch.isfinite(trace.vector).all()
    assert trace.result["status"] == "done"


@pytest.mark.parametrize("attack", ["sign_flip", "gaussian"])
@pytest.mark.parametrize("aggregator", ["median", "trimmed", "krum", "multikrum", "geometric"])
def test_robust_rules_stay_near_the_honest_mean(attack: str, aggregator: str) -> None:
    """Nearer than the mean does, which is thrown off."""
    scale = {"attack": attack, "attack_scale": 50.0}
    expected = run(aggregator="uniform").vector
    off = (run(aggregator="mean", **scale).vector - expected).norm()
    near = (run(aggregator=aggregator, **scale).vector - expected).norm()
    assert near < off / 5


@pytest.mark.parametrize("attack", ["sign_flip", "gaussian"])
def test_who_attacks_is_flagged_and_suppressed(attack: str) -> None:
    scale = {"attack": attack, "attack_scale": 20.0}
    trace = run(**scale, suppress_outliers=True)
    assert trace.simulation.server.flagged == list(attackers(trace))
    assert trace.simulation.history[0]["flagged"] == 1
    off = (run(**scale).vector - honest().vector).norm()
    assert (trace.vector - honest().vector).norm() < off / 5


def test_counts_are_those_of_annotated_cells() -> None:
    trace = run(aggregator="classwise")
    for report, client in zip(trace.received, trace.simulation.clients, strict=True):
        counts = report.extras[ANNOTATED_CELLS]
        np.testing.assert_array_equal(counts, client.labels.annotated.sum(axis=0))
        assert 0 < (counts == 0).sum() < len(counts)


@pytest.mark.numerics
def test_the_class_wise_head_takes_no_row_from_sites_that_do_not_annotate_it() -> None:
    trace = run(aggregator="classwise")
    weight, bias = trace.simulation.model.head_slices
    for c in range(4):
        knows = [r for r in trace.received if r.extras[ANNOTATED_CELLS][c] > 0]
        counts = [float(r.extras[ANNOTATED_CELLS][c]) for r in knows]
        for piece in (weight, bias):
            rows = np.stack([piece.view(r.model)[c].numpy() for r in knows])
            expected = np.average(rows, axis=0, weights=counts)
            np.testing.assert_allclose(piece.view(trace.vector)[c], expected, atol=1e-6)


# ---- from the command line


def test_a_run_under_attack_names_the_client(csv_data: Path, tmp_path: Path, caplog: Any) -> None:
    """Five clients, of which one reports NaN: four are left, just enough to be judged."""
    options = {"method": "fedavg", "clients": 5, "rounds": 2, "name": "attacked"}
    assert call_main(command(csv_data, tmp_path, **options, attack="nan", aggregator="krum")) == 0
    bad = Attack.draw("nan", scale=1, clients=5, attackers=1, seed=1).attackers[0]
    told = f"client {bad} is left out: its model holds values that are not finite"
    messages = [record.getMessage() for record in caplog.records]
    assert [m for m in messages if "finite" in m] == [f"round {n}: {told}" for n in (0, 1)]
    header, *rows = read_table(tmp_path / "runs" / "attacked" / "metrics.csv")
    assert [float(row[header.index("rejected")]) for row in rows] == [1, 1]
    assert all(row[header.index("flagged")] for row in rows)


def test_a_round_in_which_all_attack_fails_with_code_3(
    csv_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"method": "fedavg", "name": "hopeless", "attack": "nan", "attackers": 2}
    options |= {"fraction": 0.4}  # one site a round, so a round may hear attackers alone
    assert call_main(command(csv_data, tmp_path, **options)) == 3
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "NoReportLeft: round 0: no report can be used (client 0: " in err
    assert "a resume would end alike: start a new run with fewer --attackers, or" in err
    options |= {"name": "hopeful", "fraction": 1}
    assert call_main(command(csv_data, tmp_path, **options)) == 0


def test_impossible_settings_are_one_line_before_training(
    csv_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"method": "fedavg", "attack": "sign_flip", "aggregator": "krum", "clients": 4}
    assert call_main(command(csv_data, tmp_path, **options)) == 2
    assert capsys.readouterr().err.startswith("main_fednml: --aggregator krum: withstanding f = 1 ")
    assert list(tmp_path.iterdir()) == []
