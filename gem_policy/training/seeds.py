"""Several seeds trained as one batched computation, each to the policy that it has alone.

Initial weights, held-out episodes, statistics and batches of a seed are exactly those of its own
run, and so are the rules of every update. The sums inside matrix products are rounded in another
order at most, as they are on another machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gem_policy import checkpoint as files
from gem_policy.config import NetworkConfig, SelectionConfig, require_count
from gem_policy.devices import choose_device
from gem_policy.errors import TrainingError
from gem_policy.training import life_signs
from gem_policy.training.advantages import judge_both
from gem_policy.training.config import TrainConfig
from gem_policy.training.cuda_graph import Update, records, updates_of
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.divergence import stop_if_diverged, value_bound
from gem_policy.training.export import finish
from gem_policy.training.few_demonstrations import settle_decay
from gem_policy.training.generalization import guide, measure
from gem_policy.training.learners import (
    ActorLearner,
    BehaviorLearner,
    CriticLearner,
    ValueLearner,
    expect,
)
from gem_policy.training.preparation import check_training_room, prepare
from gem_policy.training.replay import Batch
from gem_policy.training.run_folder import held
from gem_policy.training.shared_replay import SharedReplay, SharedSampler, share
from gem_policy.training.spread import critic_spread, spread_metrics
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.state import last_good_state, load_state, save_learners, stop_if_broken
from gem_policy.training.trainer import (
    PHASES,
    Progress,
    check_settings,
    identity,
    network_for,
    start_learner,
    updates_of_phases,
)
from gem_policy.training.validation import held_out_batch, held_out_metrics


def fit_seeds(
    dataset: Dataset | str | Path,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    seeds: int = 8,
    network: Mapping[str, Any] | None = None,
    selection: SelectionConfig | Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], None] | None = None,
    log_every: int = 500,
    save_seconds: float = 60.0,
    cuda_graph: bool | None = None,
    compiled: bool = False,
) -> list[Path]:
    """Train policies of consecutive seeds at once, or go on with a run that was stopped.

    Args:
        dataset: What `gem_policy.training.load` returned, or what it takes: an id or a path.
        out: Folder of the run: its state while it works, ``seed-3/model.safetensors`` and so on at
            its end.
        config: Training settings; its seed is the first.
        seeds: How many.
        network: Changes to `NetworkConfig`'s defaults.
        selection: Selection settings of the policies, or changes to what `fit` chooses for each.
        device: Where to train.
        progress: Called after every update of all seeds; metrics are named ``seed-3/value/loss``.
        log_every: Updates between two readings of the metrics.
        save_seconds: Seconds between two savings of the state.
        cuda_graph: As for `fit`: all seeds' update is one graph.
        compiled: As for `fit`.

    Returns:
        The paths of the checkpoints, each the same as `fit` writes for its seed, to rounding.

    Warns:
        TrainingWarning: What `fit` gives it for, of one seed; of lost components the message names
            the seed.

    Raises:
        ConfigError: ``seeds`` is no count, the last seed is too large, or what `fit` raises it for.
        TrainingError: A seed's loss became NaN or infinite, or its values larger than the rewards
            allow (the message names the seed; the last good state of all is kept); ``dropout`` or
            ``patience`` is set, which `fit` alone knows; or anything else that `fit` raises it for.
        DatasetError: The dataset cannot be read, or training on it would not fit into memory.
        CheckpointError: As of `fit`.
    """
    require_count("seeds", seeds)
    require_count("log_every", log_every)
    dataset = dataset if isinstance(dataset, Dataset) else load(dataset)
    out = Path(out)
    config = settle_decay(config or TrainConfig(), dataset)
    _check_supported(config)
    configs = [replace(config, seed=config.seed + i) for i in range(seeds)]
    net = network_for(dataset, network)
    check_settings(config, net, selection, compiled)
    where = choose_device(device)
    cuda_graph = records(cuda_graph, config, where)
    run = {**identity(dataset, config, net), "seeds": seeds}
    with held(out):
        learners = _train(
            dataset,
            net,
            configs,
            where,
            run,
            out,
            progress,
            log_every,
            save_seconds,
            cuda_graph,
            compiled,
        )
        paths = []
        for i, own in enumerate(configs):
            made = finish(
                dataset,
                prepare(dataset, own, where),
                {name: learner.learners[i] for name, learner in learners.items()},
                net,
                selection,
                own,
            )
            paths.append(out / seed_folder(own.seed) / files.WEIGHTS_FILE)
            files.remove_unfinished(paths[-1])
            files.save(made, paths[-1])
        return paths


def seed_folder(seed: int) -> str:
    """Name of a seed's folder in that of the run, and of its part of the metrics."""
    return f"seed-{seed}"


def metrics_of(seed: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """A seed's own metrics, under the names that `fit` gives them."""
    prefix = f"{seed_folder(seed)}/"
    return {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}


def _check_supported(config: TrainConfig) -> None:
    """Refuse what cannot be batched: masks drawn per update, and seeds that end at other times."""
    used = [name for name in ("dropout", "patience") if getattr(config, name)]
    if used:
        told = ", ".join(f"{name}={getattr(config, name)}" for name in used)
        raise TrainingError(
            f"Several seeds at once are trained without {' and '.join(used)}, got {told}. Leave "
            "it out, or train the seeds one by one."
        )


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
    cuda_graph: bool,
    compiled: bool,
) -> dict[str, StackedLearner]:
    """All phases, from the saved state if there is one."""
    saved = load_state(out, run, updates_of_phases(configs[0]))
    check_training_room(dataset, len(configs))
    shared = share(dataset, configs, device)
    unseen = [held_out_batch(prepare(dataset, own, device).held_out) for own in configs]
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
            shared, unseen = judge_all(shared, dataset, learners, configs)
        elif name == "actor":
            shared, unseen = weigh_all(shared, dataset, learners, configs)
        if learner.step < learner.updates:
            sampler = SharedSampler(shared, configs, number)
            if compiled:
                learner.make_compiled()
            _run_phase(
                learners,
                shared,
                updates_of(learner, shared, sampler, cuda_graph),
                unseen,
                configs[0],
                run,
                out,
                progress,
                log_every,
                save_seconds,
            )
            warn_of_lost(name, learner, shared)
    return learners


