"""Values that no sum of the data's rewards can reach: a bootstrap that feeds on itself."""

from __future__ import annotations

from collections.abc import Mapping

from gem_policy.errors import TrainingError
from gem_policy.training.replay import Replay

# Untrained networks and expectiles overshoot; a diverging value passes any factor soon.
FACTOR = 3.0
# Networks start with outputs of this order, however small the rewards are.
START = 1.0


def value_bound(replay: Replay, discount: float) -> float:
    """The largest magnitude that a discounted return of these rewards can have.

    ``max |r| / (1 - gamma)``; for a discount of 1, ``max |r|`` times the longest episode's length.
    Rewards are the scaled and shifted ones that the values are learned from.
    """
    largest = float(replay.rewards.abs().max())
    if discount < 1:
        return largest / (1 - discount)
    return largest * longest_episode(replay)


def longest_episode(replay: Replay) -> int:
    """Steps of the longest episode."""
    steps = replay.index.diff()  # 1 within an episode, 2 across its last observation
    ends = [-1, *(steps != 1).nonzero().flatten().tolist(), len(replay) - 1]
    return int(max(after - before for before, after in zip(ends[:-1], ends[1:], strict=True)))


def stop_if_diverged(
    reading: Mapping[str, float], bound: float, phase: str, step: int, kept: str
) -> None:
    """Raise if the values are three times larger than the rewards allow.

    Args:
        reading: Metrics; only ``value/largest`` is looked at.
        bound: What `value_bound` found.
        phase: For the message.
        step: For the message.
        kept: A sentence that says where the last good state is.

    Raises:
        TrainingError: with the value, the bound and what to do.
    """
    limit = FACTOR * max(bound, START)
    largest = reading.get("value/largest", 0.0)
    if largest > limit:
        raise TrainingError(
            f"The values diverge: |V| reached {largest:.4g} by update {step} of the {phase} phase, "
            f"but the rewards and the discount allow {bound:.4g} at most (stopped above "
            f"{limit:.4g}). {kept} Start again in another --out with a lower critic_lr or "
            "target_rate, and check the scale of the rewards (reward_scale, outliers in "
            "`gem-policy doctor`)."
        )
