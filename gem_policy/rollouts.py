"""What each candidate of a policy is worth: rollouts of the simulator from saved moments.

A moment of an episode is saved; every candidate is played from it as the first action, and then
the policy goes on. Simulator and policy are deterministic, so one such rollout per candidate is
the exact return up to the horizon: no sampling noise flatters the best of N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.config import require_count
from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor
from gem_policy.simulators import Snapshot, restore, save

Tell = Callable[[], None]


@dataclass(frozen=True)
class Objective:
    """The return that candidates are compared by: ``sum_t discount^t (scale r_t + shift)``.

    Attributes:
        discount: gamma, per step.
        scale: Factor on the environment's reward.
        shift: Added to it after that.
        terminal_reward: A reward of at least this ends the return; None: terminations alone do.
    """

    discount: float
    scale: float = 1.0
    shift: float = 0.0
    terminal_reward: float | None = None

    @classmethod
    def of(cls, policy: GEMPolicy, kind: str) -> Objective:
        """What a policy is measured by.

        Args:
            policy: Its checkpoint holds the settings of the training.
            kind: ``"training"``: what the critics were trained to predict. ``"environment"``: the
                environment's own reward, with the discount of the training.

        Raises:
            ConfigError: Another kind, or the checkpoint does not say how it was trained.
        """
        train = policy.provenance.get("train")
        if not train:
            raise ConfigError(
                "The checkpoint does not say how it was trained, so there is no discount to "
                "measure with. Give an Objective of your own."
            )
        if kind == "environment":
            return cls(train["discount"])
        if kind != "training":
            raise ConfigError(f"`objective` must be 'training' or 'environment', got {kind!r}.")
        # What rewards were multiplied with, return_normalization and all.
        factor = policy.provenance.get("rewards", {}).get("factor", train["reward_scale"])
        return cls(train["discount"], factor, train["reward_shift"], train["terminal_reward"])

    def ends(self, reward: float, terminated: bool) -> bool:
        """Whether the return is over after a step."""
        return terminated or (self.terminal_reward is not None and reward >= self.terminal_reward)


@dataclass(frozen=True)
class Start:
    """A moment to rank candidates in.

    Attributes:
        snapshot: The simulator.
        observation: What the environment had said, in its own form.
        seed: Of the episode.
        step: Of the episode.
    """

    snapshot: Snapshot
    observation: Any
    seed: int
    step: int


@dataclass(frozen=True)
class Job:
    """One rollout to play: from where, with which first action, with which noise on the rest.

    Attributes:
        snapshot: The moment to restore.
        action: The first action, in environment units.
        noise: One row per later step, added in environment units; None for none.
    """

    snapshot: Snapshot
    action: NDArray[Any]
    noise: NDArray[Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a rollout.

    Attributes:
        value: Its return by the objective.
        ended: Whether the return ended by itself; False where the horizon cut it.
    """

    value: float
    ended: bool


@dataclass
class _Game:
    """A rollout at work in one environment."""

    env: gym.Env[Any, Any]
    number: int
    noise: NDArray[Any] | None = None
    observation: Any = None
    value: float = 0.0
    weight: float = 1.0
    steps: int = 0
    ended: bool = False
    kept: Start | None = None
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    def step(self, action: NDArray[Any], objective: Objective, horizon: int) -> bool:
        """Do an action; whether the rollout goes on."""
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        self.value += self.weight * (objective.scale * float(reward) + objective.shift)
        self.weight *= objective.discount
        self.steps += 1
        self.ended = objective.ends(float(reward), bool(terminated))
        return not (self.ended or truncated or self.steps >= horizon)


def collect(
    envs: Sequence[gym.Env[Any, Any]],
    predictor: Predictor,
    *,
    deterministic: bool,
    objective: Objective,
    limit: int,
    seeds: Sequence[int],
    progress: Tell | None = None,
) -> list[Start]:
    """One moment of each of several episodes, uniformly drawn from the steps that it took.

    One only, so that the moments are independent and intervals over them mean what they say.

    Args:
        envs: Environments to play in, without a time limit of their own.
        predictor: What acts, for all environments at once.
        deterministic: How it is asked.
        objective: Ends the episodes: what comes after its end is nobody's return.
        limit: Steps after which an episode is left.
        seeds: One per episode.
        progress: Called after every episode.
    """
    waiting = iter(range(len(seeds)))
    kept: dict[int, Start] = {}

    def begin(env: gym.Env[Any, Any]) -> _Game | None:
        for number in waiting:
            observation, _ = env.reset(seed=seeds[number])
            rng = np.random.default_rng((seeds[number], 1))  # 1: not the environment's own stream
            return _Game(env, number, observation=observation, rng=rng)
        return None

    def act(games: Sequence[_Game]) -> Iterator[bool]:
        for game in games:  # of k steps so far, each is the kept one with probability 1 / k
            if game.rng.random() * (game.steps + 1) < 1:
                now = save(game.env)
                game.kept = Start(now, game.observation, seeds[game.number], game.steps)
        actions = _decide(predictor, [g.observation for g in games], deterministic)
        for game, action in zip(games, actions, strict=True):
            yield game.step(action, objective, limit)

    for game in _play(envs, begin, act):
        assert game.kept is not None  # the first step is kept with probability 1
        kept[game.number] = game.kept
        if progress is not None:
            progress()
    return [kept[number] for number in range(len(seeds))]


