"""The critics that a policy is deployed with: values of actions, or of where actions lead."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gem_policy.config import NetworkConfig
from gem_policy.networks import (
    CriticEnsemble,
    Ensemble,
    ValueEnsemble,
    build_action_values,
    build_values,
)


class Units(nn.Module):
    """What `LookaheadCritics` count in; known from the data, trained by nobody.

    Attributes:
        change: Standard deviation of what a step changes in every number of the (normalized)
            observation; 0: it never changes.
        reward_mean: Mean of the (scaled) rewards.
        reward_std: Their standard deviation.
        advantage: Standard deviation of the advantages over the dataset.
        discount: gamma.
    """

    def __init__(self, observation_size: int) -> None:
        super().__init__()
        self.change = _constant(torch.ones(observation_size))
        self.reward_mean = _constant(torch.zeros(1))
        self.reward_std = _constant(torch.ones(1))
        self.advantage = _constant(torch.ones(1))
        self.discount = _constant(torch.ones(1))


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


class LookaheadCritics(nn.Module):
    """Advantages by a learned step: ``[r_e + gamma c_e V_e(s'_e) - V_e(s)] / sigma``.

    Member e predicts next observation s'_e, reward r_e and the probability c_e that the return
    goes on, and asks its own state values. What one action changes in one step is small beside
    what the state is worth, and critics of state and action lose it in the noise of their targets;
    neither the step nor the value has to be found in such a difference (our choice: not in the
    paper's abstract; benchmarks/TRIED.md has the measurements).

    Attributes:
        step: One step, by E independent networks: changes and reward in `Units`, logit of c.
        values: V_1..V_E.
        units: See `Units`.
    """

    def __init__(self, config: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.step = Ensemble(
            config.critics,
            config.observation_size,
            config.action_size,
            config.step_hidden,
            layer_norm=False,
            outputs=config.observation_size + 2,
            generator=generator,
        )
        self.values: ValueEnsemble = build_values(config, generator)
        self.units = Units(config.observation_size)

    @property
    def members(self) -> int:
        """E."""
        return self.step.members

    def predict(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
    ) -> tuple[
        Float[Tensor, "members *batch candidates obs"],
        Float[Tensor, "members *batch candidates"],
        Float[Tensor, "members *batch candidates"],
    ]:
        """Every member's changes and reward, both in `Units`, and the logit of going on."""
        return self._read(self.step.of_actions(observations, actions))

    def predict_pairs(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch action"],
    ) -> tuple[
        Float[Tensor, "members *batch obs"],
        Float[Tensor, " members *batch"],
        Float[Tensor, " members *batch"],
    ]:
        """`predict` for one action of each state."""
        return self._read(self.step.of_pairs(observations, actions))

    @staticmethod
    def _read(out: Float[Tensor, "*batch outputs"]) -> tuple[Tensor, Tensor, Tensor]:
        change, reward, logit = torch.split(out, [out.shape[-1] - 2, 1, 1], -1)
        return change, reward.squeeze(-1), logit.squeeze(-1)

    def forward(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
    ) -> Float[Tensor, "members *batch candidates"]:
        """Advantage of every candidate by every member, in standard deviations."""
        change, reward, logit = self.predict(observations, actions)
        units, count = self.units, actions.shape[-2]
        here = observations.unsqueeze(-2)
        after = here + change * units.change
        # The state itself is one row more: asked apart, it would cost all layers once again.
        rows = torch.cat([after, here.expand(len(after), *here.shape)], -2)
        values = self.values.of_own(rows.flatten(1, -2)).reshape(rows.shape[:-1])
        after_value, before = values[..., :count], values[..., count:]
        reward = reward * units.reward_std + units.reward_mean
        total = reward + units.discount * torch.sigmoid(logit) * after_value
        return (total - before) / units.advantage


Critics = CriticEnsemble | LookaheadCritics


def build_critics(config: NetworkConfig, generator: torch.Generator | None = None) -> Critics:
    """The critic ensemble that a config describes, freshly initialized."""
    if config.critic_lookahead:
        return LookaheadCritics(config, generator)
    return build_action_values(config, generator)
