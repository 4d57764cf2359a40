"""What the arrays alone reveal, without the environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gem_policy.training.dataset import action_space_problem
from gem_policy.training.doctor.evidence import Evidence
from gem_policy.training.doctor.report import Finding

Array = NDArray[Any]

EXPLODING = 1000.0  # times the 99th percentile of a dimension's absolute deviation
OUTSIDE = 0.1  # of a dimension's range: what the loader still clips
STUCK = 0.9  # share of steps in which an action dimension sits at a bound
JUMP = 30.0  # times the 99th percentile of the step length
SHIFT_GAIN = 0.25  # of explained variance, before another alignment is believed
SAMPLE = 20_000


def check_episodes(evidence: Evidence) -> Iterator[Finding]:
    """Number of episodes, and how they end."""
    count = len(evidence.lengths)
    if count < 2:
        yield Finding(
            "one-episode",
            "error",
            f"The dataset has {count} usable episode.",
            "Record more, or cut it where it was reset: nothing is left to check against.",
        )
    if evidence.source.total_steps != evidence.steps and count == evidence.source.total_episodes:
        yield Finding(
            "wrong-count",
            "error",
            f"The metadata states {evidence.source.total_steps} steps, the data has "
            f"{evidence.steps}.",
            "The dataset was changed by hand or half written: make it again.",
        )
    last = evidence.last
    terminated, truncated = evidence.terminations, evidence.truncations
    silent = int((~(terminated | truncated)[last]).sum())
    if silent:
        yield Finding(
            "no-end",
            "warning",
            f"{silent} of {count} episodes end with neither termination nor truncation.",
            "They are taken as cut: values are bootstrapped from the last observation. If they "
            "ended because the task did, mark them as terminated.",
        )
    inside = terminated | truncated
    inside[last] = False
    if inside.any():
        yield Finding(
            "end-inside",
            "warning",
            f"{int(inside.sum())} steps are marked as an end but the episode goes on.",
            "Split these episodes there: what follows is a reset, not a consequence of the action.",
        )


def check_finite(evidence: Evidence) -> Iterator[Finding]:
    """NaN and infinity."""
    of_rows = np.repeat(evidence.numbers, evidence.lengths + 1)
    of_steps = evidence.numbers[evidence.episode]
    for name in ("observations", "actions", "rewards"):
        array = getattr(evidence, name)
        bad = ~np.isfinite(array)
        if bad.any():
            where = bad.reshape(len(bad), -1).any(1)
            episodes = np.unique((of_rows if name == "observations" else of_steps)[where]).tolist()
            yield Finding(
                f"nan-{name}",
                "error",
                f"{int(bad.sum())} NaN or infinite {name} in {int(where.sum())} rows, in the "
                f"episodes {episodes}.",
                "Leave these episodes out (`episode_filter` of `load`), and find out what the "
                "simulator did.",
            )


def check_observations(evidence: Evidence) -> Iterator[Finding]:
    """Dimensions that say nothing, or too much."""
    values = np.where(np.isfinite(evidence.observations), evidence.observations, 0.0)
    constant = np.ptp(values, axis=0) == 0.0
    if constant.any():
        yield Finding(
            "constant-observation",
            "note",
            f"{int(constant.sum())} of {values.shape[1]} observation dimensions never change: "
            f"{_list(evidence.dimensions, constant)}.",
            "They carry no information. A policy trained on them has no idea what another value "
            "means: check that the environment keeps them too.",
        )
    deviation = np.abs(values - np.median(values, axis=0))
    usual = np.quantile(deviation, 0.99, axis=0)
    exploding = deviation.max(axis=0) > EXPLODING * np.maximum(usual, 1e-6)
    exploding &= ~constant & (usual > 0)
    if exploding.any():
        worst = int(np.argmax(deviation.max(axis=0) / np.maximum(usual, 1e-12) * exploding))
        yield Finding(
            "exploding-observation",
            "warning",
            f"Observation dimensions {_list(evidence.dimensions, exploding)} have outliers: "
            f"{evidence.dimensions[worst]} reaches {deviation[:, worst].max():.3g} from its "
            f"median, 99 % of its values stay within {usual[worst]:.3g}.",
            "Statistics for normalization follow the outliers. Drop the episodes in which the "
            "simulator became unstable.",
        )


def check_actions(evidence: Evidence) -> Iterator[Finding]:
    """Bounds: left, or never left."""
    space = evidence.source.action_space
    if action_space_problem(space) is not None:  # `gather` has said so
        return
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    actions, span = evidence.actions, high - low
    outside = (actions < low) | (actions > high)
    if outside.any():
        furthest = (np.maximum(low - actions, actions - high) / span).max(axis=0)
        far = bool((furthest > OUTSIDE).any())
        yield Finding(
            "actions-outside",
            "error" if far else "warning",
            f"{outside.mean():.2%} of all action entries lie outside of the space, the furthest by "
            f"{furthest.max():.1%} of the range, in dimension {int(furthest.argmax())}.",
            "They are in other units, or were stored before the environment clipped them: rescale "
            "or clip them, and record what the simulator received."
            if far
            else "The loader clips them and says how many; the environment did the same.",
        )
    at_bounds = ((actions <= low + 1e-6 * span) | (actions >= high - 1e-6 * span)).mean(axis=0)
    if (at_bounds > STUCK).any():
        yield Finding(
            "actions-stuck",
            "warning",
            f"Action dimensions {_list(None, at_bounds > STUCK)} sit at a bound in "
            f"{at_bounds.max():.0%} of the steps.",
            "A density of such actions is a spike at the edge of the box. Check the scale of the "
            "actions; a bang-bang policy is the other explanation.",
        )
    still = np.ptp(np.nan_to_num(actions), axis=0) == 0.0
    if still.any():
        yield Finding(
            "constant-action",
            "warning",
            f"Action dimensions {_list(None, still)} never change.",
            "Nothing can be learned about them: leave them out of the action space.",
        )


def check_rewards(evidence: Evidence) -> Iterator[Finding]:
    """Rewards from which nothing can be learned."""
    rewards = evidence.rewards[np.isfinite(evidence.rewards)]
    if not len(rewards):  # `check_finite` has said so
        return
    if np.ptp(rewards) == 0.0:
        yield _constant_reward(float(rewards[0]), bool(evidence.terminations.any()))
        return
    returns = evidence.returns
    if len(returns) > 1 and np.ptp(returns) == 0.0 and not _sparse(rewards):
        yield Finding(
            "equal-returns",
            "note",
            f"All {len(returns)} episodes have the same return, {returns[0]:g}.",
        )


def _constant_reward(reward: float, ends: bool) -> Finding:
    if ends and reward != 0.0:  # `fit` accepts these, too
        aim = "late" if reward > 0 else "early"
        return Finding(
            "constant-reward",
            "note",
            f"Every reward is {reward:g}, and episodes terminate: what is learned is to terminate "
            f"{aim}.",
            "Nothing to do for a task that is about that; else rewards were lost in a conversion.",
        )
    return Finding(
        "constant-reward",
        "error",
        f"Every reward is {reward:g}{'' if ends else ', and no episode terminates'}.",
        "No action is better than another. With sparse rewards, no episode reached the goal, or "
        "the rewards were lost in a conversion.",
    )


def check_duplicates(evidence: Evidence) -> Iterator[Finding]:
    """Steps that occur more than once, bit for bit."""
    rows = evidence.row
    table = np.concatenate(
        [evidence.observations[rows], evidence.actions, evidence.observations[rows + 1]], axis=1
    )
    packed = np.ascontiguousarray(table).view(
        np.dtype((np.void, table.dtype.itemsize * table.shape[1]))
    )
    repeated = len(table) - len(np.unique(packed))
    if repeated > 0.001 * len(table):
        yield Finding(
            "duplicates",
            "warning",
            f"{repeated} of {len(table)} steps ({repeated / len(table):.1%}) occur before in the "
            "dataset, bit for bit.",
            "If demonstrations were repeated on purpose, fine: they weigh more. Otherwise the same "
            "file went in twice; held-out episodes are then not held out.",
        )


def check_order(evidence: Evidence) -> Iterator[Finding]:
    """Whether the next observation follows from the observation and the action beside it."""
    rows = evidence.row
    now = np.nan_to_num(evidence.observations[rows], posinf=0.0, neginf=0.0)
    change = np.nan_to_num(evidence.observations[rows + 1], posinf=0.0, neginf=0.0) - now
    scale = now.std(axis=0)
    moving = (scale > 1e-6) & (change.std(axis=0) > 1e-9)
    if not moving.any() or evidence.steps < 200:
        return
    yield from _jumps(evidence, change[:, moving] / scale[moving])
    yield from _shifted(evidence, now[:, moving] / scale[moving], change[:, moving] / scale[moving])


def _jumps(evidence: Evidence, change: Array) -> Iterator[Finding]:
    length = np.sqrt((change**2).mean(axis=1))
    usual = float(np.quantile(length, 0.99))
    jumps = np.nonzero(length > JUMP * max(usual, 1e-9))[0]
    if len(jumps):
        episodes = np.unique(evidence.episode[jumps])
        yield Finding(
            "jumps",
            "warning",
            f"{len(jumps)} steps in {len(episodes)} episodes go {length[jumps].max() / usual:.0f} "
            f"times as far as 99 % of all steps (first: episode {evidence.numbers[episodes[0]]}).",
            "A reset inside of an episode looks like this: split the episode there.",
        )


def _shifted(evidence: Evidence, now: Array, change: Array) -> Iterator[Finding]:
    """Compare how well the change of state follows from the action beside it and its neighbors."""
    episode = evidence.episode
    inner = np.nonzero((episode[2:] == episode[1:-1]) & (episode[:-2] == episode[1:-1]))[0] + 1
    if len(inner) < 200:
        return
    if len(inner) > SAMPLE:
        inner = np.sort(np.random.default_rng(0).choice(inner, SAMPLE, replace=False))
    actions = np.nan_to_num(evidence.actions)
    # What the state and the neighbors' actions explain already is taken out of both sides.
    explained = {}
    for shift in (-1, 0, 1):
        others = [actions[inner + s] for s in (-1, 0, 1) if s != shift]
        known = np.hstack([now[inner], *others, np.ones((len(inner), 1))])
        explained[shift] = _partial(known, actions[inner + shift], change[inner])
    best = max(explained, key=lambda shift: explained[shift])
    # Actions linger in a body, and follow from what they led to: only a clear lead counts.
    if best != 0 and explained[best] > explained[0] + SHIFT_GAIN:
        beside = "before" if best < 0 else "after"
        yield Finding(
            "shifted-actions",
            "error",
            f"The change from one observation to the next follows from the action {beside} it "
            f"({explained[best]:.0%} of the variance) rather than from its own "
            f"({explained[0]:.0%}).",
            "Actions and observations are off by one row, as after joining T + 1 observations "
            "and T actions of several episodes: convert the data again, episode by episode.",
        )


def _partial(known: Array, cause: Array, effect: Array) -> float:
    """Largest share of any effect's remaining variance that `cause` explains linearly."""
    known, cause, effect = (np.asarray(array, dtype=np.float64) for array in (known, cause, effect))

    def without(array: Array, basis: Array) -> Array:
        return array - basis @ np.linalg.lstsq(basis, array, rcond=None)[0]

    left = without(effect, known)
    total = (left**2).sum(axis=0)
    cause = without(cause, known)
    remaining = (without(left, cause) ** 2).sum(axis=0)
    matters = total > 1e-6 * (effect**2).sum(axis=0)
    if not matters.any():
        return 0.0
    return float((1.0 - remaining[matters] / total[matters]).max())


def _sparse(rewards: Array) -> bool:
    return len(np.unique(rewards[:SAMPLE])) <= 2


def _list(names: Sequence[str] | None, chosen: Array) -> str:
    indices = np.nonzero(chosen)[0]
    shown = [names[i] if names is not None else str(i) for i in indices[:8]]
    return ", ".join(shown) + (", ..." if len(indices) > 8 else "")
