"""What the learners see of rewards: scaled and shifted as asked for, in a unit that suits networks.

How large an output a network can reach is limited: LayerNorm bounds what its last layer sees, and
that layer's weights grow by no more than a learning rate an update, to some 390 with the defaults.
And it begins with outputs of 0.1 and more. So values far above lag behind their targets for all of
a run, and advantages say little but the step's own reward; values far below drown in noise.
Wherever rewards are of another size, they are learned in a unit of their own (our choice;
DESIGN.md). Advantages are standardized afterwards: nothing else of a run depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset

RETURN_RANGE = 1000.0  # IQL's: the steps of a locomotion episode
# Sizes of values in which rewards are left as they are. The defaults were chosen on data up to 541.
SMALLEST, LARGEST = 0.1, 600.0
PEAK = 60.0  # to which small rewards may lift the largest value: where few steps are rewarded


@dataclass(frozen=True)
class RewardScale:
    """``(reward * factor + shift) / unit``.

    Attributes:
        factor: ``reward_scale``, and IQL's normalization if it is on.
        shift: ``reward_shift``.
        unit: 1, or what keeps the values within their size.
    """

    factor: float
    shift: float
    unit: float = 1.0

    @classmethod
    def of(cls, dataset: Dataset, config: TrainConfig) -> RewardScale:
        """From all episodes, held out or not: the same for every seed.

        The size of values is taken to be the mean magnitude of a reward times the steps that count:
        ``1 / (1 - gamma)``, or those of the longest episode if they are fewer. The largest value is
        no more than the largest reward times these.

        Raises:
            TrainingError: All returns are the same, and they were to be normalized.
        """
        scale = cls(reward_factor(dataset, config), config.reward_shift)
        data, discount = dataset.transitions, config.discount
        steps = float(data.lengths.max())
        if discount < 1:
            steps = min(steps, 1 / (1 - discount))
        paid = scale(data.rewards).double().abs()
        size, peak = float(paid.mean()) * steps, float(paid.max()) * steps
        unit = max(size / LARGEST, min(max(size / SMALLEST, peak / PEAK), 1.0))
        return cls(scale.factor, scale.shift, unit if size > 0 else 1.0)

    def __call__(self, rewards: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Rewards as they are learned from."""
        return (rewards * self.factor + self.shift) / self.unit


def reward_factor(dataset: Dataset, config: TrainConfig) -> float:
    """What the rewards are multiplied with: the scale, and IQL's normalization if it is on.

    ``reward_scale * 1000 / (max - min)`` of the undiscounted returns of all episodes.

    Raises:
        TrainingError: All returns are the same.
    """
    if not config.return_normalization:
        return config.reward_scale
    returns = dataset.transitions.returns
    width = float(returns.max() - returns.min())
    if not width > 0:
        raise TrainingError(
            f"return_normalization divides by the range of the episode returns of {dataset.id}, "
            f"and they are all {float(returns[0]):.6g}. Use reward_scale instead."
        )
    return config.reward_scale * RETURN_RANGE / width
