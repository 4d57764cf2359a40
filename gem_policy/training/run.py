"""A run as the command line starts it: settings from a file and overrides, a bar, curves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gem_policy.config import NetworkConfig, SelectionConfig, from_mapping
from gem_policy.errors import ConfigError, DependencyError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.seeds import fit_seeds, seed_folder
from gem_policy.training.trainer import Progress, fit

Write = Callable[[Mapping[str, float], int], None]

LOG_SECONDS = 20.0


@dataclass(frozen=True)
class Settings:
    """The three groups of settings of a run.

    Attributes:
        train: Training settings.
        network: Changes to the network's defaults.
        selection: Default selection settings of the policy.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    network: Mapping[str, Any] = field(default_factory=dict)
    selection: SelectionConfig = field(default_factory=SelectionConfig)


def gather_settings(config: Path | None, overrides: Sequence[str], seed: int) -> Settings:
    """Settings from a JSON file of ``{"name": value}``, then from ``NAME=VALUE`` texts.

    Values of the texts are JSON where they can be read as such, else strings. A name is looked up
    among training, network and selection settings, which have none in common.

    Raises:
        ConfigError: The file cannot be read, or a name or a value is wrong.
    """
    values: dict[str, Any] = {"seed": seed}
    if config is not None:
        try:
            values |= json.loads(config.read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{config} is no JSON file of settings: {error}.") from error
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {text!r}.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    groups: dict[type[Any], dict[str, Any]] = {
        TrainConfig: {},
        NetworkConfig: {},
        SelectionConfig: {},
    }
    known = {f.name: kind for kind in groups for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known or name in ("observation_size", "action_size"):
            raise ConfigError(f"There is no setting {name!r}; known ones are {sorted(known)}.")
        groups[known[name]][name] = tuple(value) if isinstance(value, list) else value
    return Settings(
        from_mapping(TrainConfig, groups[TrainConfig], "training"),
        groups[NetworkConfig],
        from_mapping(SelectionConfig, groups[SelectionConfig], "selection"),
    )


@contextlib.contextmanager
def curves(out: Path | None) -> Iterator[Write]:
    """A function that writes metrics to TensorBoard files under ``out``; None writes nothing.

    Raises:
        DependencyError: TensorBoard is not installed.
    """
    if out is None:
        yield lambda metrics, step: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DependencyError(
            "Curves need TensorBoard: pip install 'gem-policy[train]', or pass --no-tensorboard."
        ) from error
    writer = SummaryWriter(str(out / "tensorboard"))

    def write(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


@contextlib.contextmanager
def seed_curves(out: Path | None, seeds: Sequence[int]) -> Iterator[Write]:
    """`curves` of several seeds, each under its own folder, so that they lie over each other."""
    with contextlib.ExitStack() as stack:
        folders = {seed: None if out is None else out / seed_folder(seed) for seed in seeds}
        writers = {s: stack.enter_context(curves(folder)) for s, folder in folders.items()}

        def write(metrics: Mapping[str, float], step: int) -> None:
            for seed, one in writers.items():
                prefix = f"{seed_folder(seed)}/"
                own = {k.removeprefix(prefix): v for k, v in metrics.items() if prefix in k}
                one(own, step)

        yield write


def run(
    dataset: Dataset,
    out: Path,
    settings: Settings,
    device: torch.device,
    bar: Any,
    write: Write,
    seeds: int | None = None,
) -> list[Path]:
    """`fit`, or `fit_seeds`, with a rich progress bar and a writer of curves.

    Args:
        dataset: What to train on.
        out: Folder of the run.
        settings: All settings.
        device: Where to train.
        bar: A started ``rich.progress.Progress``.
        write: What `curves` or `seed_curves` gave.
        seeds: How many to train at once; None trains the one of the settings, without a folder.

    Returns:
        The checkpoints written.
    """
    options: dict[str, Any] = {
        "network": settings.network,
        "selection": settings.selection,
        "device": device,
        "progress": _report(bar, write),
    }
    if seeds is None:
        return [fit(dataset, out, settings.train, **options)]
    return fit_seeds(dataset, out, settings.train, seeds=seeds, **options)


def _told(metrics: Mapping[str, float]) -> str:
    """Metrics in one line; those of several seeds as their mean."""
    values: dict[str, list[float]] = {}
    for key, value in metrics.items():
        if "usage" not in key:
            values.setdefault(key.split("/")[-1], []).append(value)
    return ", ".join(f"{key} {sum(each) / len(each):.4g}" for key, each in values.items())


def _report(bar: Any, write: Write) -> Callable[[Progress], None]:
    """What a run calls after every update: moves the bar, writes the curves."""
    task = bar.add_task("training", total=None)
    started = told_at = time.monotonic()

    first: int | None = None  # a resumed run does not start at 0

    def report(now: Progress) -> None:
        nonlocal first, told_at
        first = now.done - 1 if first is None else first
        if now.done % 20 == 0 or now.metrics:
            bar.update(task, completed=now.done, total=now.total)
        if now.metrics:
            told = _told(now.metrics)
            bar.update(task, description=f"{now.phase}: {told}")
            write(now.metrics, now.step)
            moment = time.monotonic()
            if not bar.console.is_terminal and moment - told_at >= LOG_SECONDS:
                # In a file or a pipe a bar shows nothing until its end: lines do.
                told_at = moment
                left = (moment - started) / max(now.done - first, 1) * (now.total - now.done)
                bar.console.print(
                    f"{now.done}/{now.total}, about {left / 60:.0f} min left; {now.phase}: {told}"
                )

    return report
