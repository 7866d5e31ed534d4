"""What the benchmark times in its own process: our rounds, and the loops they are held against.

All of them train the same network on the same random uint8 images in the same batches; the bare
loops draw order and augmentation from the clients' own seeds, so that the work is the same, which
tests/cli/test_benchmark.py checks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.client import Client
from src.config import Config, resolve
from src.methods.base import Method
from src.methods.fednml import FedNML
from src.models import PREDICT_BATCH, FlatAdamW, FlatModel, build_module
from src.outliers import UpdateWatch
from src.plan import Plan
from src.server import Server
from src.simulation import Simulation, build_model, resolve_device
from utils_.augment import AUGMENT, Augmenter, Strength, affine_rows, channel_statistics
from utils_.datasets.base import TEST, TRAIN, ImageDataset
from utils_.labels import LabelState
from utils_.metrics import multilabel_metrics
from utils_.rng import derive, derive_seed
from utils_.scenario import Scenario

POSITIVES = 0.2  # share of positive labels in the random data


@dataclass(frozen=True)
class Work:
    """A federation of random images.

    Attributes:
        clients: number of sites, each with ``images`` images.
        images: training images of one site.
        tested: images of the test set.
        size: edge of the images in pixels.
        epochs, batch: local epochs and images a step.
        classes: C; every site annotates every other class.
        model, device: as on the command line of the main job.
    """

    clients: int = 4
    images: int = 256
    tested: int = 1024
    size: int = 32
    epochs: int = 3
    batch: int = 32
    classes: int = 20
    model: str = "small"
    device: str = "cpu"

    @property
    def trained(self) -> int:
        """Images that pass through training in one round."""
        return self.clients * self.images * self.epochs

    def config(self, method: str, **settings: Any) -> Config:
        """The settings of a run on this work; FedNML refines from the first round on."""
        common = {"noise": 0, "missing": 0, "warmup_rounds": 0, "rounds": 100_000, "workers": "1"}
        own = {"clients": self.clients, "image_size": self.size, "model": self.model}
        own |= {"local_epochs": self.epochs, "batch_size": self.batch, "device": self.device}
        return resolve({"method": method} | common | own | settings)


def random_dataset(work: Work) -> ImageDataset:
    """Uniform random pixels and labels; the training images come first, site after site."""
    trained = work.clients * work.images
    count, draw = trained + work.tested, derive(1, "benchmark", work.size)
    shape = (count, work.size, work.size, 3)
    return ImageDataset(
        name="random",
        images=draw.integers(0, 256, shape, dtype=np.uint8),
        labels=(draw.random((count, work.classes)) < POSITIVES).astype(np.float32),
        classes=tuple(f"class{c}" for c in range(work.classes)),
        files=tuple(f"image{i}" for i in range(count)),
        part=np.repeat(np.array([TRAIN, TEST], np.uint8), (trained, work.tested)),
        groups=None,
        sites=None,
        image_key="random",
    )


def random_scenario(work: Work, dataset: ImageDataset) -> Scenario:
    """Every site holds its own block of images and annotates the even or the odd classes."""
    trained = work.clients * work.images
    client = np.full(len(dataset.labels), -1, np.int32)
    client[:trained] = np.arange(trained) // work.images
    annotated = (np.arange(work.classes) + client[:, None]) % 2 == 0
    annotated[trained:] = True
    return Scenario(dataset.part, client, dataset.labels.copy(), annotated, "random")


class Federation:
    """Our engine on a piece of work: server, clients and runner as in a run of the main job."""

    def __init__(self, method: str, work: Work, **settings: Any) -> None:
        self.work, config = work, work.config(method, **settings)
        dataset = random_dataset(work)
        model = build_model(config, classes=work.classes)
        self.simulation = Simulation(config, dataset, random_scenario(work, dataset), model)
        self.server = self.simulation.server
        self.runner = self.simulation.start_runner()

    def round(self) -> None:
        """Select, broadcast, train, aggregate."""
        message, selected = self.server.broadcast(), self.server.select()
        self.server.finish_round(self.runner.run(message, selected))

    def evaluate(self) -> None:
        """Score the global model on the test set, metrics included."""
        self.simulation.evaluator.score(self.server.model, TEST)

    def close(self) -> None:
        """End the workers, if there are any."""
        self.runner.close()


# ---- bare loops: the same steps with nothing around them


@dataclass(frozen=True)
class Share:
    """One site's data as tensors on the device: (n, H, W, 3) uint8 and two (n, C) float32."""

    images: Tensor
    target: Tensor
    weight: Tensor


