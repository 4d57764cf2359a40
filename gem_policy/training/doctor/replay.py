"""Playing recorded actions again, each from its recorded state, and comparing what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import SpaceError
from gem_policy.spaces import ObservationReader
from gem_policy.training.doctor.environment import Environment, parse
from gem_policy.training.doctor.evidence import Evidence
from gem_policy.training.doctor.report import Finding

Array = NDArray[Any]

EPISODES = 5
STEPS = 40  # in each of them
TOLERANCE = 0.05  # of the typical change of a dimension in one step
REWARD_TOLERANCE = 1e-3
FAILING = 0.1  # share of replayed steps
LASTING = ("NormalizeObservation", "NormalizeReward")  # statistics that no reset takes back
HARMLESS = ("SupportMonitor",)  # holds a policy, but changes no step
OTHER_ENVIRONMENT = (
    "Either observations and actions are paired wrongly, or the dataset comes from another version "
    "of the environment. Do not train before you know which."
)


class _Step(NamedTuple):
    """A step that was played again: what came out, and what the dataset has."""

    got: Array
    reward: float
    stored: Array
    paid: float


class _Unplayable(Exception):
    """An episode cannot be played again; the message says why."""


class _Misfit(Exception):
    """The environment returns observations that do not fit the dataset's space."""


@dataclass(frozen=True)
class _Wrappers:
    """Names of the wrappers that the data were recorded through, besides those of `gym.make`.

    Attributes:
        rebuilt: Those that the environment here has, too.
        lost: Those whose part in the recorded steps cannot be played again.
    """

    rebuilt: tuple[str, ...]
    lost: tuple[str, ...]


def check_replay(evidence: Evidence, env: Environment) -> Iterator[Finding]:
    """One simulator step from recorded states, or from recorded seeds, against the next row."""
    wrappers = _wrappers(evidence)
    if not (wrappers.rebuilt or wrappers.lost):  # they may change rewards and goals
        yield from _goal_rewards(evidence, env)
    name = env.spec.id if env.spec is not None else str(env)
    try:
        steps, reason = _play(evidence, env, wrappers)
    except _Misfit as error:
        yield Finding(
            "replay-differs",
            "error",
            f"Played again, `{name}` returns other observations than the recorded ones: {error}",
            OTHER_ENVIRONMENT,
        )
        return
    if not steps:
        yield Finding("no-replay", "note", f"The steps cannot be played again: {reason}.")
        return
    yield from _compare(evidence, steps, name)


def _wrappers(evidence: Evidence) -> _Wrappers:
    text: Any = evidence.source.metadata.get("env_spec")
    spec = parse(text)
    if spec is None:
        return _Wrappers((), ())
    rebuilt = tuple(wrapper.name for wrapper in spec.additional_wrappers)
    # Those that hold a policy are not made again: see `gem_policy.env_specs`.
    told = [wrapper["name"] for wrapper in json.loads(text).get("additional_wrappers") or ()]
    left_out = [name for name in told if name not in rebuilt and name not in HARMLESS]
    return _Wrappers(rebuilt, (*left_out, *(name for name in rebuilt if name in LASTING)))


def _play(evidence: Evidence, env: Environment, wrappers: _Wrappers) -> tuple[list[_Step], str]:
    """The steps of a few episodes that can be played again, and what kept others from it.

    Raises:
        _Misfit: if what the environment returns cannot be compared at all.
    """
    count = len(evidence.lengths)
    chosen = np.unique(np.linspace(0, count - 1, min(EPISODES, count)).astype(int))
    steps: list[_Step] = []
    reason = ""
    for index in chosen:
        try:
            for step in _replay(evidence, env, wrappers, int(index)):
                steps.append(step)  # one by one: those before an error count
        except _Misfit:
            raise
        except _Unplayable as error:
            reason = str(error)
        except Exception as error:  # simulators are not choosy
            reason = f"it raises {type(error).__name__}: {error}"
    return steps, reason


