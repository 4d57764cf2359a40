"""A training run: behavior model, state values, critics, actor, then one checkpoint.

In phases, because each needs only what came before: the critics are learned in-sample and never
ask the actor; the actor's weights are computed once, from the finished critics. That is cheaper
than training all at once and gives the actor the best advantages there are.

Every random number is a function of (seed, phase, update), so a run that was killed and resumed is
bit for bit the run that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy import checkpoint as files
from gem_policy.checkpoint import CALIBRATION_POINTS, Checkpoint, PolicyConfig
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.errors import TrainingError
from gem_policy.scoring import lower_bound
from gem_policy.spaces import observation_size
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import (
    ActorLearner,
    BehaviorLearner,
    CriticLearner,
    Learner,
    ValueLearner,
)
from gem_policy.training.losses import advantage_weights
from gem_policy.training.preparation import Prepared, prepare
from gem_policy.training.provenance import describe
from gem_policy.training.replay import Replay, Sampler, look_ahead
from gem_policy.training.state import STATE_FILE, TrainState, load_state, save_state

PHASES: dict[str, type[Learner]] = {
    "behavior": BehaviorLearner,
    "value": ValueLearner,
    "critic": CriticLearner,
    "actor": ActorLearner,
}
L = TypeVar("L", bound=Learner)
ROWS = 8192  # transitions evaluated at once outside of the updates


@dataclass(frozen=True)
class Progress:
    """What a run tells while it works.

    Attributes:
        phase: ``behavior``, ``value``, ``critic`` or ``actor``.
        step: Updates done in the phase.
        updates: Updates of the phase.
        done: Updates done in the whole run.
        total: Updates of the whole run.
        metrics: Numbers to log; empty except every ``log_every`` updates.
    """

    phase: str
    step: int
    updates: int
    done: int
    total: int
    metrics: Mapping[str, float]


def fit(
    dataset: Dataset,
    out: Path,
    config: TrainConfig | None = None,
    *,
    network: Mapping[str, Any] | None = None,
    selection: SelectionConfig | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], None] | None = None,
    log_every: int = 500,
    save_seconds: float = 60.0,
) -> Path:
    """Train a policy, or go on with a run that was stopped, and write its checkpoint.

    Args:
        dataset: What `gem_policy.training.dataset.load` returned.
        out: Folder of the run: its state while it works, ``model.safetensors`` at its end.
        config: Training settings.
        network: Changes to `NetworkConfig`'s defaults, such as ``{"critics": 8}``.
        selection: Default selection settings of the policy.
        device: Where to train.
        progress: Called after every update.
        log_every: Updates between two readings of the metrics.
        save_seconds: Seconds between two savings of the state.

    Returns:
        The path of the checkpoint.

    Raises:
        TrainingError: A loss became NaN or infinite (the last good state is kept), the run in
            ``out`` was started with other settings, or the data hold nothing to learn from.
        CheckpointError: The disk is full or not writable; the last saved state is untouched.
    """
    config = config or TrainConfig()
    net = network_for(dataset, network)
    where = torch.device(device)
    run = identity(dataset, config, net)
    out.mkdir(parents=True, exist_ok=True)
    saved = load_state(out, run)
    prepared = prepare(dataset, config, where)
    learners = _train(
        prepared, net, config, where, run, saved, out, progress, log_every, save_seconds
    )
    provenance = describe(dataset, config)
    made = export(dataset, prepared, learners, net, selection or SelectionConfig(), provenance)
    path = out / files.WEIGHTS_FILE
    files.save(made, path)
    return path


def network_for(dataset: Dataset, changes: Mapping[str, Any] | None) -> NetworkConfig:
    """The networks that fit a dataset's spaces, with changes to the defaults."""
    sizes = {
        "observation_size": observation_size(dataset.observation_space),
        "action_size": int(dataset.action_space.shape[0]),
    }
    return NetworkConfig(**{**sizes, **dict(changes or {})})


