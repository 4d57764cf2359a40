"""A run as the command line starts it: settings from a file and overrides, a bar, curves."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gem_policy.checkpoint import Checkpoint
from gem_policy.config import (
    NetworkConfig,
    SelectionConfig,
    from_mapping,
    parse_settings,
    require_count,
)
from gem_policy.env_specs import fits_spaces, make_spec
from gem_policy.environments import env_maker, evaluation_spec
from gem_policy.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    SpaceError,
    TrainingError,
)
from gem_policy.evaluate import require_playable, rollout
from gem_policy.policy import GEMPolicy
from gem_policy.pretrained import recipe, recipes
from gem_policy.spaces import describe_difference
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.few_demonstrations import settle_decay
from gem_policy.training.provenance import describe
from gem_policy.training.seeds import fit_seeds, metrics_of, seed_folder
from gem_policy.training.trainer import Evaluate, Progress, fit, network_for

Write = Callable[[Progress], None]

LOG_SECONDS = 20.0
# Not the starts that `gem-policy evaluate` reports by default: what is watched may be chosen by.
EVALUATION_SEED = 10_000
EVALUATION_ENVS = 10
WANDB_FILE = ".wandb_run"


@dataclass(frozen=True)
class Settings:
    """The three groups of settings of a run.

    Attributes:
        train: Training settings.
        network: Changes to the network's defaults.
        selection: Changes to the selection settings that `fit` would give the policy.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    network: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)