def warn_of_lost(phase: str, learner: StackedLearner, shared: SharedReplay) -> None:
    """`warn_of_lost_components` of each seed's mixture, if the phase trained mixtures."""
    for i, (seed, own) in enumerate(zip(learner.seeds, learner.learners, strict=True)):
        if isinstance(own, BehaviorLearner | ActorLearner):
            batch = shared.evenly_spaced(i, life_signs.ROWS, ActorLearner.reads)
            life_signs.warn_of_lost_components(phase, own.model, batch, f"seed {seed}'s ")


def _run_phase(
    learners: Mapping[str, StackedLearner],
    shared: SharedReplay,
    update: Update,
    unseen: Sequence[Batch],
    config: TrainConfig,
    run: Mapping[str, Any],
    out: Path,
    progress: Callable[[Progress], None] | None,
    log_every: int,
    save_seconds: float,
) -> None:
    """The remaining updates of the last learner's phase, saving and reporting on the way."""
    name, learner = list(learners.items())[-1]
    lengths = updates_of_phases(config)
    before = sum(lengths[phase] for phase in learners if phase != name)
    # Of all transitions, held-out ones too, so that one bound does for all seeds.
    bound = value_bound(shared.everything, config.discount)
    last_save = time.monotonic()
    while learner.step < learner.updates:
        due = (learner.step + 1) % log_every == 0 or learner.step + 1 == learner.updates
        metrics = update(due)
        reading: dict[str, float] = {}
        if due:
            reading = learner.read(metrics)
            stop_if_broken(reading, name, learner.step, out)
            for seed in learner.seeds:
                own = metrics_of(seed, reading)
                kept = f"Seed {seed} diverged, all have stopped. {last_good_state(out)}"
                stop_if_diverged(own, bound, name, learner.step, kept)
            reading |= held_out_of_all(name, learner, unseen)
        if progress is not None:
            done, total = before + learner.step, sum(lengths.values())
            progress(Progress(name, learner.step, learner.updates, done, total, reading))
        # Only right after a healthy reading, so that the state on disk is always a good one.
        if reading and time.monotonic() - last_save >= save_seconds:
            save_learners(run, name, learners, out)
            last_save = time.monotonic()
    save_learners(run, name, learners, out)


def held_out_of_all(
    phase: str, learner: StackedLearner, unseen: Sequence[Batch]
) -> dict[str, float]:
    """The metrics of every seed on its own held-out transitions, those that `fit` reports."""
    found: dict[str, float] = {}
    for seed, own, batch in zip(learner.seeds, learner.learners, unseen, strict=True):
        metrics = held_out_metrics(phase, own, batch)
        if isinstance(own, CriticLearner) and learner.step == learner.updates:
            metrics |= spread_metrics(critic_spread(own.critics, batch, seed))
        found |= {f"{seed_folder(seed)}/{key}": value for key, value in metrics.items()}
    return found


def judge_all(
    shared: SharedReplay,
    dataset: Dataset,
    learners: Mapping[str, StackedLearner],
    configs: Sequence[TrainConfig],
) -> tuple[SharedReplay, list[Batch]]:
    """`judge_both` for each seed by its own finished values, one at a time to save memory.

    Returns:
        The transitions with advantages, and of each seed some held-out ones.
    """
    parts, unseen = [], []
    for i, config in enumerate(configs):
        value = expect(learners["value"].learners[i], ValueLearner)
        prepared = prepare(dataset, config, shared.device)
        training, held_out = judge_both(prepared.training, prepared.held_out, value, config)
        expect(learners["critic"].learners[i], CriticLearner).begin(value, training)
        parts.append(training.advantages)
        unseen.append(held_out_batch(held_out))
    return replace(shared, advantages=torch.cat(parts)), unseen


def weigh_all(
    shared: SharedReplay,
    dataset: Dataset,
    learners: Mapping[str, StackedLearner],
    configs: Sequence[TrainConfig],
) -> tuple[SharedReplay, list[Batch]]:
    """`guide` for each seed by its own finished models; the advantages are not needed any more.

    Returns:
        The transitions with weights, and of each seed some held-out ones.
    """
    parts, unseen = [], []
    for i, config in enumerate(configs):
        own = {name: learner.learners[i] for name, learner in learners.items()}
        prepared = prepare(dataset, config, shared.device)
        value = expect(own["value"], ValueLearner)
        judged = judge_both(prepared.training, prepared.held_out, value, config)
        critic = expect(own["critic"], CriticLearner)
        training, held_out = guide(*judged, measure(*judged, own), critic, config)
        parts.append(training.weights)
        unseen.append(held_out_batch(held_out))
    none = torch.empty(len(shared.numbers), 0, device=shared.device)
    return replace(shared, advantages=none, weights=torch.cat(parts)), unseen