class Bench:
    """What a bare loop needs: data of all sites in memory, a fresh model, the plan."""

    def __init__(self, work: Work) -> None:
        dataset, config = random_dataset(work), work.config("fedavg")
        self.plan: Plan = config.plan(work.classes)
        self.model: FlatModel = build_model(config, classes=work.classes)
        self.module: nn.Module = plain_module(work)
        self.augmenter, self.strength = random_augmenter(dataset), AUGMENT[self.plan.augment]
        scenario, device = random_scenario(work, dataset), self.model.device
        self.shares = []
        for index in range(work.clients):
            rows = scenario.rows(index)
            labels = LabelState(scenario.observed[rows])
            arrays = (dataset.images[rows], labels.target, labels.weight)
            self.shares.append(Share(*(torch.from_numpy(a.copy()).to(device) for a in arrays)))


def random_augmenter(dataset: ImageDataset) -> Augmenter:
    """With the statistics of the training images, as in a run."""
    return Augmenter(*channel_statistics(dataset.images, np.flatnonzero(dataset.part == TRAIN)))


def plain_module(work: Work) -> nn.Module:
    """The network as a module of its own, in PyTorch's default memory format."""
    module = build_module(work.model, classes=work.classes, weights="none", seed=1)
    return module.to(resolve_device(work.device))


def cell_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy over the cells of positive weight, straight from PyTorch."""
    total = F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
    return total / weight.sum()


def bare_loop(bench: Bench, *, round: int = 0, scored: bool = False) -> None:
    """The steps of one round on one model; ``scored`` adds FedNML's scoring pass."""
    model, plan = bench.model, bench.plan
    optimizer = torch.optim.AdamW(
        [model.parameters], lr=plan.lr, weight_decay=plan.weight_decay, fused=True
    )
    for index, share in enumerate(bench.shares):
        seed = derive_seed(plan.seed, "client", index, round)
        generator = torch.Generator().manual_seed(seed)
        if scored:
            bare_scores(bench, share.images)
        model.module.train()
        for _ in range(plan.local_epochs):
            order = torch.randperm(len(share.images), generator=generator)
            for rows in order.split(plan.batch_size):
                view = bench.augmenter.view(share.images[rows], generator, strength=bench.strength)
                model.gradient.zero_()
                logits = bare_forward(model, view)
                loss = cell_loss(logits, share.target[rows], share.weight[rows])
                loss.backward()
                optimizer.step()


def bare_forward(model: FlatModel, images: Tensor) -> Tensor:
    """Logits, in the precision of a run."""
    cuda = model.device.type == "cuda"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=cuda):
        return model.module(images).float()


@torch.no_grad()
def bare_scores(bench: Bench, images: Tensor) -> Tensor:
    """Probabilities of plain images, in large batches."""
    bench.model.module.eval()
    parts = images.split(PREDICT_BATCH)
    return torch.cat(
        [bare_forward(bench.model, bench.augmenter.plain(part)).sigmoid() for part in parts]
    )


def plain_loop(bench: Bench) -> None:
    """The same steps as anybody would write them: default memory format, default AdamW."""
    plan = bench.plan
    view = partial(plain_view, bench.augmenter)
    train_plainly(bench.module, bench.shares, view, plan, torch.Generator())


def plain_view(
    augmenter: Augmenter, images: Tensor, generator: torch.Generator, *, strength: Strength
) -> Tensor:
    """The view of ``augmenter`` without colours, in PyTorch's own words."""
    draws = torch.rand(len(images), 12, generator=generator)
    batch = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (t.view(1, 3, 1, 1) for t in (augmenter.mean, augmenter.std))
    rows = affine_rows(draws[:, :8], strength).to(images.device)
    grid = F.affine_grid(rows, list(batch.shape), align_corners=False)
    batch = (batch - mean.to(batch.device)) / std.to(batch.device)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False)


