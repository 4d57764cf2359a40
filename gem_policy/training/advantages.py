"""What finished values say of the critics' targets, and finished critics of the actor's weights.

Both are computed once for all transitions, between two phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.scoring import lower_bound
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import CriticLearner, ValueLearner
from gem_policy.training.losses import advantage_weights
from gem_policy.training.replay import Replay, look_ahead

ROWS = 8192  # transitions evaluated at once


def judge(replay: Replay, value: ValueLearner, config: TrainConfig) -> Replay:
    """The same transitions with the critics' targets, by the finished values.

    ``[R + gamma^n V_e(s_n) - V_e(s)] / sigma``: R the discounted rewards of the next n =
    ``critic_steps`` steps, sigma the standard deviation over the dataset of the members' mean.
    Advantages of any task have the same scale, for the weights' temperature and for lambda alike
    (our choice).
    """
    advantages = advantages_of(replay, value, config)
    unit = _scale(advantages)
    return replace(replay, advantages=advantages / unit, unit=float(unit))


def judge_both(
    training: Replay, held_out: Replay, value: ValueLearner, config: TrainConfig
) -> tuple[Replay, Replay]:
    """`judge` the training transitions, and the others in the same unit."""
    own, other = (advantages_of(part, value, config) for part in (training, held_out))
    unit = _scale(own)
    return (
        replace(training, advantages=own / unit, unit=float(unit)),
        replace(held_out, advantages=other / unit, unit=float(unit)),
    )


@torch.no_grad()
def advantages_of(
    replay: Replay, value: ValueLearner, config: TrainConfig
) -> Float[Tensor, "transitions members"]:
    """Each member's n-step advantage of every transition, in units of scaled reward."""
    values = torch.cat([value.values(rows) for rows in torch.split(replay.rows, ROWS)], -1)
    episode = replay.index - torch.arange(len(replay), device=replay.index.device)
    returns, discounts, taken = look_ahead(
        replay.rewards, replay.continues, episode, config.critic_steps, config.discount
    )
    after = discounts * values[:, replay.index + taken]
    return (returns + after - values[:, replay.index]).T


def _scale(advantages: Float[Tensor, "transitions members"]) -> Float[Tensor, ""]:
    return advantages.mean(-1).std(correction=0).clamp(min=1e-12)


def weigh(replay: Replay, critic: CriticLearner, config: TrainConfig) -> Replay:
    """The same transitions with the actor's weights, by the finished critics' lower bounds.

    Times the weights of their whole episodes.
    """
    (weights,) = weights_of([lower_bounds_of(replay, critic, config)], config)
    return replace(replay, weights=replay.episode_weights * weights)


def weigh_both(
    training: Replay, held_out: Replay, critic: CriticLearner, config: TrainConfig
) -> tuple[Replay, Replay]:
    """`weigh` the training transitions, and the others less the same mean, with the same floor."""
    bounds = [lower_bounds_of(part, critic, config) for part in (training, held_out)]
    own, other = weights_of(bounds, config)
    return (
        replace(training, weights=training.episode_weights * own),
        replace(held_out, weights=held_out.episode_weights * other),
    )


def weights_of(
    bounds: Sequence[Float[Tensor, " _"]], config: TrainConfig
) -> list[Float[Tensor, " _"]]:
    """The actor's weights by lower bounds of advantages; what is a mean is the first part's.

    Less their mean, so that pessimism about all actions alike changes nothing. Every weight gets
    ``weight_floor`` of the mean weight on top (our choice): in states where all advantages look
    bad, beginnings and recoveries among them, weights alone teach an actor nothing.
    """
    center = bounds[0].mean()
    weights = [
        advantage_weights(bound - center, config.weight_temperature, config.weight_max)
        for bound in bounds
    ]
    floor = config.weight_floor * weights[0].mean()
    return [part + floor for part in weights]


@torch.no_grad()
def lower_bounds_of(
    replay: Replay, critic: CriticLearner, config: TrainConfig
) -> Float[Tensor, " transitions"]:
    """Lower bound of every transition's advantage over the members of the ensemble.

    By the critics, or as `judge` found it in the data; ``weight_source`` says which.
    """
    if config.weight_source == "data":
        return lower_bound(replay.advantages.T, config.weight_kappa)
    parts = [
        lower_bound(
            critic.critics(replay.rows[index], actions.unsqueeze(-2)).squeeze(-1),
            config.weight_kappa,
        )
        for index, actions in zip(
            torch.split(replay.index, ROWS), torch.split(replay.actions, ROWS), strict=True
        )
    ]
    return torch.cat(parts)