def roll_out(
    envs: Sequence[gym.Env[Any, Any]],
    jobs: Sequence[Job],
    follow: Predictor,
    *,
    objective: Objective,
    horizon: int,
    progress: Tell | None = None,
) -> list[Outcome]:
    """Play every job: its first action, then the predictor's deterministic actions.

    Args:
        envs: Environments that were reset once, of the making of those the moments come from.
        jobs: What to play; as many at once as there are environments.
        follow: What acts after the first action.
        objective: What counts. Nothing is added for what may come after the horizon.
        horizon: Steps of a rollout, the first action included.
        progress: Called after every rollout.
    """
    require_count("horizon", horizon)
    waiting = iter(range(len(jobs)))
    done: dict[int, Outcome] = {}

    def finish(game: _Game) -> None:
        done[game.number] = Outcome(game.value, game.ended)
        if progress is not None:
            progress()

    def begin(env: gym.Env[Any, Any]) -> _Game | None:
        for number in waiting:
            job = jobs[number]
            restore(env, job.snapshot)
            game = _Game(env, number, noise=job.noise)
            if game.step(job.action, objective, horizon):
                return game
            finish(game)
        return None

    def act(games: Sequence[_Game]) -> Iterator[bool]:
        actions = _decide(follow, [g.observation for g in games], True)
        box = follow.action_space
        for game, action in zip(games, actions, strict=True):
            if game.noise is not None:
                noisy = action + game.noise[game.steps - 1]
                action = np.clip(noisy, box.low, box.high).astype(box.dtype)
            yield game.step(action, objective, horizon)

    for game in _play(envs, begin, act):
        finish(game)
    return [done[number] for number in range(len(jobs))]


def candidate_returns(
    envs: Sequence[gym.Env[Any, Any]],
    starts: Sequence[Start],
    actions: NDArray[Any],
    follow: Predictor,
    *,
    objective: Objective,
    horizon: int,
    repeats: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    progress: Tell | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Monte-Carlo return of every candidate of every moment.

    Args:
        envs: As for `roll_out`.
        starts: The moments.
        actions: Their candidates in environment units, shape (states, candidates, action).
        follow: What acts after the candidate.
        objective: What counts.
        horizon: Steps of a rollout.
        repeats: Rollouts per candidate; more than one only makes sense with noise.
        noise: Standard deviation of Gaussian noise on all actions but the first, in half ranges
            of the action space. The candidates of a moment meet the same noise.
        seed: Of the noise.
        progress: Called after every rollout.

    Returns:
        Returns and whether they ended before the horizon, both of shape
        (states, candidates, repeats).

    Raises:
        ConfigError: Repeats without noise, which would all be the same.
    """
    require_count("repeats", repeats)
    if repeats > 1 and noise == 0:
        raise ConfigError(
            f"{repeats} repeats without noise are {repeats} times the same rollout. Give noise, "
            "or one repeat."
        )
    box = follow.action_space
    half = noise * (box.high - box.low) / 2
    jobs = []
    for i, start in enumerate(starts):
        streams = [np.random.default_rng((seed, i, k)) for k in range(repeats)]
        noises = [
            rng.normal(size=(horizon, *box.shape)) * half if noise else None for rng in streams
        ]
        jobs += [Job(start.snapshot, a.astype(box.dtype), n) for a in actions[i] for n in noises]
    outcomes = roll_out(envs, jobs, follow, objective=objective, horizon=horizon, progress=progress)
    shape = (*actions.shape[:2], repeats)
    values = np.array([o.value for o in outcomes]).reshape(shape)
    return values, np.array([o.ended for o in outcomes]).reshape(shape)


def _play(
    envs: Sequence[gym.Env[Any, Any]],
    begin: Callable[[gym.Env[Any, Any]], _Game | None],
    act: Callable[[Sequence[_Game]], Iterator[bool]],
) -> Iterator[_Game]:
    """Games side by side, each finished one yielded and its place taken by the next."""
    games = [game for env in envs if (game := begin(env)) is not None]
    while games:
        # All of them act before any place is taken anew: `begin` plays in the environment.
        going = list(act(games))
        after: list[_Game] = []
        for game, goes_on in zip(games, going, strict=True):
            if goes_on:
                after.append(game)
                continue
            yield game
            if (following := begin(game.env)) is not None:
                after.append(following)
        games = after


def _decide(predictor: Predictor, observations: Sequence[Any], deterministic: bool) -> NDArray[Any]:
    """Actions for several environments at once, in environment units."""
    before, predictor.row_by_row = predictor.row_by_row, False
    try:
        return predictor.predict(_stack(observations), deterministic=deterministic)[0]
    finally:
        predictor.row_by_row = before


def _stack(observations: Sequence[Any]) -> Any:
    """Observations of one environment each as a batch."""
    if isinstance(observations[0], Mapping):
        return {key: _stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)
