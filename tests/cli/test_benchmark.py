"""The benchmark: equal work on both sides, honest statistics, a file that says what was found."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import forked
import pytest
import torch

from scripts import benchmark
from scripts.bench import children, parts
from scripts.bench.work import (
    Bench,
    Federation,
    StageClock,
    Work,
    bare_loop,
    interleave,
    plain_loop,
    quotient,
    spread,
    stage_times,
    threads,
)

ONE = Work(clients=1, images=20, tested=8, size=16, epochs=2, batch=8, classes=4)
TWO = replace(ONE, clients=2)
TINY = parts.Scale(
    work=TWO,
    default=TWO,
    many=replace(ONE, clients=10, images=2, batch=2, epochs=1),
    repeats=1,
    restarts=1,
    sizes=(16,),
    counts=(4, 10),
    files=40,
    file_size=16,
    peer_rounds=1,
)
PROMISED = {
    *("fedavg_over_bare", "fednml_over_bare", "fedavg_default_over_plain"),
    *("fedavg_over_best_peer", "clients_1000_over_4", "memory_1000_minus_4_mb"),
    *("start_seconds", "cache_over_pil"),
}


# ---- the same work on both sides


def test_bare_loop_takes_the_steps_of_a_round() -> None:
    """Two loops over the same kernels: to the bit on every processor tried, but none promises it.

    A step of AdamW is up to lr long, however small the gradient that rounding decides.
    """
    federation, bench = Federation("fedavg", ONE), Bench(ONE)
    assert torch.equal(bench.model.vector, federation.server.model)
    for round in range(2):
        before = federation.server.model.clone()
        federation.round()
        bare_loop(bench, round=round)
        apart = (bench.model.vector - federation.server.model).norm()
        assert apart <= 1e-2 * (federation.server.model - before).norm()


def forward_passes(task, monkeypatch) -> list[tuple[int, bool]]:
    """Images of each pass through the network, and whether gradients were recorded."""
    seen = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        seen.append((len(inputs[0]), torch.is_grad_enabled()))

    kind = type(Bench(ONE).module)
    call = kind.__call__
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", lambda m, *x: (note(m, x), call(m, *x))[1])
        task()
    return seen


@pytest.mark.parametrize(("method", "scored"), [("fedavg", False), ("fednml", True)])
def test_bare_loops_make_the_passes_of_the_method(method, scored, monkeypatch) -> None:
    """The scoring pass and the steps of every client, in the same batches."""
    federation = Federation(method, TWO, param=parts.EVERY_ROUND if scored else {})
    bench = Bench(TWO)
    ours = forward_passes(federation.round, monkeypatch)
    bare = forward_passes(lambda: bare_loop(bench, scored=scored), monkeypatch)
    assert ours == bare
    assert sum(images for images, training in ours if training) == TWO.trained
    assert sum(images for images, training in ours if not training) == 40 * scored


def test_plain_loop_makes_the_same_passes_in_another_memory_format(monkeypatch) -> None:
    bench = Bench(TWO)
    plain = forward_passes(lambda: plain_loop(bench), monkeypatch)
    assert plain == forward_passes(lambda: bare_loop(bench), monkeypatch)
    kernel = bench.module.blocks[0].conv2.weight
    assert kernel.is_contiguous()
    assert not bench.model.module.blocks[0].conv2.weight.is_contiguous()


def test_sites_hold_what_was_asked_for() -> None:
    federation = Federation("fedavg", TWO)
    for client, share in zip(federation.simulation.clients, Bench(TWO).shares, strict=True):
        assert len(client) == len(share.images) == 20
        assert (share.weight.numpy() == client.labels.weight).all()
        assert (share.target.numpy() == client.labels.target).all()
        assert 0 < share.weight.mean() < 1


# ---- clocks


def test_tasks_take_turns_after_a_warm_up() -> None:
    order = []
    found = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "ab" + "ababab"
    assert [len(seconds) for seconds in found.values()] == [3, 3]


def test_quotients_pair_neighbours_and_spread_is_that_of_quartiles() -> None:
    assert quotient([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == (3.0, 1.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2
    assert spread([7.0]) == 0


def test_time_of_an_inner_stage_is_taken_off_the_outer_one() -> None:
    clock = StageClock()
    inner = clock.timed("inner", lambda: time.sleep(0.02))

    def outer() -> None:
        inner()
        inner()
        time.sleep(0.01)

    begin = time.perf_counter()
    clock.timed("outer", outer)()
    elapsed = time.perf_counter() - begin
    assert clock.seconds["inner"] >= 0.04
    assert clock.seconds["outer"] >= 0.01
    assert sum(clock.seconds.values()) <= elapsed
    assert clock.seconds["outer"] <= elapsed - clock.seconds["inner"]


def test_stages_are_all_seen_and_leave_nothing_behind() -> None:
    before = torch.Tensor.backward, torch.optim.AdamW.__dict__.get("step")
    federation = Federation("fednml", TWO, param=parts.EVERY_ROUND)
    federation.round()
    found = stage_times(federation, 1)
    wanted = {"augment", "forward", "backward", "optimiser step", "judge labels", "aggregate"}
    assert wanted | {"score own images", "supervised loss", "copy model out"} <= found.keys()
    assert all(seconds > 0 for seconds in found.values())
    assert before == (torch.Tensor.backward, torch.optim.AdamW.__dict__.get("step"))


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# ---- processes of their own


def test_many_clients_in_a_process_of_its_own() -> None:
    work = {"clients": 3, "images": 2, "tested": 2, "size": 16, "epochs": 1, "batch": 2}
    found = children.call("many_clients", work=work)
    assert found["seconds"] > 0
    assert 50 < found["peak_mb"] < 4000


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(children.ChildFailed, match=r"many_clients: .*unexpected keyword"):
        children.call("many_clients", work={"sites": 3})


def test_files_are_a_dataset_that_both_sides_decode(tmp_path: Path) -> None:
    folder = children.write_jpegs(tmp_path / "data", 10)
    children.build_cache(folder, tmp_path / "cache", size=16)
    children.decode_plainly(folder, size=16)
    assert len(list((folder / "images").iterdir())) == 10
    assert list((tmp_path / "cache").glob("*.npy"))


@pytest.mark.parametrize("peer", sorted(children.PEERS))
def test_peer_runs_where_it_is_installed(peer: str) -> None:
    if not children.installed(peer):
        pytest.skip(f"{peer} is not installed")
    work = {"clients": 2, "images": 16, "tested": 8, "size": 16, "epochs": 1, "batch": 8}
    found = children.call(peer, work=work, rounds=2)
    assert len(found["seconds"]) == 2
    assert min(found["seconds"]) > 0


# ---- the command


@pytest.fixture
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "SMALL", TINY)


def saved(folder: Path) -> dict:
    (path,) = (folder / "benchmarks").iterdir()
    assert path.name == f"{platform.node()}-{datetime.now():%Y-%m-%d}.json"
    return json.loads(path.read_text())


def test_all_parts_but_the_peers(tiny, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "executable", forked.python())  # its numbers are read by nobody here
    assert benchmark.main(["--small", "--save-dir", str(tmp_path)]) == 0
    found = saved(tmp_path)
    ratios = found["ratios"]
    assert PROMISED | {f"{name}_spread" for name in PROMISED} <= ratios.keys()
    assert ratios.pop("fedavg_over_best_peer") is None
    assert ratios.pop("fedavg_over_best_peer_spread") is None
    assert all(math.isfinite(value) for value in ratios.values())
    assert found["failures"] == [] and found["small"]
    assert [row["clients"] for row in found["clients"]] == [4, 10]
    assert found["stages"]["fednml"]["judge labels"] > 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROMISED)
    assert "stage of fedavg" in shown and str(tmp_path) in shown


def test_one_part_leaves_the_other_ratios_null(tiny, tmp_path) -> None:
    arguments = ["--small", "--parts", "loops", "--repeats", "2", "--save-dir", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    found = saved(tmp_path)
    known = {name for name, value in found["ratios"].items() if value is not None}
    assert {"fedavg_over_bare", "fednml_over_bare"} <= known
    assert not known & {"start_seconds", "cache_over_pil", "fedavg_default_over_plain"}
    assert len(found["seconds"]["fedavg"]["seconds"]) == 2


def test_a_peer_that_fails_is_reported_and_the_rest_counts(tiny, tmp_path, monkeypatch, capsys):
    def call(name: str, **options) -> dict:
        if name == "flower":
            raise children.ChildFailed("flower: no room")
        return {"seconds": [3.0 if name == "ours" else 6.0]}

    monkeypatch.setattr(children, "call", call)
    monkeypatch.setattr(children, "installed", lambda peer: True)
    arguments = ["--small", "--peers", "--parts", "evaluation", "--save-dir", str(tmp_path)]
    assert benchmark.main(arguments) == 1
    found = saved(tmp_path)
    assert found["failures"] == ["flower: no room"]
    assert found["ratios"]["fedavg_over_best_peer"] == 0.5
    assert "flower: no room" in capsys.readouterr().err


def test_a_second_run_of_a_day_overwrites_nothing(tmp_path) -> None:
    moment = datetime(2030, 1, 31)
    first = benchmark.result_path(tmp_path, moment)
    first.write_text("{}")
    second = benchmark.result_path(tmp_path, moment)
    assert first.name.endswith("-2030-01-31.json")
    assert second.name.endswith("-2030-01-31-2.json")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--parts", "loop"], "loop"),
        (["--repeats", "0"], "--repeats 0: give a number from 1"),
        (["--image-size", "8"], "--image-size"),
        (["--fast"], "--fast"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments, complaint, tmp_path, capsys) -> None:
    assert benchmark.main(["--small", *arguments, "--save-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