def _compare(evidence: Evidence, steps: Sequence[_Step], name: str) -> Iterator[Finding]:
    got, stored = np.stack([s.got for s in steps]), np.stack([s.stored for s in steps])
    rewards, paid = np.array([s.reward for s in steps]), np.array([s.paid for s in steps])
    rows = evidence.row[evidence.sample(20_000)]
    change = np.nan_to_num(evidence.observations[rows + 1] - evidence.observations[rows])
    scale = TOLERANCE * change.std(axis=0) + 1e-4 * (1.0 + np.abs(np.nan_to_num(stored)))
    off = (np.abs(got - stored) > scale).any(axis=1) | ~np.isfinite(stored).all(axis=1)
    if off.mean() > FAILING:
        yield Finding(
            "replay-differs",
            "error",
            f"{off.mean():.0%} of {len(off)} steps, played again in `{name}`, end in another "
            "observation than the recorded one.",
            OTHER_ENVIRONMENT,
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
            f"{len(steps)} steps, played again, gave the recorded observations and rewards.",
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
    evidence: Evidence, env: Environment, wrappers: _Wrappers, index: int
) -> Iterator[_Step]:
    """Play an episode's first steps again.

    Raises:
        _Unplayable: if it says too little about where it began, or has other observations.
        _Misfit: see `_flatten`.
        Exception: whatever the environment raises.
    """
    if wrappers.lost:
        raise _Unplayable(
            f"they were recorded through {', '.join(wrappers.lost)}, whose part in them the "
            "dataset does not hold"
        )
    if gym.spaces.flatdim(env.observation_space) != evidence.observations.shape[1]:
        raise _Unplayable("the environment here has observations of another size")
    number, first = int(evidence.numbers[index]), int(evidence.lengths[:index].sum())
    steps = range(first, first + min(STEPS, int(evidence.lengths[index])))
    episode, started = _read(evidence, number), _start(evidence, number)
    restore = _restorer(env, episode.infos or {})
    # The state is the simulator's; wrappers may have one of their own, which nobody recorded.
    if restore is not None and not wrappers.rebuilt:
        env.reset(seed=started.get("seed", 0))
        yield from _from_states(evidence, env, steps, episode.observations, restore)
    elif "seed" in started:
        env.reset(**started)
        yield from _from_start(evidence, env, steps)
    elif restore is not None:
        raise _Unplayable(
            f"they were recorded through {', '.join(wrappers.rebuilt)}; the dataset holds states "
            "of the simulator, but none of wrappers, and no seeds of resets"
        )
    else:
        raise _Unplayable(
            "the dataset records neither simulator states (`qpos`, `qvel` in infos) nor seeds of "
            "resets"
        )


def _from_states(
    evidence: Evidence,
    env: Environment,
    steps: Sequence[int],
    observations: Any,
    restore: Callable[[int, Array | None], None],
) -> Iterator[_Step]:
    """Each step from its own state, below the time limit: the episode need not begin at 0."""
    for t, step in enumerate(steps):
        restore(t, _goal(observations, t))
        after, reward, *_ = env.unwrapped.step(_action(evidence, env, step))
        yield _step(evidence, env, step, after, reward)


def _from_start(evidence: Evidence, env: Environment, steps: Sequence[int]) -> Iterator[_Step]:
    """One step after another, as they were recorded: through all wrappers."""
    for step in steps:
        after, reward, terminated, truncated, _ = env.step(_action(evidence, env, step))
        yield _step(evidence, env, step, after, reward)
        if terminated or truncated:
            return


def _action(evidence: Evidence, env: Environment, step: int) -> Array:
    space = env.action_space
    action: Array = evidence.actions[step].reshape(space.shape or ()).astype(space.dtype)
    return action


def _step(evidence: Evidence, env: Environment, step: int, after: Any, reward: Any) -> _Step:
    return _Step(
        _flatten(evidence, env, after),
        float(reward),
        evidence.observations[evidence.row[step] + 1].astype(np.float64),
        float(evidence.rewards[step]),
    )


def _flatten(evidence: Evidence, env: Environment, observation: Any) -> Array:
    """What the environment returned, in the order of the dataset's columns.

    Raises:
        _Misfit: if keys, shapes or sizes differ.
    """
    space = evidence.source.observation_space
    if isinstance(space, gym.spaces.Dict) and isinstance(env.observation_space, gym.spaces.Dict):
        try:  # by key: Minari sorts the keys, environments need not
            flat = ObservationReader(space).read(observation, finite=False)[0].reshape(-1)
        except SpaceError as error:
            raise _Misfit(str(error)) from error
    else:
        flat = np.asarray(gym.spaces.flatten(env.observation_space, observation))
    expected = evidence.observations.shape[1]
    if flat.shape != (expected,):
        raise _Misfit(f"{flat.size} numbers, expected {expected}.")
    return flat.astype(np.float64)


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


def _start(evidence: Evidence, number: int) -> dict[str, Any]:
    """What an episode's `reset` was given, where that is recorded."""
    import minari

    dataset = minari.MinariDataset(evidence.source.folder)
    stored = next(iter(dataset.storage.get_episode_metadata([number])))
    if stored.get("seed") is None:
        return {}
    return {"seed": int(stored["seed"]), "options": stored.get("options")}


def _columns(space: gym.Space[Any]) -> dict[str, slice]:
    assert isinstance(space, gym.spaces.Dict)
    columns, first = {}, 0
    for name, inner in space.spaces.items():
        size = gym.spaces.flatdim(inner)
        columns[name] = slice(first, first + size)
        first += size
    return columns
