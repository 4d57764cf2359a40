"""Playing recorded actions again, each from its recorded state, and comparing what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.training.doctor.environment import Environment
from gem_policy.training.doctor.evidence import Evidence
from gem_policy.training.doctor.report import Finding

Array = NDArray[Any]

EPISODES = 5
STEPS = 40  # in each of them
TOLERANCE = 0.05  # of the typical change of a dimension in one step
REWARD_TOLERANCE = 1e-3
FAILING = 0.1  # share of replayed steps


def check_replay(evidence: Evidence, env: Environment) -> Iterator[Finding]:
    """One simulator step from recorded states, or from recorded seeds, against the next row."""
    yield from _goal_rewards(evidence, env)
    count = len(evidence.lengths)
    chosen = np.unique(np.linspace(0, count - 1, min(EPISODES, count)).astype(int))
    results: list[tuple[Array, float, Array, float]] = []
    for index in chosen:
        results += _replay(evidence, env, int(index))
    if not results:
        yield Finding(
            "no-replay",
            "note",
            "The steps cannot be played again: the dataset records neither simulator states "
            "(`qpos`, `qvel` in infos) nor seeds of resets.",
        )
        return
    got, rewards = np.stack([r[0] for r in results]), np.array([r[1] for r in results])
    stored, paid = np.stack([r[2] for r in results]), np.array([r[3] for r in results])
    rows = evidence.row[evidence.sample(20_000)]
    change = np.nan_to_num(evidence.observations[rows + 1] - evidence.observations[rows])
    scale = TOLERANCE * change.std(axis=0) + 1e-4 * (1.0 + np.abs(np.nan_to_num(stored)))
    name = env.spec.id if env.spec is not None else str(env)
    off = (np.abs(got - stored) > scale).any(axis=1) | ~np.isfinite(stored).all(axis=1)
    if off.mean() > FAILING:
        yield Finding(
            "replay-differs",
            "error",
            f"{off.mean():.0%} of {len(off)} steps, played again in `{name}`, end in another "
            "observation than the recorded one.",
            "Either observations and actions are paired wrongly, or the dataset comes from another "
            "version of the environment. Do not train before you know which.",
        )
    wrong = np.abs(rewards - paid) > REWARD_TOLERANCE * (1.0 + np.abs(paid))
    if wrong.mean() > FAILING:
        worst = int(np.abs(rewards - paid).argmax())
        yield Finding(
            "reward-differs",
            "warning",
            f"{wrong.mean():.0%} of {len(wrong)} steps, played again, earn another reward (for "
            f"example {rewards[worst]:.4g} instead of {paid[worst]:.4g}).",
            "The rewards were scaled, shifted or computed by another version of the environment: "
            "normalized scores and returns do not belong together.",
        )
    if off.mean() <= FAILING and wrong.mean() <= FAILING:
        yield Finding(
            "replay-agrees",
            "note",
            f"{len(results)} steps, played again, gave the recorded observations and rewards.",
        )


def _goal_rewards(evidence: Evidence, env: Environment) -> Iterator[Finding]:
    """In goal environments the reward is a function that can be asked directly."""
    space = evidence.source.observation_space
    compute = getattr(env.unwrapped, "compute_reward", None)
    needed = ("achieved_goal", "desired_goal")
    if compute is None or not isinstance(space, gym.spaces.Dict) or not set(needed) <= set(space):
        return
    steps = evidence.sample(5_000)
    rows = evidence.row[steps] + 1
    columns = _columns(space)
    goals = [evidence.observations[rows][:, columns[name]].astype(np.float64) for name in needed]
    try:
        expected = np.array([float(compute(a, d, {})) for a, d in zip(*goals, strict=True)])
    except Exception:  # an environment that needs more than the goals
        return
    wrong = np.abs(expected - evidence.rewards[steps]) > REWARD_TOLERANCE * (1 + np.abs(expected))
    if wrong.mean() > 0.01:
        yield Finding(
            "reward-not-of-goal",
            "warning",
            f"{wrong.mean():.1%} of the rewards are not what the environment pays for the achieved "
            "and the desired goal of the next observation.",
            "The rewards were computed for another goal (relabeled, or for the goal of the "
            "evaluation), shifted, or paired with the wrong rows.",
        )


def _replay(
    evidence: Evidence, env: Environment, index: int
) -> list[tuple[Array, float, Array, float]]:
    episode = _read(evidence, int(evidence.numbers[index]))
    start = int(evidence.lengths[:index].sum())
    steps = np.arange(start, start + min(STEPS, int(evidence.lengths[index])))
    rows = evidence.row[steps]
    restore = _restorer(env, episode.infos or {})
    space = env.observation_space
    if gym.spaces.flatdim(space) != evidence.observations.shape[1]:
        return []
    results: list[tuple[Array, float, Array, float]] = []
    seed = _seed(evidence, int(evidence.numbers[index]))
    if restore is None and seed is None:
        return []
    with contextlib.suppress(ValueError, TypeError, KeyError, AssertionError):
        env.reset(seed=0 if seed is None else seed)
        for t, step in enumerate(steps):
            if restore is not None:
                restore(t, _goal(episode.observations, t))
            action = evidence.actions[step].reshape(env.action_space.shape or ())
            after, reward, *_ = env.unwrapped.step(action.astype(env.action_space.dtype))
            flat = np.asarray(gym.spaces.flatten(space, after), dtype=np.float64)
            results.append(
                (
                    flat,
                    float(reward),
                    evidence.observations[rows[t] + 1].astype(np.float64),
                    float(evidence.rewards[step]),
                )
            )
    return results


def _restorer(
    env: Environment, infos: Mapping[str, Any]
) -> Callable[[int, Array | None], None] | None:
    """How to put the simulator into the state of row t, if the dataset says enough."""
    inner: Any = env.unwrapped
    if hasattr(inner, "get_env_state") and hasattr(inner, "set_env_state"):
        # What it reports and what it accepts differ: the hammer reports its target, too.
        accepted = getattr(inner, "_state_space", None)
        names = list(accepted.spaces if accepted is not None else inner.get_env_state())
        if set(names) <= set(infos):
            return lambda t, _: inner.set_env_state({name: infos[name][t] for name in names})
    if not {"qpos", "qvel"} <= set(infos):
        return None
    body = next(
        (
            part
            for part in (inner, *(getattr(inner, n, None) for n in ("point_env", "ant_env")))
            if hasattr(part, "set_state")
        ),
        None,
    )
    if body is None or np.shape(infos["qpos"])[1:] != body.data.qpos.shape:
        return None

    def restore(t: int, goal: Array | None) -> None:
        body.set_state(infos["qpos"][t], infos["qvel"][t])
        if goal is not None:
            inner.goal = np.array(goal)

    return restore


def _goal(observations: Any, t: int) -> Array | None:
    if isinstance(observations, Mapping) and "desired_goal" in observations:
        return np.asarray(observations["desired_goal"][t])
    return None


def _read(evidence: Evidence, number: int) -> Any:
    import minari

    dataset = minari.MinariDataset(evidence.source.folder)
    return next(iter(dataset.iterate_episodes([number])))


def _seed(evidence: Evidence, number: int) -> int | None:
    import minari

    dataset = minari.MinariDataset(evidence.source.folder)
    stored = next(iter(dataset.storage.get_episode_metadata([number]))).get("seed")
    return None if stored is None else int(stored)


def _columns(space: gym.Space[Any]) -> dict[str, slice]:
    assert isinstance(space, gym.spaces.Dict)
    columns, first = {}, 0
    for name, inner in space.spaces.items():
        size = gym.spaces.flatdim(inner)
        columns[name] = slice(first, first + size)
        first += size
    return columns