def identity(dataset: Dataset, config: TrainConfig, net: NetworkConfig) -> dict[str, Any]:
    """What a run is, as a JSON object: it is resumed only as that."""
    return {
        "dataset": dataset.id,
        "steps": len(dataset.transitions),
        "train": dataclasses.asdict(config),
        "network": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(net).items()},
    }


def start_learner(
    name: str, net: NetworkConfig, config: TrainConfig, device: torch.device
) -> Learner:
    """The learner of a phase as it is before its first update; the same on every device."""
    # Weights are made on the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed((config.seed << 8) ^ list(PHASES).index(name))
    return PHASES[name](net, config, generator, device)  # type: ignore[arg-type]


def _train(
    prepared: Prepared,
    net: NetworkConfig,
    config: TrainConfig,
    device: torch.device,
    run: Mapping[str, Any],
    saved: TrainState | None,
    out: Path,
    progress: Callable[[Progress], None] | None,
    log_every: int,
    save_seconds: float,
) -> dict[str, Learner]:
    """All phases, from the saved state if there is one."""
    learners: dict[str, Learner] = {}
    replay = prepared.training
    names = list(PHASES)
    for number, name in enumerate(names):
        learner = start_learner(name, net, config, device)
        learners[name] = learner
        if saved is not None and number <= names.index(saved.phase):
            done = saved.step if name == saved.phase else learner.updates
            learner.restore(saved.own(name), done)
        if isinstance(learner, CriticLearner):
            replay = judge(replay, _finished(learners, "value", ValueLearner), config)
        elif isinstance(learner, ActorLearner):
            replay = weigh(replay, _finished(learners, "critic", CriticLearner), config)
        _run_phase(number, learners, replay, config, run, out, progress, log_every, save_seconds)
    return learners


def _finished(learners: Mapping[str, Learner], name: str, kind: type[L]) -> L:
    """A learner of an earlier phase, as what it is."""
    learner = learners[name]
    if not isinstance(learner, kind):
        raise TypeError(f"The {name} phase must be a {kind.__name__}, got {type(learner)}.")
    return learner


def _run_phase(
    number: int,
    learners: Mapping[str, Learner],
    replay: Replay,
    config: TrainConfig,
    run: Mapping[str, Any],
    out: Path,
    progress: Callable[[Progress], None] | None,
    log_every: int,
    save_seconds: float,
) -> None:
    """The remaining updates of one phase, saving and reporting on the way."""
    name = list(PHASES)[number]
    learner = learners[name]
    sampler = Sampler(len(replay), config.batch_size, config.seed, number)
    lengths = [getattr(config, f"{phase}_updates") for phase in PHASES]
    before, total = sum(lengths[:number]), sum(lengths)
    start, last_save = learner.step, time.monotonic()
    while learner.step < learner.updates:
        metrics = learner.update(replay.batch(sampler(learner.step).to(replay.index.device)))
        reading: dict[str, float] = {}
        if learner.step % log_every == 0 or learner.step == learner.updates:
            reading = {key: float(value) for key, value in metrics.items()}
            _stop_if_broken(reading, name, learner.step, out)
        if progress is not None:
            done = before + learner.step
            progress(Progress(name, learner.step, learner.updates, done, total, reading))
        # Only right after a healthy reading, so that the state on disk is always a good one.
        if reading and time.monotonic() - last_save >= save_seconds:
            _save(run, name, learners, out)
            last_save = time.monotonic()
    # A phase that was finished before says nothing new: the state on disk is further on.
    if learner.step > start:
        _save(run, name, learners, out)


def _save(run: Mapping[str, Any], phase: str, learners: Mapping[str, Learner], out: Path) -> None:
    """Save the run as it stands, finished learners and the one at work, if it is sound."""
    tensors = {
        f"{name}/{key}": value
        for name, learner in learners.items()
        for key, value in learner.tensors().items()
    }
    step = learners[phase].step
    # The losses are those before the last step; what it did to the weights shows in them alone.
    broken = {k: math.nan for k, v in tensors.items() if not bool(torch.isfinite(v).all())}
    _stop_if_broken(broken, phase, step, out)
    save_state(TrainState(run, phase, step, tensors), out)


