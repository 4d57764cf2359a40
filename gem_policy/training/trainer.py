"""A training run: behavior model, state values, critics, actor, then one checkpoint.

In phases, because each needs only what came before: the critics are learned in-sample and never
ask the actor; the actor's weights are computed once, from the finished critics. That is cheaper
than training all at once and gives the actor the best advantages there are.

Every random number is a function of (seed, phase, update), so a run that was killed and resumed is
bit for bit the run that was not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gem_policy import checkpoint as files
from gem_policy.checkpoint import Checkpoint
from gem_policy.config import (
    NetworkConfig,
    SelectionConfig,
    from_mapping,
    require,
    require_count,
)
from gem_policy.devices import choose_device
from gem_policy.errors import TrainingError
from gem_policy.spaces import observation_size
from gem_policy.training import life_signs
from gem_policy.training.advantages import judge_both
from gem_policy.training.config import TrainConfig
from gem_policy.training.cuda_graph import records, updates_of
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.divergence import stop_if_diverged, value_bound
from gem_policy.training.early_stopping import BestWeights
from gem_policy.training.export import export, finish, provenance_of, what_is_known
from gem_policy.training.few_demonstrations import settle_decay, widths
from gem_policy.training.generalization import SelectionChoice, guide, is_behavior, measure
from gem_policy.training.learners import (
    ActorLearner,
    BehaviorLearner,
    CriticLearner,
    Learner,
    ValueLearner,
    expect,
)
from gem_policy.training.lookahead_learner import LookaheadLearner
from gem_policy.training.preparation import Prepared, check_training_room, prepare
from gem_policy.training.replay import Batch, Replay, Sampler
from gem_policy.training.reward_scale import RewardScale
from gem_policy.training.run_folder import held
from gem_policy.training.spread import critic_spread, spread_metrics
from gem_policy.training.state import (
    TrainState,
    last_good_state,
    load_state,
    save_learners,
    stop_if_broken,
)
from gem_policy.training.validation import evenly_spaced, held_out_batch, held_out_metrics

PHASES: dict[str, type[Learner]] = {
    "behavior": BehaviorLearner,
    "value": ValueLearner,
    "critic": CriticLearner,
    "actor": ActorLearner,
}
Evaluate = Callable[[Checkpoint], Mapping[str, float]]


@dataclass(frozen=True)
class Progress:
    """What a run tells while it works.

    Attributes:
        phase: ``behavior``, ``value``, ``critic`` or ``actor``.
        step: Updates done in the phase.
        updates: Updates of the phase.
        done: Updates done in the whole run; those that early stopping spares count as done.
        total: Updates of the whole run.
        metrics: Numbers to log; empty except every ``log_every`` updates and at evaluations.
    """

    phase: str
    step: int
    updates: int
    done: int
    total: int
    metrics: Mapping[str, float]


def fit(
    dataset: Dataset | str | Path,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    network: Mapping[str, Any] | None = None,
    selection: SelectionConfig | Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], None] | None = None,
    log_every: int = 500,
    save_seconds: float = 60.0,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    cuda_graph: bool | None = None,
    compiled: bool = False,
) -> Path:
    """Train a policy, or go on with a run that was stopped, and write its checkpoint.

    Args:
        dataset: What `gem_policy.training.load` returned, or what it takes: an id or a path.
        out: Folder of the run: its state while it works, ``model.safetensors`` at its end.
        config: Training settings.
        network: Changes to `NetworkConfig`'s defaults, such as ``{"critics": 8}``.
        selection: Selection settings of the policy, or changes such as ``{"kappa": 1.0}`` to what
            it has without any: the defaults, but the actor's mode alone (``candidates`` 1) where
            too little is known of held-out episodes; see ``TrainConfig.cautious``.
        device: Where to train.
        progress: Called after every update.
        log_every: Updates between two readings of the metrics.
        save_seconds: Seconds between two savings of the state.
        evaluate: Given the policy as it stands, at the end of the actor's phase and before; its
            numbers join the metrics as ``evaluation/...``. It changes nothing about the run.
        evaluate_every: Updates of the actor between two such calls; None: only the one at the end.
        cuda_graph: Whether to record the update of each phase once, and launch it as one CUDA
            graph, ten times as fast; see `gem_policy.training.cuda_graph`. None: where it can be.
        compiled: Whether `torch.compile` makes the code of the updates: 80 to 89 % of the
            time on a CPU (`benchmarks/training_speed.py`), once every phase is compiled, for which
            a C++ compiler is needed (on a GPU Triton). The run is another one, to rounding, but the
            same when it is resumed with it.

    Returns:
        The path of the checkpoint.

    Warns:
        TrainingWarning: A component of a mixture is unused at the end of its phase, or all are as
            good as one, or the critics agree better off the data than on it, or critics or behavior
            model know too little of held-out episodes.

    Raises:
        TrainingError: A loss became NaN or infinite, or the values larger than the rewards allow
            (the last good state is kept), the run in ``out`` was started with other settings,
            another run is at work in it, the data hold nothing to learn from, ``cuda_graph``
            without CUDA, or it or ``compiled`` with dropout.
        ConfigError: A setting is unknown or out of range, the device is not there, or ``compiled``
            where torch cannot compile.
        CheckpointError: ``out`` cannot be a folder, or the disk is full or not writable; the last
            saved state is untouched.
        DatasetError: The dataset cannot be read, or training on it would not fit into memory.
    """
    if evaluate_every is not None:
        require_count("evaluate_every", evaluate_every)
    require_count("log_every", log_every)
    dataset = dataset if isinstance(dataset, Dataset) else load(dataset)
    out = Path(out)
    config = settle_decay(config or TrainConfig(), dataset)
    net = network_for(dataset, network)
    where = choose_device(device)
    cuda_graph = records(cuda_graph, config, where)
    check_settings(config, net, selection, compiled)
    run = identity(dataset, config, net)
    with held(out):
        saved = load_state(out, run, updates_of_phases(config))
        check_training_room(dataset)
        prepared = prepare(dataset, config, where)
        provenance = provenance_of(dataset, prepared, config)

        def play(learners: Mapping[str, Learner]) -> dict[str, float]:
            if evaluate is None:
                return {}
            # As it will be deployed: the critics are finished before the actor is played.
            known, _ = what_is_known(prepared, learners, config)
            chosen = known.selection(config, selection)
            now = export(dataset, prepared, learners, net, chosen, provenance)
            return {f"evaluation/{key}": float(value) for key, value in evaluate(now).items()}

        every = None if evaluate is None else evaluate_every or config.actor_updates
        tell = progress or (lambda now: None)
        told = _Told(run, out, tell, log_every, save_seconds, play, every, cuda_graph, compiled)
        learners = _train(prepared, net, config, where, saved, told)
        made = finish(dataset, prepared, learners, net, selection, config)
        path = out / files.WEIGHTS_FILE
        files.save(made, path)
        return path


def network_for(dataset: Dataset, changes: Mapping[str, Any] | None) -> NetworkConfig:
    """The networks that fit a dataset's spaces and size, with changes to the defaults.

    Raises:
        ConfigError: A change is unknown or out of range, or contradicts the dataset.
    """
    sizes = {
        "observation_size": observation_size(dataset.observation_space),
        "action_size": int(dataset.action_space.shape[0]),
    }
    net = from_mapping(NetworkConfig, {**sizes, **widths(dataset), **(changes or {})}, "network")
    for name, size in sizes.items():
        require(getattr(net, name) == size, name, getattr(net, name), f"{size}, as in the dataset")
    return net


def check_settings(
    config: TrainConfig, net: NetworkConfig, selection: SelectionChoice, compiled: bool
) -> None:
    """Refuse settings that no phase, or a late one, could work with.

    Raises:
        ConfigError: A selection setting is unknown or out of range.
        TrainingError: Settings contradict each other.
    """
    if not isinstance(selection, SelectionConfig):
        SelectionConfig().replace(**(selection or {}))
    if net.critic_lookahead and config.critic_steps != 1:
        raise TrainingError(
            f"Critics that look ahead see one step, got critic_steps={config.critic_steps}. "
            "Leave it at 1, or set critic_lookahead to False."
        )
    if compiled and config.dropout:
        raise TrainingError(
            f"An update with dropout={config.dropout} draws new masks and cannot be compiled. "
            "Leave out compiled, or dropout."
        )


def identity(dataset: Dataset, config: TrainConfig, net: NetworkConfig) -> dict[str, Any]:
    """What a run is, as a JSON object: it is resumed only as that."""
    return {
        "dataset": dataset.id,
        "steps": len(dataset.transitions),
        "checksum": dataset.transitions.checksum,
        "reward_unit": RewardScale.of(dataset, config).unit,
        "train": dataclasses.asdict(config),
        "network": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(net).items()},
    }


def updates_of_phases(config: TrainConfig) -> dict[str, int]:
    """The updates of every phase, in order."""
    return {phase: getattr(config, f"{phase}_updates") for phase in PHASES}


def start_learner(
    name: str, net: NetworkConfig, config: TrainConfig, device: torch.device
) -> Learner:
    """The learner of a phase as it is before its first update; the same on every device."""
    # Weights are made on the CPU, so that a seed means the same on every device.
    generator = torch.Generator().manual_seed((config.seed << 8) ^ list(PHASES).index(name))
    kind = PHASES[name]
    if kind is CriticLearner and net.critic_lookahead:
        kind = LookaheadLearner
    return kind(net, config, generator, device)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Told:
    """How a run goes: what it is, whom it tells, when it saves and plays, how it updates."""

    run: Mapping[str, Any]
    out: Path
    progress: Callable[[Progress], None]
    log_every: int
    save_seconds: float
    play: Callable[[Mapping[str, Learner]], dict[str, float]]
    play_every: int | None
    cuda_graph: bool
    compiled: bool

    def reads_after(self, learner: Learner) -> bool:
        """Whether the metrics of the next update are to be read."""
        done = learner.step + 1
        return (
            done % self.log_every == 0
            or done == learner.updates
            or (isinstance(learner, ActorLearner) and self._play_due(done))
        )

    def _play_due(self, done: int) -> bool:
        return self.play_every is not None and done % self.play_every == 0

    def plays(self, learner: Learner) -> bool:
        """Whether the policy is to be played after this update."""
        last = self.play_every is not None and learner.step == learner.updates
        return isinstance(learner, ActorLearner) and (self._play_due(learner.step) or last)


def _train(
    prepared: Prepared,
    net: NetworkConfig,
    config: TrainConfig,
    device: torch.device,
    saved: TrainState | None,
    told: _Told,
) -> dict[str, Learner]:
    """All phases, from the saved state if there is one."""
    learners: dict[str, Learner] = {}
    training, held_out = prepared.training, prepared.held_out
    names = list(PHASES)
    for number, name in enumerate(names):
        learner = start_learner(name, net, config, device)
        learners[name] = learner
        if saved is not None and number <= names.index(saved.phase):
            done = saved.step if name == saved.phase else learner.updates
            learner.restore(saved.own(name), done)
        if isinstance(learner, CriticLearner):
            value = expect(learners["value"], ValueLearner)
            training, held_out = judge_both(training, held_out, value, config)
            learner.begin(value, training)
        elif isinstance(learner, ActorLearner):
            known = measure(training, held_out, learners)
            if is_behavior(training, known, config):
                _become_clone(learners, config, told)
            critic = expect(learners["critic"], CriticLearner)
            training, held_out = guide(training, held_out, known, critic, config)
        if learner.step == learner.updates:
            continue  # finished before: it says nothing new, and the state on disk is further on
        best = None
        if config.patience and isinstance(learner, BehaviorLearner | ActorLearner):
            best = BestWeights(learner)
            if saved is not None and name == saved.phase:
                best.restore(saved.own(f"best/{name}"))
        _run_phase(number, learners, training, held_out, config, told, best)
    return learners


def _become_clone(learners: Mapping[str, Learner], config: TrainConfig, told: _Told) -> None:
    """End the actor's phase with the behavior model's weights, unless it has ended before."""
    actor = expect(learners["actor"], ActorLearner)
    if actor.step < actor.updates and actor.become(
        expect(learners["behavior"], BehaviorLearner).model
    ):
        save_learners(told.run, "actor", learners, told.out)
        reading = told.play(learners) if told.plays(actor) else {}
        total = sum(updates_of_phases(config).values())
        told.progress(Progress("actor", actor.step, actor.updates, total, total, reading))


def _run_phase(
    number: int,
    learners: Mapping[str, Learner],
    training: Replay,
    held_out: Replay,
    config: TrainConfig,
    told: _Told,
    best: BestWeights | None,
) -> None:
    """The remaining updates of one phase, saving and reporting on the way."""
    name = list(PHASES)[number]
    learner = learners[name]
    sampler = Sampler(len(training), config.batch_size, config.seed, number, training.device)
    lengths = list(updates_of_phases(config).values())
    before, total = sum(lengths[:number]), sum(lengths)
    unseen = held_out_batch(held_out)
    bound = value_bound(training, config.discount)
    last_save = time.monotonic()
    if told.compiled:
        learner.make_compiled()
    update = updates_of(learner, training, sampler, told.cuda_graph)
    while learner.step < learner.updates:
        # Early stopping may end the phase with any of its measurements.
        ends = best is not None and (learner.step + 1) % config.validate_every == 0
        metrics = update(ends or told.reads_after(learner))
        step = learner.step  # of the metrics; early stopping moves the learner's to the end
        if best is not None:
            _validate(name, learner, unseen, best, config)
        reading: dict[str, float] = {}
        last, plays = learner.step == learner.updates, told.plays(learner)
        if step % told.log_every == 0 or last or plays:
            reading = {key: float(value) for key, value in metrics.items()}
            stop_if_broken(reading, name, step, told.out)
            stop_if_diverged(reading, bound, name, step, last_good_state(told.out))
            reading |= held_out_metrics(name, learner, unseen)
            if isinstance(learner, CriticLearner) and last:
                reading |= spread_metrics(critic_spread(learner.critics, unseen, config.seed))
            if plays:
                reading |= told.play(learners)
        done = before + learner.step
        told.progress(Progress(name, step, learner.updates, done, total, reading))
        # Only right after a healthy reading, so that the state on disk is always a good one.
        if reading and time.monotonic() - last_save >= told.save_seconds:
            kept = {} if best is None else best.tensors()
            more = {f"best/{name}/{key}": value for key, value in kept.items()}
            save_learners(told.run, name, learners, told.out, more)
            last_save = time.monotonic()
    save_learners(told.run, name, learners, told.out)
    if isinstance(learner, BehaviorLearner | ActorLearner):
        seen = evenly_spaced(training, life_signs.ROWS)
        life_signs.warn_of_lost_components(name, learner.model, seen)


def _validate(
    phase: str, learner: Learner, unseen: Batch, best: BestWeights, config: TrainConfig
) -> None:
    """Note the held-out score where it is time to; end the phase with the best weights."""
    last = learner.step == learner.updates
    if learner.step % config.validate_every and not last:
        return
    best.see(held_out_metrics(phase, learner, unseen)[f"{phase}/held_out_log_prob"])
    if last or best.stale >= config.patience:
        best.put_back()
        learner.step = learner.updates  # whatever is saved from here on is a finished phase
