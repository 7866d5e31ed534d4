"""The one dataclass of settings, checked and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from src.aggregation import AGGREGATORS
from src.aggregator_options import parameter_help, resolve_parameters
from src.attacks import ATTACKS, ON_LABELS
from src.clashes import check_together
from src.methods import method_class, method_names
from src.methods.base import parse_params
from src.models import MODELS, OPTIMIZERS
from src.option import checked, flag, option
from src.plan import Plan
from src.supervision import LOSSES, build_loss
from utils_.augment import AUGMENT
from utils_.datasets import DATASETS
from utils_.datasets.columns import CLASS_ORDERS
from utils_.datasets.label_files.label_forms import COMBINE, FORMATS, UNCERTAIN_AS
from utils_.errors import UserError, as_known, nearest
from utils_.missing import MISSING_TYPES
from utils_.noise import CLIENT_RATES, NOISE_TYPES
from utils_.priors import CLASS_WEIGHTS
from utils_.splits import SPLITS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")
DATA, FLAWS, SITES = "data", "flaws of the labels, simulated", "federation: sites and their images"
OTHER_DEVICES = {"mps": "Apple's GPUs", "xpu": "Intel's GPUs", "tpu": "TPUs", "xla": "TPUs"}
METHOD, MODEL, TRAINING = "method", "model", "training"
REPORTS, MACHINE = "federation: reports and attacks", "machine and output"
NAMED_WEIGHTS = ("none", "imagenet")


def share_or_count(text: str) -> float | int:
    """0.5 is a share of the classes, 4 a count of classes."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def device_name(text: str) -> str:
    """Other names of the GPU become ``cuda``; what is no device of this program is named.

    Raises:
        UserError: another GPU than the first, or another kind of device.
    """
    kind, _, number = text.lower().partition(":")
    if kind in ("gpu", "cuda") and number in ("", "0"):
        return "cuda"
    if kind in ("gpu", "cuda") and number.isdecimal():
        raise UserError(
            f"--device {text}: a run sees the first GPU alone; write CUDA_VISIBLE_DEVICES={number} "
            "before the command and give --device cuda"
        )
    if kind in OTHER_DEVICES:
        raise UserError(
            f"--device {text}: {OTHER_DEVICES[kind]} are not used; give --device cpu, or cuda on a "
            "machine with a GPU of NVIDIA or AMD"
        )
    return text.lower()


def _names(*names: str) -> Callable[[], Sequence[str]]:
    return lambda: names


