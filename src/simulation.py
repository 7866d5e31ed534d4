"""The in-process engine: rounds, evaluation, checkpoints, and the result at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from src.aggregation import Layout
from src.attacks import Attack
from src.checkpoint import load_checkpoint, save_checkpoint
from src.client import Client
from src.config import Config, worker_count
from src.display import show_classes, show_doubt, show_labels
from src.evaluator import Evaluator
from src.interruption import Interrupted
from src.messages import Report, message_bytes
from src.methods import method_class
from src.methods.base import Method, parse_params
from src.model_facts import trained_classes
from src.models import FlatModel, Predictor, build_module
from src.results import LAST, summarise
from src.server import Server
from src.workers import ParallelRunner, Runner, SequentialRunner
from utils_.augment import Augmenter, channel_statistics
from utils_.backdoor import patched, share_of_target
from utils_.datasets.base import PART_NAMES, TEST, TRAIN, VAL, ImageDataset
from utils_.environment import peak_rss_mb, processor_count
from utils_.errors import Diverged, UserError
from utils_.history import History
from utils_.labels import LabelState, wrong_cells
from utils_.metrics import Metrics
from utils_.scenario import Scenario, client_names
from utils_.site_names import SiteNames
from utils_.truth import reference

if TYPE_CHECKING:
    from utils_.predictions import Predictions
    from utils_.runlog import RunLog


PICTURES = 4  # of labels in TensorBoard, at most, spread over the run
NO_ATTACK = Attack()


class Simulation:
    """A federation in one process tree.

    Attributes:
        names: what the clients are called.
        history: a row of scalars for each finished round.
        trained: (C,) bool, the classes that a site annotates.
        best: what was scored in the best validation round so far, by mAP; see ``scored``.
        predictions: of the last and the best model; None before the run is over.
        thresholds: {"last": (C,), "best": (C,)} of these; empty before the run is over.
    """

    def __init__(
        self, config: Config, dataset: ImageDataset, scenario: Scenario, model: FlatModel
    ) -> None:
        torch.set_num_threads(1)  # results must not depend on the machine's number of cores
        self.config, self.dataset, self.model = config, dataset, model
        kind = method_class(config.method)
        plan = config.plan(len(dataset.classes))
        self.method: Method = kind(plan, parse_params(kind, config.param))
        train_rows = np.flatnonzero(scenario.part == TRAIN)
        augmenter = self.augmenter(train_rows)
        self.attack = attack = draw_attack(config)
        self.predictor = Predictor(model, dataset.images, augmenter)
        self.trained = trained_classes(dataset, scenario, true_labels=self.method.true_labels)
        truth = reference(dataset, scenario, noise=config.corrupts)
        attacked = attack.scenario(scenario)
        self.evaluator = Evaluator(dataset, attacked, self.predictor, truth=truth)
        self.clients = self.enrol(scenario, augmenter, attack)
        self.names = self.name_sites(scenario)
        for client in self.clients:
            client.called = self.names.called(client.index)
        self.server = Server(model.snapshot(), self.method, Layout.of(model), names=self.names)
        self.best = self.server.model
        self.history = History()
        self.predictions: Predictions | None = None
        self.thresholds: dict[str, np.ndarray] = {}

    # ---- what src/flower does otherwise, where the sites are elsewhere

    def augmenter(self, rows: np.ndarray) -> Augmenter:
        """What makes views of images; its statistics are those of all training images."""
        return Augmenter(*channel_statistics(self.dataset.images, rows))

    def enrol(self, scenario: Scenario, augmenter: Augmenter, attack: Attack) -> list[Client]:
        """The sites that train in this process tree."""
        return build_clients(self.dataset, scenario, self.method, augmenter, attack=attack)

    def name_sites(self, scenario: Scenario) -> SiteNames:
        """What the clients are called."""
        return client_names(scenario, self.dataset, split=self.config.split)

    def introductions(self) -> Iterable[Report]:
        """What the sites tell once, before the first round."""
        return (client.introduce() for client in self.clients)

    def look_at_labels(
        self, log: RunLog, reports: Sequence[Report], selected: Sequence[int], *, round: int
    ) -> dict[str, float]:
        """Log how right the labels of the sites are now, and what they report; a row's part."""
        pooled, each = self.evaluator.label_diagnostics(self.clients)
        for report in reports:
            values = report.logs | each[report.client]
            log.scalars(f"sites/{self.names.tag(report.client)}", values, step=round)
        if self._picture_due():
            show_labels(log, self, selected[0], step=round)
        return {f"labels_{name}": value for name, value in pooled.items()}

    # ---- the rounds

    def resume(self, folder: Path) -> None:
        """Go back to the newest checkpoint in ``folder``, if there is one."""
        restored = load_checkpoint(folder / "checkpoint", self.server, self.clients)
        if restored:
            self.best, self.history = restored

    def run(
        self, folder: Path, log: RunLog, *, stop: Callable[[], bool], progress: Any
    ) -> dict[str, Any]:
        """Train the remaining rounds and return the result.

        Args:
            folder: the run's folder.
            stop: asked after each round; True ends the run resumably.
            progress: a tqdm bar or the like.

        Raises:
            Interrupted: ``stop`` said so.
        """
        runner = self.start_runner()
        if self.server.round == 0:
            self.server.meet(self.introductions())
        try:
            while self.server.round < self.config.rounds:
                row = self._round(runner, log)
                self.history.append(row)
                log.row(row)
                progress.set_postfix(_postfix(row))
                progress.update()
                stopping = stop()
                if stopping or self._checkpoint_due():
                    self.save(folder)
                if stopping and self.server.round < self.config.rounds:
                    raise Interrupted
            result = summarise(self, log)
        finally:
            runner.close()
            self.evaluator.predict_rows = self.predictor
        return result | {"peak_rss_mb": peak_rss_mb()}

    @property
    def workers(self) -> int:
        """Processes that train side by side; one where a GPU does the work."""
        on_gpu = self.model.device.type == "cuda"
        return 1 if on_gpu else worker_count(self.config, processor_count())

    @property
    def scored(self) -> torch.Tensor:
        """(P,) global model; or (K, P) those of the sites, where a method scores these."""
        return self.method.evaluated(self.server, self.clients)

    @property
    def class_names(self) -> list[str]:
        """What the classes are called in a figure; those that no site annotates are marked."""
        pairs = zip(self.dataset.classes, self.trained, strict=True)
        return [name if learnt else f"{name} (not trained)" for name, learnt in pairs]

    @property
    def best_round(self) -> int:
        """The round of ``best``: the first of highest validation mAP, the last if none is known."""
        values = self.history.column("val_mAP")
        return len(values) - 1 if np.isnan(values).all() else int(np.nanargmax(values))

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        parts = self.server, self.clients
        save_checkpoint(folder / "checkpoint", *parts, best=self.best, history=self.history)

    def _round(self, runner: Runner, log: RunLog) -> dict[str, float]:
        start = time.perf_counter()
        message = self.server.broadcast()
        selected = self.server.select()
        arriving = self.attack.together(runner.run(message, selected), self.server.layout)
        reports = self.server.finish_round(arriving)
        row = {"round": float(message.round), "train_loss": _mean_loss(reports)}
        scores = self._evaluate(message.round)
        row |= {
            f"{PART_NAMES[part]}_{name}": value
            for part, metrics in scores.items()
            for name, value in metrics.overall.items()
        }
        row |= self.look_at_labels(log, reports, selected, round=message.round)
        if TEST in scores:
            names, step = self.class_names, message.round
            show_classes(log, scores[TEST].per_class["ap"], names, step=step)
            show_doubt(log, self, step=step)
            row |= self._backdoor()
        row |= self._suspects(log, message.round)
        sent = {"down": message_bytes(message) * len(selected), "up": self.server.bytes_up}
        row |= {f"bytes_{way}": float(n * self.method.exchange) for way, n in sent.items()}
        row["seconds"] = time.perf_counter() - start
        return row

    def _suspects(self, log: RunLog, round: int) -> dict[str, float]:
        """How many reports were rejected and how many clients stood apart; who, to TensorBoard."""
        server = self.server
        for client in server.rejected:
            log.scalars(f"sites/{self.names.tag(client)}", {"rejected": 1.0}, step=round)
        for client, scores in server.scores.items():
            named = {f"outlier_{name}": z for name, z in scores.items()}
            log.scalars(f"sites/{self.names.tag(client)}", named, step=round)
        row = {"rejected": float(len(server.rejected))}
        if server.scores:  # blank where too few reports came in to judge them
            honest = set(server.flagged) - set(self.attack.attackers)
            row |= {"flagged": float(len(server.flagged)), "flagged_honest": float(len(honest))}
        return row

    def _evaluate(self, round: int) -> dict[int, Metrics]:
        """Scores of the validation part, and of the test part where it is due, by part."""
        scored = self.scored
        parts = [VAL] if self.evaluator.has(VAL) else []
        parts += [TEST] if self._test_due(round) else []
        try:
            scores = self.evaluator.score_parts(scored, parts)
        except Diverged as error:
            raise Diverged(f"round {round}: {error}") from error
        if self._is_best(scores[VAL].overall["mAP"] if VAL in scores else np.nan):
            self.best = scored
        return scores

    def _backdoor(self) -> dict[str, float]:
        """Share of the test images without the target class in which a patch brings it, and of
        those in which it is predicted without one; nothing where no patch was learnt.
        """
        if self.attack.kind != "backdoor":
            return {}
        plain = self.dataset.images[self.evaluator.rows(TEST)]
        truth, shares = self.evaluator.truth_of(TEST), {}
        for name, images in {"backdoor": patched(plain), "backdoor_without": plain}.items():
            predict = Predictor(self.model, images, self.predictor.augmenter)
            each = self.scored.view(-1, self.scored.shape[-1])
            found = [predict(vector, np.arange(len(images))) for vector in each]
            shares[f"test_{name}"] = float(np.mean([share_of_target(p, truth) for p in found]))
        return shares

    def _is_best(self, score: float) -> bool:
        """Whether validation prefers this round; the latest is best as long as it cannot tell."""
        previous = self.history.column("val_mAP")
        return bool(np.isnan(previous).all() or score > np.nanmax(previous))

    def _test_due(self, round: int) -> bool:
        """Whether the test set is scored after this round: now and then, and in the last five."""
        config = self.config
        return (round + 1) % config.eval_every == 0 or round >= config.rounds - LAST

    def _picture_due(self) -> bool:
        every = -(-self.config.rounds // PICTURES)  # rounded up, so there are never more
        return self.server.round % every == 0

    def _checkpoint_due(self) -> bool:
        finished = self.server.round == self.config.rounds
        return finished or self.server.round % self.config.checkpoint_every == 0

    def start_runner(self) -> Runner:
        """What trains the clients from now on, and predicts for the evaluator; to be closed."""
        parts = self.clients, self.method, self.predictor
        runner: Runner
        if self.workers == 1:
            runner = SequentialRunner(*parts)
        else:
            runner = ParallelRunner(*parts, workers=self.workers)
        self.evaluator.predict_rows = runner.predict
        return runner


def build_model(
    config: Config, *, classes: int, class_names: Sequence[str] | None = None
) -> FlatModel:
    """The one model instance of this process, at its initial weights.

    ``class_names`` decide whether the head of a file of weights is taken, see build_module.

    Raises:
        UserError: no such device, or weights that cannot be had.
    """
    device = resolve_device(config.device)
    module = build_module(
        config.model,
        classes=classes,
        weights=config.weights,
        seed=config.seed,
        class_names=class_names,
    )
    return FlatModel(module, device=device)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        UserError: ``cuda`` without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU here; use --device cpu")
    return torch.device(name)


def draw_attack(config: Config) -> Attack:
    """The attack of a run, the same for every method and aggregator."""
    return Attack.draw(
        config.attack,
        scale=config.attack_scale,
        clients=config.clients,
        attackers=config.attackers,
        seed=config.seed,
    )


def build_clients(
    dataset: ImageDataset,
    scenario: Scenario,
    method: Method,
    augmenter: Augmenter,
    *,
    attack: Attack = NO_ATTACK,
    only: Sequence[int] | None = None,
) -> list[Client]:
    """Give every site its images and its own view of the labels, and nothing else.

    ``only`` names the clients that are wanted, all by default.
    """
    observed = dataset.best_known if method.true_labels else scenario.observed
    observed = attack.labels(observed, scenario.client)
    clients = []
    for index in range(method.plan.clients) if only is None else only:
        rows = scenario.rows(index)
        labels = LabelState(observed[rows])
        labels.soften(scenario.soft[rows])
        clients.append(
            attack.client(
                index,
                images=dataset.images,
                rows=rows,
                labels=labels,
                augmenter=augmenter,
                plan=method.plan,
                hidden=_leaked(dataset, scenario, rows, leak=method.leak),
            )
        )
    return clients


def _leaked(
    dataset: ImageDataset, scenario: Scenario, rows: np.ndarray, *, leak: str
) -> np.ndarray | None:
    """What ``Method.leak`` asks for: (n, C) labels, (n,) flags of wrong images, or nothing."""
    if not leak:
        return None
    given: np.ndarray = scenario.noisy[rows]
    if leak == "labels":
        return given
    wrong = scenario.annotated[rows] & wrong_cells(dataset.best_known[rows], given)
    return np.asarray(wrong.any(axis=1))


def _mean_loss(reports: Sequence[Report]) -> float:
    samples = [report.samples for report in reports]
    return float(np.average([report.logs["loss"] for report in reports], weights=samples))


def _postfix(row: dict[str, float]) -> dict[str, str]:
    shown = {"s": f"{row['seconds']:.1f}"}
    if "val_mAP" in row:
        shown["val mAP"] = f"{row['val_mAP']:.3f}"
    return shown
