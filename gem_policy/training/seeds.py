"""Several seeds trained as one batched computation, each to the policy that it has alone.

Initial weights, held-out episodes, statistics and batches of a seed are exactly those of its own
run, and so are the rules of every update. The sums inside matrix products are rounded in another
order at most, as they are on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from gem_policy import checkpoint as files
from gem_policy.config import NetworkConfig, SelectionConfig, require_count
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import CriticLearner, Learner, ValueLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.provenance import describe
from gem_policy.training.replay import Batch, Replay
from gem_policy.training.shared_replay import SharedReplay, SharedSampler, share
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.state import load_state
from gem_policy.training.trainer import (
    PHASES,
    Progress,
    export,
    identity,
    judge,
    network_for,
    run_phase,
    start_learner,
    weigh,
)

L = TypeVar("L", bound=Learner)


def fit_seeds(
    dataset: Dataset,
    out: Path,
    config: TrainConfig | None = None,
    *,
    seeds: int = 8,
    network: Mapping[str, Any] | None = None,
    selection: SelectionConfig | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], None] | None = None,
    log_every: int = 500,
    save_seconds: float = 60.0,
) -> list[Path]:
    """Train policies of consecutive seeds at once, or go on with a run that was stopped.

    Args:
        dataset: What `gem_policy.training.dataset.load` returned.
        out: Folder of the run: its state while it works, ``seed-3/model.safetensors`` and so on at
            its end.
        config: Training settings; its seed is the first.
        seeds: How many.
        network: Changes to `NetworkConfig`'s defaults.
        selection: Default selection settings of the policies.
        device: Where to train.
        progress: Called after every update of all seeds; metrics are named ``seed-3/value/loss``.
        log_every: Updates between two readings of the metrics.
        save_seconds: Seconds between two savings of the state.

    Returns:
        The paths of the checkpoints, each the same as `fit` writes for its seed, to rounding.

    Raises:
        ConfigError: ``seeds`` is no count, or the last seed is too large.
        TrainingError: A seed's loss became NaN or infinite (the message names it; the last good
            state of all is kept), or anything else that `fit` raises it for.
        CheckpointError: The disk is full or not writable; the last saved state is untouched.
    """
    require_count("seeds", seeds)
    config = config or TrainConfig()
    configs = [replace(config, seed=config.seed + i) for i in range(seeds)]
    net = network_for(dataset, network)
    where = torch.device(device)
    run = {**identity(dataset, config, net), "seeds": seeds}
    out.mkdir(parents=True, exist_ok=True)
    learners = _train(dataset, net, configs, where, run, out, progress, log_every, save_seconds)
    paths = []
    for i, own in enumerate(configs):
        made = export(
            dataset,
            prepare(dataset, own, where),
            {name: learner.learners[i] for name, learner in learners.items()},
            net,
            selection or SelectionConfig(),
            describe(dataset, own),
        )
        paths.append(out / seed_folder(own.seed) / files.WEIGHTS_FILE)
        files.save(made, paths[-1])
    return paths


def seed_folder(seed: int) -> str:
    """Name of a seed's folder in that of the run, and of its part of the metrics."""
    return f"seed-{seed}"


def _train(
    dataset: Dataset,
    net: NetworkConfig,
    configs: Sequence[TrainConfig],
    device: torch.device,
    run: Mapping[str, Any],
    out: Path,
    progress: Callable[[Progress], None] | None,
    log_every: int,
    save_seconds: float,
) -> dict[str, StackedLearner]:
    """All phases, from the saved state if there is one."""
    saved = load_state(out, run)
    shared = share(dataset, configs, device)
    learners: dict[str, StackedLearner] = {}
    names = list(PHASES)
    for number, name in enumerate(names):
        single = [start_learner(name, net, own, device) for own in configs]
        learner = StackedLearner(single, [own.seed for own in configs])
        learners[name] = learner
        if saved is not None and number <= names.index(saved.phase):
            done = saved.step if name == saved.phase else learner.updates
            learner.restore(saved.own(name), done)
        if name == "critic":
            shared = judge_all(shared, dataset, learners["value"], configs)
        elif name == "actor":
            shared = weigh_all(shared, dataset, learners["critic"], configs)
        draw = _drawing(shared, SharedSampler(shared, configs, number))
        run_phase(number, learners, draw, configs[0], run, out, progress, log_every, save_seconds)
    return learners


def _drawing(shared: SharedReplay, sampler: SharedSampler) -> Callable[[int], Batch]:
    """The batch of every update of a phase."""
    return lambda step: shared.batch(sampler(step).to(shared.numbers.device))


def judge_all(
    shared: SharedReplay,
    dataset: Dataset,
    value: StackedLearner,
    configs: Sequence[TrainConfig],
) -> SharedReplay:
    """`judge` of each seed by its own finished values, one at a time to save memory."""
    parts = [
        judge(_own(dataset, config, shared), _as(own, ValueLearner), config).advantages
        for own, config in zip(value.learners, configs, strict=True)
    ]
    return replace(shared, advantages=torch.cat(parts))


def weigh_all(
    shared: SharedReplay,
    dataset: Dataset,
    critic: StackedLearner,
    configs: Sequence[TrainConfig],
) -> SharedReplay:
    """`weigh` of each seed by its own finished critics; the advantages are not needed any more."""
    parts = [
        weigh(_own(dataset, config, shared), _as(own, CriticLearner), config).weights
        for own, config in zip(critic.learners, configs, strict=True)
    ]
    none = torch.empty(len(shared.numbers), 0, device=shared.numbers.device)
    return replace(shared, advantages=none, weights=torch.cat(parts))


def _own(dataset: Dataset, config: TrainConfig, shared: SharedReplay) -> Replay:
    """The replay that a run with these settings has."""
    return prepare(dataset, config, shared.numbers.device).training


def _as(learner: Learner, kind: type[L]) -> L:
    """A learner as what it is."""
    if not isinstance(learner, kind):
        raise TypeError(f"Expected a {kind.__name__}, got {type(learner)}.")
    return learner