def _read_settings(config: Path) -> dict[str, Any]:
    """What a file of settings holds.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        file = config if config.is_file() else recipe(str(config)) or config
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(config)[:200]} is no JSON file of settings: {error}. The recipes that ship are "
            f"{list(recipes())}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f'{config} must hold a JSON object such as {{"kappa": 1.0}}, got a '
            f"{type(values).__name__}."
        )
    return values


def gather_settings(
    config: Path | None, overrides: Sequence[str], seed: int | None = None
) -> Settings:
    """Settings from a JSON file of ``{"name": value}``, the seed, then ``NAME=VALUE`` texts.

    The file may also be a recipe that ships, by its name.

    Values of the texts are JSON where they can be read as such, else strings. A name is looked up
    among training, network and selection settings, which have none in common.

    Raises:
        ConfigError: The file cannot be read, or a name or a value is wrong.
    """
    values: dict[str, Any] = {}
    if config is not None:
        values |= _read_settings(config)
    if seed is not None:
        values["seed"] = seed
    values |= parse_settings(overrides)
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
    from_mapping(SelectionConfig, groups[SelectionConfig], "selection")  # wrong ones are told now
    return Settings(
        from_mapping(TrainConfig, groups[TrainConfig], "training"),
        groups[NetworkConfig],
        groups[SelectionConfig],
    )


def settle(settings: Settings, dataset: Dataset) -> Settings:
    """The same run's settings, with all of the network and what follows the dataset's size."""
    return dataclasses.replace(
        settings,
        train=settle_decay(settings.train, dataset),
        network=dataclasses.asdict(network_for(dataset, settings.network)),
    )


@contextlib.contextmanager
def curves(out: Path | None) -> Iterator[Write]:
    """A function that writes metrics to TensorBoard files under ``out``; None writes nothing.

    Their step is the number of updates of the whole run: what a run that is resumed does once more
    takes the place of what it had written before.

    Raises:
        DependencyError: TensorBoard is not installed.
        CheckpointError: At the first metrics: the folder cannot be written to.
    """
    if out is None:
        yield lambda now: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DependencyError(
            "Curves need TensorBoard: pip install 'gem-policy[train]', or pass --no-tensorboard."
        ) from error
    with contextlib.ExitStack() as stack:
        writer: Any = None

        def write(now: Progress) -> None:
            nonlocal writer
            if writer is None:
                writer = _writer(SummaryWriter, out / "tensorboard", now.done)
                stack.callback(writer.close)
            for name, value in now.metrics.items():
                writer.add_scalar(name, value, now.done)

        yield write


def _writer(kind: Any, folder: Path, first: int) -> Any:
    """A TensorBoard writer whose readers forget what is there of step ``first`` and later."""
    try:
        return kind(str(folder), purge_step=first)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written to ({error.strerror}). Give another --out, or pass "
            "--no-tensorboard."
        ) from error


@contextlib.contextmanager
def seed_curves(out: Path | None, seeds: Sequence[int]) -> Iterator[Write]:
    """`curves` of several seeds, each under its own folder, so that they lie over each other."""
    with contextlib.ExitStack() as stack:
        folders = {seed: None if out is None else out / seed_folder(seed) for seed in seeds}
        writers = {s: stack.enter_context(curves(folder)) for s, folder in folders.items()}

        def write(now: Progress) -> None:
            for seed, one in writers.items():
                one(dataclasses.replace(now, metrics=metrics_of(seed, now.metrics)))

        yield write


@contextlib.contextmanager
def wandb_curves(project: str | None, out: Path, settings: Settings) -> Iterator[Write]:
    """A function that logs metrics to Weights & Biases; a project of None logs nothing.

    Its step is the number of updates of the whole run, because W&B's must never fall. A run that
    is resumed goes on in the run that W&B has of it, whose id is kept in ``out``.

    Raises:
        DependencyError: wandb is not installed.
    """
    if project is None:
        yield lambda now: None
        return
    try:
        import wandb
    except ImportError as error:
        raise DependencyError(
            "--wandb needs Weights & Biases: pip install wandb, and `wandb login` once (or "
            "WANDB_MODE=offline). Without it there is TensorBoard."
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    settled = {
        **dataclasses.asdict(settings.train),
        **settings.network,
        **dataclasses.asdict(SelectionConfig().replace(**settings.selection)),
    }
    if "candidates" not in settings.selection:
        del settled["candidates"]  # a clone has its own, and what is one shows at the end
    kept = out / WANDB_FILE
    known = kept.read_text() if kept.is_file() else None
    logged = wandb.init(
        project=project, name=out.name, dir=str(out), config=settled, id=known, resume="allow"
    )
    kept.write_text(logged.id)

    def write(now: Progress) -> None:
        logged.log(dict(now.metrics), step=now.done)

    failed = True
    try:
        yield write
        failed = False
    finally:
        logged.finish(exit_code=int(failed))


def _check_environment(told: Mapping[str, Any], dataset: Dataset) -> None:
    """Make the environment that a policy will be played in, and compare its spaces."""
    env = make_spec(evaluation_spec(told))
    require_playable(env.observation_space)
    spaces = ("observation_space", "action_space")
    differences = [
        line
        for name in spaces
        for line in describe_difference(getattr(dataset, name), getattr(env, name))
    ]
    env.close()
    if differences and not fits_spaces(told["eval_env_spec"]):
        raise SpaceError(
            f"{env} has other spaces than {dataset.id}, so that a policy trained on it cannot be "
            "played there: " + "; ".join(differences) + ". Leave out --evaluate-every."
        )


def player(dataset: Dataset, config: TrainConfig, episodes: int, device: torch.device) -> Evaluate:
    """What `fit` calls to play a policy in the environment that its dataset names.

    Tries the environment at once: a run should not fail at its first evaluation.

    Args:
        dataset: Names the environment.
        config: Training settings.
        episodes: Episodes of each evaluation, always from the same starts.
        device: Where to decide.

    Returns:
        A function of a checkpoint: mean ``return`` and ``length`` of the episodes, and ``success``
        where the environment tells of it.

    Raises:
        SpaceError: The dataset names no environment, or one with other spaces than its own.
        DependencyError: The environment's package or Stable-Baselines3 is not installed.
        ConfigError: The number of episodes is none.
    """
    require_count("evaluate_episodes", episodes)
    if importlib.util.find_spec("stable_baselines3") is None:
        raise DependencyError(
            "Playing the policy while it is trained needs Stable-Baselines3: "
            "pip install 'gem-policy[sb3]', or leave out --evaluate-every."
        )
    _check_environment(describe(dataset, config), dataset)

    def play(checkpoint: Checkpoint) -> dict[str, float]:
        policy = GEMPolicy(checkpoint, device)
        records = rollout(
            policy,
            env_maker(policy),
            episodes=episodes,
            envs=min(episodes, EVALUATION_ENVS),
            seed=EVALUATION_SEED,
            batched=True,
        )
        told: dict[str, Sequence[float]] = {
            "return": records.returns,
            "length": records.lengths,
            "success": records.successes,
        }
        return {name: float(np.mean(values)) for name, values in told.items() if values}

    return play


def run(
    dataset: Dataset,
    out: Path,
    settings: Settings,
    device: torch.device,
    bar: Any,
    writers: Sequence[Write],
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    seeds: int | None = None,
    cuda_graph: bool | None = None,
    compiled: bool = False,
) -> list[Path]:
    """`fit`, or `fit_seeds`, with a rich progress bar and writers of curves.

    Args:
        dataset: What to train on.
        out: Folder of the run.
        settings: All settings.
        device: Where to train.
        bar: A started ``rich.progress.Progress``.
        writers: What `curves` or `seed_curves`, and `wandb_curves` gave.
        evaluate: What `player` gave; see `fit`.
        evaluate_every: See `fit`.
        seeds: How many to train at once, without playing them; None trains the one of the
            settings, without a folder of its own.
        cuda_graph: See `fit`.
        compiled: See `fit`.

    Returns:
        The checkpoints written.

    Raises:
        TrainingError: Several seeds were to be played while they are trained; or see `fit`.
    """
    if seeds is not None and evaluate is not None:
        raise TrainingError(
            "Several seeds at once are not played while they are trained. Leave out "
            "--evaluate-every, and evaluate the checkpoints afterwards."
        )
    options: dict[str, Any] = {
        "network": settings.network,
        "selection": settings.selection,
        "device": device,
        "progress": _report(bar, writers),
        "cuda_graph": cuda_graph,
        "compiled": compiled,
    }
    if seeds is None:
        options |= {"evaluate": evaluate, "evaluate_every": evaluate_every}
        return [fit(dataset, out, settings.train, **options)]
    return fit_seeds(dataset, out, settings.train, seeds=seeds, **options)


def _told(metrics: Mapping[str, float]) -> str:
    """Metrics in one line; those of several seeds as their mean."""
    values: dict[str, list[float]] = {}
    for key, value in metrics.items():
        if "usage" not in key:
            values.setdefault(key.split("/")[-1], []).append(value)
    return ", ".join(f"{key} {sum(each) / len(each):.4g}" for key, each in values.items())


def _report(bar: Any, writers: Sequence[Write]) -> Callable[[Progress], None]:
    """What a run calls after every update: moves the bar, writes the curves."""
    task = bar.add_task("training", total=None)
    started = told_at = time.monotonic()

    made = 0  # updates: a resumed run does not start at 0, and early stopping leaves some out

    def report(now: Progress) -> None:
        nonlocal made, told_at
        made += 1
        if now.done % 20 == 0 or now.metrics:
            bar.update(task, completed=now.done, total=now.total)
        if now.metrics:
            told = _told(now.metrics)
            bar.update(task, description=f"{now.phase}: {told}")
            for write in writers:
                write(now)
            moment = time.monotonic()
            if not bar.console.is_terminal and moment - told_at >= LOG_SECONDS:
                # In a file or a pipe a bar shows nothing until its end: lines do.
                told_at = moment
                left = (moment - started) / made * (now.total - now.done)
                bar.console.print(
                    f"{now.done}/{now.total}, about {left / 60:.0f} min left; {now.phase}: {told}"
                )

    return report
