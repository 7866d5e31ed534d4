"""What the benchmark times in processes of their own: start, many clients, peers; also files.

python scripts/bench/children.py NAME OPTIONS runs one of them (OPTIONS is JSON) and prints its
findings as the last line, as JSON. Nothing of the project is imported before it is needed, because
that is part of what the start measures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from scripts.bench.work import Share, Work

ROOT = Path(__file__).resolve().parents[2]
FILE_SIZE = (600, 450)  # width and height of the images of HAM10000
PEERS = {"flower": ("flwr", "ray"), "pfl": ("pfl",)}  # the packages that each of them needs
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}


class ChildFailed(RuntimeError):
    """A process ended with an error; the message is the last line it wrote."""


def call(name: str, **options: Any) -> dict[str, Any]:
    """Run one of :data:`CHILDREN` in a process of its own and return its findings.

    Raises:
        ChildFailed: it ended with an error or said nothing.
    """
    command = [sys.executable, str(Path(__file__).resolve()), name, json.dumps(options)]
    done = subprocess.run(
        command, env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise ChildFailed(f"{name}: {said[-1]}")
    return json.loads(lines[-1])


def installed(peer: str) -> bool:
    """Whether the packages of a peer are here."""
    return all(importlib.util.find_spec(package) for package in PEERS[peer])


def peak_mb() -> float:
    """Largest resident memory of this process so far.

    Not ``ru_maxrss``, which after a fork and exec still remembers the parent's size.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


# ---- the start


class FirstBatch(BaseException):
    """Ends a run when its first batch lies ready; no ``except Exception`` may catch it."""


def start(arguments: list[str]) -> dict[str, float]:
    """Seconds from after ``import torch`` to the first batch of the main job."""
    import torch  # noqa: F401  what it takes is not counted

    begin = time.perf_counter()
    from src import main_fednml
    from src.client import Client

    def first_batch(*anything: Any) -> torch.Tensor:
        raise FirstBatch

    Client._loss = first_batch
    try:
        code = main_fednml.main(arguments)
    except FirstBatch:
        return {"seconds": time.perf_counter() - begin}
    raise ChildFailed(f"the run ended with code {code} before its first batch")


# ---- many clients


def many_clients(work: dict[str, Any]) -> dict[str, float]:
    """Time of one FedAvg round with one worker, and the peak memory of all of it."""
    from scripts.bench.work import Federation, Work, seconds_of

    federation = Federation("fedavg", Work(**work))
    return {"seconds": seconds_of(federation.round), "peak_mb": peak_mb()}


# ---- peers: the same network, data, optimiser, batches, epochs and evaluation


def ours(work: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of FedAvg and its evaluation, configured by default."""
    from scripts.bench.work import Federation, Work, seconds_of

    federation = Federation("fedavg", Work(**work), workers="auto")

    def whole() -> None:
        federation.round()
        federation.evaluate()

    whole()
    seconds = [seconds_of(whole) for _ in range(rounds)]
    federation.close()
    return {"seconds": seconds}


class PeerData:
    """What the users of a peer would hold: tensors of each site, and the test set."""

    def __init__(self, work: Work) -> None:
        import numpy as np
        import torch

        from scripts.bench.work import Bench, random_dataset
        from utils_.datasets.base import TEST

        bench, dataset = Bench(work), random_dataset(work)
        tested = np.flatnonzero(dataset.part == TEST)
        self.work, self.plan, self.augmenter = work, bench.plan, bench.augmenter
        self.shares: list[Share] = bench.shares
        self.images, self.truth = torch.from_numpy(dataset.images[tested]), dataset.labels[tested]

    def score(self, module: torch.nn.Module) -> float:
        """The evaluation that our engine does too."""
        from scripts.bench.work import score_plainly

        return score_plainly(module, self.images, self.truth, self.augmenter)["mAP"]


def gaps(times: list[float]) -> dict[str, list[float]]:
    """Seconds between moments; the first gap, which warms up, is left out."""
    return {"seconds": [late - early for early, late in pairwise(times[1:])]}


def flower(work: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Flower's simulation: one single-threaded actor for each processor."""
    from flwr.app import ArrayRecord, Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from scripts.bench.work import Work, plain_module
    from utils_.environment import processor_count

    data, times = PeerData(Work(**work)), []
    module = plain_module(data.work)
    server, client = ServerApp(), ClientApp()

    def evaluate(round: int, arrays: ArrayRecord) -> None:
        module.load_state_dict(arrays.to_torch_state_dict())
        data.score(module)
        times.append(time.perf_counter())

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        initial = ArrayRecord(module.state_dict())
        FedAvg(fraction_evaluate=0.0).start(
            grid, initial, num_rounds=rounds + 1, evaluate_fn=evaluate
        )

    client.train()(flower_client(work))
    run_simulation(
        server,
        client,
        num_supernodes=data.work.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": processor_count(), "log_to_driver": False},
        },
    )
    return gaps(times)