def _stop_if_broken(reading: Mapping[str, float], phase: str, step: int, out: Path) -> None:
    """Raise if one of the numbers is NaN or infinite."""
    broken = [key for key, value in reading.items() if not abs(value) < float("inf")]
    if broken:
        raise TrainingError(
            f"{broken[:8]} became NaN or infinite by update {step} of the {phase} phase. The last "
            f"good state is in {out / STATE_FILE}. Lower the learning rate or the reward scale, "
            "or look for extreme values in the data with `gem-policy doctor`."
        )


@torch.no_grad()
def judge(replay: Replay, value: ValueLearner, config: TrainConfig) -> Replay:
    """The same transitions with the critics' targets, by the finished values.

    ``[R + gamma^n V_e(s_n) - V_e(s)] / sigma``: R the discounted rewards of the next n =
    ``critic_steps`` steps, sigma the standard deviation over the dataset of the members' mean.
    Advantages of any task have the same scale, for the weights' temperature and for lambda alike
    (our choice).
    """
    values = torch.cat([value.values(rows) for rows in torch.split(replay.rows, ROWS)], -1)
    episode = replay.index - torch.arange(len(replay), device=replay.index.device)
    returns, discounts, taken = look_ahead(
        replay.rewards, replay.continues, episode, config.critic_steps, config.discount
    )
    after = discounts * values[:, replay.index + taken]
    advantages = (returns + after - values[:, replay.index]).T
    scale = advantages.mean(-1).std(correction=0).clamp(min=1e-12)
    return replace(replay, advantages=advantages / scale)


@torch.no_grad()
def weigh(replay: Replay, critic: CriticLearner, config: TrainConfig) -> Replay:
    """The same transitions with the actor's weights, by the finished critics' lower bounds.

    Less their mean over the dataset, so that pessimism about all actions alike changes nothing.
    """
    parts = [
        lower_bound(
            critic.critics(replay.rows[index], actions.unsqueeze(-2)).squeeze(-1),
            config.weight_kappa,
        )
        for index, actions in zip(
            torch.split(replay.index, ROWS), torch.split(replay.actions, ROWS), strict=True
        )
    ]
    bound = torch.cat(parts)
    weights = advantage_weights(bound - bound.mean(), config.weight_temperature, config.weight_max)
    return replace(replay, weights=weights)


@torch.no_grad()
def calibrate(behavior: torch.nn.Module, replay: Replay) -> Float[Tensor, f" {CALIBRATION_POINTS}"]:
    """Quantiles 0, 0.1, ..., 100 % of log beta on held-out actions of the dataset."""
    parts = [
        behavior(replay.rows[index]).log_prob(actions.unsqueeze(-2)).squeeze(-1)
        for index, actions in zip(
            torch.split(replay.index, ROWS), torch.split(replay.actions, ROWS), strict=True
        )
    ]
    levels = torch.linspace(0, 1, CALIBRATION_POINTS, dtype=torch.float64)
    ordered = torch.cat(parts).double().cpu().sort().values
    place = levels * (ordered.shape[0] - 1)
    low = ordered[place.floor().long()]
    high = ordered[place.ceil().long()]
    # Rounded only now, and made monotone: interpolation may fall by one unit in the last place.
    return torch.cummax((low + (high - low) * place.frac()).float(), 0).values


def export(
    dataset: Dataset,
    prepared: Prepared,
    learners: Mapping[str, Learner],
    net: NetworkConfig,
    selection: SelectionConfig,
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """The deployed policy: actor, behavior model, critics, statistics, calibration."""
    modules = {name: learners[name].modules[name] for name in ("behavior", "critic", "actor")}
    tensors = {
        f"{name}.{key}": value.detach()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    tensors |= {
        "observation.mean": prepared.normalizer.mean,
        "observation.std": prepared.normalizer.std,
        "action.low": prepared.scaler.low,
        "action.high": prepared.scaler.high,
        "calibration.log_behavior": calibrate(modules["behavior"], prepared.held_out),
    }
    config = PolicyConfig(net, selection, dataset.observation_space, dataset.action_space)
    return Checkpoint(config, tensors, provenance)