def train_plainly(
    module: nn.Module,
    shares: list[Share],
    view: Callable[..., Tensor],
    plan: Plan,
    generator: torch.Generator,
) -> None:
    """Local epochs over each share in turn with one optimiser."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    module.train()
    for share in shares:
        for _ in range(plan.local_epochs):
            order = torch.randperm(len(share.images), generator=generator)
            for rows in order.split(plan.batch_size):
                images = view(share.images[rows], generator, strength=AUGMENT[plan.augment])
                logits = module(images.contiguous())
                loss = cell_loss(logits, share.target[rows], share.weight[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


@torch.no_grad()
def score_plainly(
    module: nn.Module, images: Tensor, truth: np.ndarray, augmenter: Augmenter
) -> dict[str, float]:
    """The metrics of our evaluation, from a plain module."""
    module.eval()
    parts = [module(augmenter.plain(part).contiguous()) for part in images.split(PREDICT_BATCH)]
    return multilabel_metrics(torch.cat(parts).sigmoid().numpy(), truth).overall


# ---- clocks


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_of(task: Callable[[], Any]) -> float:
    """Wall time of one call; a GPU is waited for."""
    begin = time.perf_counter()
    task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def interleave(
    tasks: dict[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each task, run in turn (A B C A B C ...) so that drift meets all of them."""
    if warm_up:
        for task in tasks.values():
            task()
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            found[name].append(seconds_of(task))
    return found


def spread(values: list[float]) -> float:
    """Distance of the quartiles; 0 of a single value."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def quotient(upper: list[float], lower: list[float]) -> tuple[float, float]:
    """Median and spread of the quotients of neighbouring repetitions."""
    values = [a / b for a, b in zip(upper, lower, strict=True)]
    return statistics.median(values), spread(values)


class StageClock:
    """Time by stage. A stage inside another is taken off the outer one, so the times add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[float] = []  # for each stage that runs, the time of those inside it

    def timed(self, stage: str, function: Callable) -> Callable:
        """``function``, whose own time counts as ``stage``."""

        def call(*arguments: Any, **options: Any) -> Any:
            self._open.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - begin
                own = elapsed - self._open.pop()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + own
                if self._open:
                    self._open[-1] += elapsed

        return call


STAGES: tuple[tuple[str, type, str], ...] = (
    ("augment", Augmenter, "view"),
    ("forward", FlatModel, "forward"),
    ("supervised loss", Method, "supervised"),
    ("backward", torch.Tensor, "backward"),
    ("optimiser step", FlatAdamW, "step"),
    ("optimiser build", FlatModel, "optimizer"),
    ("score own images", Client, "predict"),
    ("judge labels", FedNML, "_judge"),
    ("write labels", FedNML, "_refine"),
    ("load model", FlatModel, "load"),
    ("copy model out", FlatModel, "snapshot"),
    ("outlier scores", UpdateWatch, "add"),
    ("outlier scores", UpdateWatch, "scores"),
    ("client, the rest", Client, "train"),
    ("aggregate", Server, "finish_round"),
)


@contextmanager
def replaced(owner: type, name: str, function: Callable) -> Iterator[None]:
    """Put ``function`` in the place of a method, inherited or not."""
    own = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def stage_times(federation: Federation, rounds: int) -> dict[str, float]:
    """Seconds a round of each stage, longest first; the rounds run in this process."""
    clock = StageClock()
    with ExitStack() as stack:
        for stage, owner, name in STAGES:
            stack.enter_context(replaced(owner, name, clock.timed(stage, getattr(owner, name))))
        whole = clock.timed("engine, the rest", federation.round)
        for _ in range(rounds):
            whole()
    found = sorted(clock.seconds.items(), key=lambda item: -item[1])
    return {stage: seconds / rounds for stage, seconds in found}