@dataclass(frozen=True)
class Config:
    """All settings of a run; :func:`resolve` replaces None by what follows from the others."""

    dataset: str = option("synthetic", "data set", choices=lambda: tuple(DATASETS), group=DATA)
    data_dir: str | None = option(None, "its folder (default data/<dataset>)", parse=str)
    method: str = option("fednml", "method", choices=method_names, group=METHOD)
    param: dict[str, Any] = option({}, "a parameter of the method; may be repeated")
    noise: float | None = option(
        None, "noise rate (default 0; synthetic 0.4)", low=0, high=1, parse=float, group=FLAWS
    )
    noise_type: str = option("paper", "noise model", choices=lambda: tuple(NOISE_TYPES))
    noise_clients: str = option(
        "same", "how the rate differs by client, at most --noise", choices=_names(*CLIENT_RATES)
    )
    noise_low: float = option(0.0, "lowest rate of a noisy client, if not same", low=0, high=1)
    noisy_share: float = option(0.6, "chance of a client to be noisy (bernoulli)", low=0, high=1)
    missing: float | int | None = option(
        None,
        "share (0.5) or count (4) that is hidden: of a client's classes, an image's cells or a "
        "client's images, by --missing-type (default 0; synthetic 0.4)",
        low=0,
        parse=share_or_count,
    )
    missing_type: str = option("classes", "what is hidden", choices=lambda: tuple(MISSING_TYPES))
    assume_negative: bool = option(False, "missing cells of training images count as negative")
    clients: int = option(
        4, "number of sites K, or those of groups.csv", low=1, high=100_000, group=SITES
    )
    split: str = option(
        "iid",
        "how images are dealt; by site if groups.csv has any",
        choices=_names(*SPLITS, "file"),
    )
    split_file: str | None = option(
        None, "CSV of image, split, client, such as a run's assignments.csv", parse=str
    )
    alpha: float = option(
        0.5, "Dirichlet concentration (dirichlet, quantity, phi)", low=1e-3, high=1e6
    )
    shards: int = option(2, "shards a client (shards)", low=1, high=100_000)
    phi: float = option(0.7, "chance of a client to have a class (phi)", low=0, high=1)
    fraction: float = option(1.0, "share of the clients in a round", low=0, high=1)
    val_share: float = option(0.15, "share cut off for validation", low=0, high=0.5)
    test_share: float = option(
        0.2, "share cut off for the test where none is given", low=0.01, high=0.5
    )
    train_images: int = option(
        1764, "training images of synthetic", low=40, high=1_000_000, group=DATA
    )
    test_images: int = option(444, "test images of synthetic", low=20, high=1_000_000)
    model: str = option("small", "backbone", choices=_names(*MODELS), group=MODEL)
    weights: str = option(
        "none",
        "none, imagenet or a file, of a run or of another program",
        parse=lambda text: as_known(text, NAMED_WEIGHTS),
    )
    image_size: int = option(
        64, "side of the square images in pixels", low=16, high=1024, group=DATA
    )
    fit: str = option("crop", "how an image becomes square", choices=_names("crop", "pad"))
    pixel_range: str = option(
        "auto",
        "values of more than 8 bits that become black and white: auto, full or LOW,HIGH",
        later=True,
    )
    skip_bad_images: bool = option(False, "leave out images that cannot be read")
    allow_duplicates: bool = option(
        False, "go on where the same pixels are in two parts or have two labels", result=False
    )
    min_positives: int = option(
        0, "leave out classes with fewer positive training images", low=0, high=1_000_000_000
    )
    class_order: str = option("official", "order of the classes", choices=_names(*CLASS_ORDERS))
    classes: str | None = option(
        None,
        "the classes that are taken, a,b,c (default all that may be classes)",
        parse=str,
        later=True,
    )
    ignore_columns: str | None = option(
        None, "columns of the label files that are no classes: a,b,c", parse=str, later=True
    )
    label_format: str = option(
        "auto",
        "csv: columns of 0 and 1, one class named an image, or findings joined by |",
        choices=_names(*FORMATS),
        later=True,
    )
    uncertain: str | None = option(
        None,
        "csv: what -1 means; soft starts from 0.5",
        choices=_names(*UNCERTAIN_AS),
        parse=str,
        later=True,
    )
    combine: str | None = option(
        None,
        "csv: what becomes of several rows an image",
        choices=_names(*COMBINE),
        parse=str,
        later=True,
    )
    rounds: int = option(100, "rounds", low=1, high=1_000_000, group=TRAINING)
    warmup_rounds: int = option(
        10, "rounds of the first phase, of methods that have one", low=0, high=1_000_000
    )
    local_epochs: int = option(3, "epochs at a site in a round", low=1, high=1000)
    batch_size: int = option(32, "images a step", low=1, high=100_000)
    lr: float = option(1e-3, "learning rate at the sites", low=1e-8, high=10)
    lr_schedule: str = option(
        "constant", "its course over the rounds", choices=_names("constant", "cosine")
    )
    optimizer: str = option("adamw", "optimiser at the sites", choices=_names(*OPTIMIZERS))
    momentum: float = option(0.9, "momentum of sgd", low=0, high=0.9999)
    weight_decay: float = option(1e-4, "weight decay of the optimiser", low=0, high=10)
    loss: str = option("bce", "supervised loss of any method", choices=lambda: tuple(LOSSES))
    loss_param: dict[str, Any] = option({}, "a parameter of the loss; may be repeated")
    class_weights: str = option(
        "none", "balance positives and negatives of a class", choices=_names(*CLASS_WEIGHTS)
    )
    head_bias: str = option(
        "random",
        "where the head's biases start: random, or each at its class's shared log odds",
        choices=_names("random", "prior"),
    )
    consistency: float = option(0.0, "largest weight of two-view consistency", low=0, high=100)
    augment: str = option("weak", "strength of the first view", choices=_names(*AUGMENT))
    freeze_rounds: int = option(0, "rounds that train the head alone", low=0, high=1_000_000)
    aggregator: str = option(
        "mean", "how reports are combined", choices=lambda: tuple(AGGREGATORS), group=REPORTS
    )
    aggregator_param: dict[str, Any] = option(
        {}, "a parameter of the aggregator; may be repeated: " + parameter_help()
    )
    suppress_outliers: bool = option(False, "clients whose updates stand apart count less")
    buffers: str = option(
        "average", "BatchNorm statistics", choices=_names("average", "local", "server")
    )
    attack: str = option("none", "how attackers misbehave", choices=_names(*ATTACKS))
    attackers: int = option(1, "how many clients attack, drawn by --seed", low=0, high=100_000)
    attack_scale: float = option(
        4.0,
        "length of a false update in true ones (sign_flip, gaussian, backdoor); its deviations "
        "(collude, 1.5 in the paper)",
        low=0,
        high=1e6,
    )
    eval_every: int = option(
        5, "rounds between two looks at the test set", low=1, high=1_000_000, group=TRAINING
    )
    seed: int = option(1, "seed of training", low=0, high=2**31)
    data_seed: int = option(1, "seed of images, splits, noise and masks", low=0, high=2**31)
    device: str = option(
        "auto",
        "where to compute",
        choices=_names("auto", "cpu", "cuda"),
        parse=device_name,
        result=False,
        group=MACHINE,
    )
    workers: str = option(
        "auto", "processes side by side: auto or a number", parse=str.lower, result=False
    )
    checkpoint_every: int = option(
        1, "rounds between two checkpoints", low=1, high=1_000_000, result=False
    )
    cache_dir: str | None = option(None, "folder of the image cache", parse=str, result=False)
    save_dir: str = option("save", "folder of runs and splits", result=False)
    name: str | None = option(None, "name of the run's folder", parse=str, result=False)

    def part(self, kind: type[Part], **rest: Any) -> Part:
        """The settings that the fields of a dataclass name, as an instance of it.

        Args:
            kind: the dataclass.
            rest: its fields that are no settings, or have other values.
        """
        own = {f.name: getattr(self, f.name) for f in fields(kind) if f.name not in rest}
        return kind(**own, **rest)

    def plan(self, classes: int) -> Plan:
        """The part of the settings that every method sees."""
        return self.part(Plan, classes=classes)

    @property
    def corrupts(self) -> bool:
        """Whether the run makes labels wrong on purpose."""
        return bool(self.noise) or (self.attack in ON_LABELS and self.attackers > 0)

    @property
    def never_starts(self) -> bool:
        """Whether the warm-up is as long as the run, so that the method's own part never starts."""
        return method_class(self.method).first_phase and self.warmup_rounds >= self.rounds

    def canonical_hash(self, inputs: Mapping[str, str] | None = None) -> str:
        """Ten hex digits over everything that may change a result.

        Args:
            inputs: digests of the files that count, see :func:`src.run_folder.file_inputs`.
        """
        kept = {f.name: getattr(self, f.name) for f in fields(self) if self._counts(f)}
        if kept["data_dir"]:
            kept["data_dir"] = str(Path(kept["data_dir"]).resolve())
        if kept["noise"] == 0:
            kept["noise"] = 0  # as earlier versions had it where none was given
        if inputs:
            kept["inputs"] = dict(inputs)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]

    def _counts(self, option_field: Field[Any]) -> bool:
        rules = option_field.metadata
        default = rules["parse"]() if rules["parse"] is dict else option_field.default
        as_before = rules["later"] and getattr(self, option_field.name) == default
        return bool(rules["result"] and not as_before)

    def run_name(self, inputs: Mapping[str, str] | None = None) -> str:
        """The given name, else one that says the setting and ends in the hash."""
        if self.name:
            return self.name
        flaws = f"noise{self.noise:g}-missing{self.missing:g}"
        code = self.canonical_hash(inputs)
        return f"{self.dataset}-{self.method}-{flaws}-seed{self.seed}-{code}"

    @property
    def weights_file(self) -> str | None:
        """The file of ``weights``, if it is one."""
        return None if self.weights in NAMED_WEIGHTS else self.weights

    def to_yaml(self) -> str:
        """All settings as YAML, in the order of the class."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


OPTIONS: dict[str, Field[Any]] = {f.name: f for f in fields(Config)}


def option_groups() -> dict[str, list[str]]:
    """The settings below each heading of ``--help``."""
    groups: dict[str, list[str]] = {}
    heading = DATA
    for name, option_field in OPTIONS.items():
        heading = option_field.metadata["group"] or heading
        groups.setdefault(heading, []).append(name)
    return groups


def resolve(given: dict[str, Any]) -> Config:
    """Check the given settings and fill in what follows from others.

    Raises:
        UserError: an unknown name, a wrong type, a value out of range, or two that clash.
    """
    for name in given:
        if name not in OPTIONS:
            raise UserError(f"{flag(name)}: unknown setting; {nearest(name, OPTIONS)}")
    config = Config(**{name: checked(OPTIONS[name], value) for name, value in given.items()})
    flawed = 0.4 if config.dataset == "synthetic" else 0
    config = replace(
        config,
        noise=float(flawed) if config.noise is None else config.noise,
        missing=flawed if config.missing is None else config.missing,
        split="file" if config.split_file and config.split == "iid" else config.split,
    )
    parse_params(method_class(config.method), config.param)
    build_loss(config.loss, config.loss_param)
    check_together(config)
    worker_count(config, 1)
    return replace(config, aggregator_param=_aggregator_parameters(config))


def _aggregator_parameters(config: Config) -> dict[str, float]:
    return resolve_parameters(
        config.aggregator,
        config.aggregator_param,
        reports=config.plan(1).clients_per_round,
        attackers=config.attackers,
        attacked=config.attack != "none",
    )


def worker_count(config: Config, processors: int) -> int:
    """Number of processes: as asked for, or one for each processor or client."""
    if config.workers == "auto":
        return max(1, min(processors, config.clients))
    if not str(config.workers).isdecimal() or not 1 <= int(config.workers) <= 1024:
        raise UserError(f"--workers {config.workers}: give auto or a number from 1 to 1024")
    return min(int(config.workers), config.clients)