def flower_client(work: dict[str, Any]) -> Any:
    """What Flower runs for each message; an actor makes its data once and keeps them."""
    kept: dict[str, PeerData] = {}

    def train(message: Any, context: Any) -> Any:
        import torch
        from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

        from scripts.bench.children import PeerData
        from scripts.bench.work import Work, plain_module, train_plainly

        torch.set_num_threads(1)
        if "data" not in kept:
            kept["data"] = PeerData(Work(**work))
        data = kept["data"]
        module = plain_module(data.work)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        share = data.shares[int(context.node_config["partition-id"])]
        train_plainly(module, [share], data.augmenter.view, data.plan, torch.Generator())
        count = MetricRecord({"num-examples": len(share.images)})
        arrays = ArrayRecord(module.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": count}), reply_to=message)

    return train


def pfl(work: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """pfl-research's simulation: one process, with a thread for each processor."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    from scripts.bench.work import Work
    from utils_.environment import processor_count

    torch.set_num_threads(processor_count())
    data, times = PeerData(Work(**work)), []
    module, plan = pfl_module(data), data.plan
    users = {k: (s.images, s.target, s.weight) for k, s in enumerate(data.shares)}

    class Evaluation(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            data.score(module.network)
            module.train()
            times.append(time.perf_counter())
            return False, Metrics()

    def optimiser(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=plan.weight_decay)

    federated = FederatedDataset(
        lambda user: Dataset(users[user], user_id=user), MinimizeReuseUserSampler([*users])
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds + 2,
            evaluation_frequency=rounds + 3,
            train_cohort_size=len(users),
            val_cohort_size=None,
        ),
        SimulatedBackend(federated, federated),
        PyTorchModel(module, optimiser, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=plan.batch_size,
            local_num_epochs=plan.local_epochs,
            local_learning_rate=plan.lr,
        ),
        callbacks=[Evaluation()],
    )
    return gaps(times)


def pfl_module(data: PeerData) -> torch.nn.Module:
    """The network with the two functions that pfl-research asks a module for."""
    import torch

    from scripts.bench.work import cell_loss, plain_module
    from utils_.augment import AUGMENT

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.generator = plain_module(data.work), torch.Generator()

        def loss(
            self, images: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
        ) -> torch.Tensor:
            strength = AUGMENT[data.plan.augment]
            view = data.augmenter.view(images, self.generator, strength=strength)
            return cell_loss(self.network(view.contiguous()), target, weight)

        def metrics(self, *batch: torch.Tensor) -> dict[str, float]:
            return {}  # the callback evaluates

    return Module()


# ---- image files


def write_jpegs(folder: Path, count: int) -> Path:
    """Photograph-like JPEG files in the csv layout, four in five of them for training."""
    import numpy as np
    from PIL import Image

    from utils_.rng import derive

    draw, (width, height) = derive(1, "benchmark", "files"), FILE_SIZE
    (folder / "images").mkdir(parents=True)
    tables: dict[str, list[str]] = {"train": ["ID,first,second"], "test": ["ID,first,second"]}
    for number in range(count):
        coarse = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = draw.normal(0, 4, (height, width, 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        name = f"image{number}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=90)
        part = tables["test" if number % 5 == 4 else "train"]
        part.append(f"{name},{number % 2},{number // 2 % 2}")
    for part, lines in tables.items():
        (folder / f"{part}_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def build_cache(folder: Path, cache: Path, *, size: int) -> None:
    """Load the images as a run does, with all processors."""
    from dataclasses import replace

    from src.config import Config
    from src.job import load_dataset

    place = {"data_dir": str(folder), "cache_dir": str(cache), "image_size": size}
    load_dataset(replace(Config(), dataset="csv", **place), quiet=True)


def decode_plainly(folder: Path, *, size: int) -> None:
    """Decode and resize the same files with PIL, one after another, into one array."""
    import numpy as np
    from PIL import Image, ImageOps

    paths = sorted((folder / "images").iterdir())
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for image, path in zip(images, paths, strict=True):
        with Image.open(path) as file:
            image[:] = ImageOps.fit(file.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


CHILDREN = {
    "start": start,
    "many_clients": many_clients,
    "ours": ours,
    "flower": flower,
    "pfl": pfl,
}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(CHILDREN[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
