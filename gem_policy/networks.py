"""The networks: a mixture head for actor and behavior model, stacked ensembles for the values.

Ensemble members share no parameter. Their weights are stacked along the first axis, so that E
members are one batched matrix product and one contiguous tensor in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gem_policy.config import NetworkConfig
from gem_policy.mixture import GaussianMixture


def _uniform(shape: Sequence[int], fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Uniform in +-1/sqrt(fan_in): the range of torch's own linear layers."""
    bound = 1 / math.sqrt(fan_in)
    weights = torch.empty(*shape)
    # Shapes alone are wanted on the meta device, and drawing there costs seconds of imports.
    if not weights.is_meta:
        weights.uniform_(-bound, bound, generator=generator)
    return nn.Parameter(weights)


class MixturePolicy(nn.Module):
    """Conditional Gaussian mixture: normalized observation to K weighted diagonal Gaussians.

    Means pass through tanh and so stay in the action box; standard deviations stay within
    [min_std, max_std] by a sigmoid in log space (both our choice). The means' biases start spread
    out, lest components that start together stay together; where it was measured, on bandits,
    that was no gain and no loss.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        components: int,
        hidden: Sequence[int],
        min_std: float,
        max_std: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.components = components
        self.action_size = action_size
        self.log_std_low = math.log(min_std)
        self.log_std_range = math.log(max_std) - self.log_std_low
        sizes = [observation_size, *hidden, components * (1 + 2 * action_size)]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.weights = nn.ParameterList(_uniform((o, i), i, generator) for i, o in pairs)
        self.biases = nn.ParameterList(_uniform((o,), i, generator) for i, o in pairs)
        if not self.biases[-1].is_meta:
            spread = torch.rand(components, action_size, generator=generator) * 2 - 1
            if components > 1:
                with torch.no_grad():
                    start, stop = components, components * (1 + action_size)
                    self.biases[-1][start:stop] = spread.flatten()

    def forward(self, observations: Float[Tensor, "*batch obs"]) -> GaussianMixture:
        """The mixture for every observation (normalized units)."""
        x = observations
        last = len(self.weights) - 1
        for layer in range(last):
            x = F.relu(self.linear(layer, x))
        return self.mixture(self.linear(last, x))

    def linear(
        self, layer: int, x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """One layer's product, in the precision of its weights: training may lower it."""
        weight, bias = self.weights[layer], self.biases[layer]
        x = x.to(weight.dtype)
        if torch.compiler.is_compiling() and x.device.type == "cpu" and x[..., 0].numel() == 1:
            # Of one row torch makes a loop of its own, in one with what comes before and after.
            row: Tensor = (weight * x).sum(-1) + bias
            return row.reshape(*x.shape[:-1], -1)
        return F.linear(x, weight, bias)

    def mixture(self, head: Float[Tensor, "*batch outputs"]) -> GaussianMixture:
        """Read the last layer's outputs as logits, means and log standard deviations."""
        k, a = self.components, self.action_size
        logits, mean, spread = torch.split(head, [k, k * a, k * a], dim=-1)
        shape = (*head.shape[:-1], k, a)
        log_std = torch.sigmoid(spread).mul(self.log_std_range).add(self.log_std_low)
        return GaussianMixture(logits, torch.tanh(mean).reshape(shape), log_std.reshape(shape))


class Ensemble(nn.Module):
    """E independent multilayer perceptrons, as stacked weights.

    Args:
        members: E.
        observation_size: Length of the (normalized) observation.
        action_size: Length of the (normalized) action; 0 where none is an input.
        hidden: Hidden widths, the same for every member.
        layer_norm: Normalize every hidden layer before its activation. Without a gain and a shift
            of its own: the layer's bias before, and the next layer after it, do that work.
        frequencies: In which the observation is also seen, see `waves`; 0: it alone.
        outputs: Numbers that every member gives.
        generator: Source of the initial weights.

    Attributes:
        state_size: Inputs that the observation makes; those of the action follow.
    """

    def __init__(
        self,
        members: int,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int],
        layer_norm: bool,
        frequencies: int = 0,
        outputs: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.members = members
        self.layer_norm = layer_norm
        self.frequencies = frequencies
        self.state_size = observation_size * (1 + 2 * frequencies)
        sizes = [self.state_size + action_size, *hidden, outputs]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.weights = nn.ParameterList(_uniform((members, i, o), i, generator) for i, o in pairs)
        self.biases = nn.ParameterList(_uniform((members, 1, o), i, generator) for i, o in pairs)

    def after_first(
        self, x: Float[Tensor, "members rows hidden"], member: int | None
    ) -> Float[Tensor, "members rows outputs"]:
        """Everything after the first linear map, whose output ``x`` is; it may be overwritten.

        Each layer in the precision of its weights: training may lower it.
        """
        for layer in range(1, len(self.weights)):
            weight = own(self.weights[layer], member)
            x = x.to(weight.dtype)
            if self.layer_norm:
                x = normalized(x)
            # In place: neither LayerNorm nor the product before needs its output to go backward.
            x = affine(F.relu_(x), weight, own(self.biases[layer], member))
        return x

    def of_actions(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
    ) -> Float[Tensor, "members *batch candidates outputs"]:
        """What every member gives for every candidate.

        The observation's share of the first layer is computed once per state, not per candidate.
        """
        *batch, count, width = actions.shape
        rows, split = math.prod(batch), self.state_size
        states = waves(observations, self.frequencies).reshape(1, rows, split)
        given = actions.reshape(1, rows * count, width)

        def ask(member: int | None) -> Tensor:
            weight = own(self.weights[0], member)
            members, _, hidden = weight.shape
            state = states.expand(members, rows, split)
            state = affine(state, weight[:, :split], own(self.biases[0], member))
            action = given.expand(members, rows * count, width)
            x = torch.bmm(action, weight[:, split:]).reshape(members, rows, count, hidden)
            x = (x + state.unsqueeze(2)).reshape(members, rows * count, hidden)
            return self.after_first(x, member)

        x = self._of_all(ask, actions)
        return x.reshape(self.members, *batch, count, x.shape[-1])

    def of_pairs(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch action"],
    ) -> Float[Tensor, "members *batch outputs"]:
        """`of_actions` for one action of each state: one product does, where that takes two."""
        return self.of_shared(torch.cat([waves(observations, self.frequencies), actions], -1))

    def of_shared(
        self, inputs: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "members *batch outputs"]:
        """What every member gives for the same inputs, as its first layer sees them."""
        *batch, size = inputs.shape
        rows = inputs.reshape(1, math.prod(batch), size).expand(self.members, -1, -1)
        x = self._of_rows(rows)
        return x.reshape(self.members, *batch, x.shape[-1])

    def of_own(
        self, observations: Float[Tensor, "members rows obs"]
    ) -> Float[Tensor, "members rows outputs"]:
        """What every member gives for observations of its own."""
        return self._of_rows(waves(observations, self.frequencies))

    def _of_rows(
        self, inputs: Float[Tensor, "members rows inputs"]
    ) -> Float[Tensor, "members rows outputs"]:
        def ask(member: int | None) -> Tensor:
            x = affine(
                own(inputs, member), own(self.weights[0], member), own(self.biases[0], member)
            )
            return self.after_first(x, member)

        return self._of_all(ask, inputs)

    def _of_all(
        self, ask: Callable[[int | None], Tensor], inputs: Tensor
    ) -> Float[Tensor, "members rows outputs"]:
        """What ``ask`` gives for all members at once (None), or for one after another.

        Compiled for a CPU one after another is faster, because what a member's layers hand on stays
        in the cache.
        """
        compiling = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        if compiling and inputs.device.type == "cpu":
            return torch.cat([ask(member) for member in range(self.members)])
        return ask(None)


def own(
    stacked: Float[Tensor, " members *rest"], member: int | None
) -> Float[Tensor, " some *rest"]:
    """One member's part, still stacked; None for all of them."""
    return stacked if member is None else stacked[member : member + 1]


LARGE = 2**22  # numbers, 16 MiB: beyond, new memory costs more than a slow product


def affine(
    x: Float[Tensor, "members rows inputs"],
    weight: Float[Tensor, "members inputs outputs"],
    bias: Float[Tensor, "members 1 outputs"],
) -> Float[Tensor, "members rows outputs"]:
    """Every member's linear layer."""
    if torch.compiler.is_compiling():  # the sum is then part of what comes next, here of no product
        return torch.bmm(x, weight) + bias
    if weight.shape[-1] == 1 and weight.shape[0] > 1 and x.device.type == "cpu":
        return _single(x, weight, bias)
    return torch.baddbmm(bias, x, weight)


def _single(
    x: Float[Tensor, "members rows inputs"],
    weight: Float[Tensor, "members inputs 1"],
    bias: Float[Tensor, "members 1 1"],
) -> Float[Tensor, "members rows 1"]:
    """`affine` of several members with one output: slow on the CPU as a product with one column.

    Multiplied and summed it goes backward faster, but needs room as large as the inputs, of which
    there can be too many. Turned round, so that the column is a row, only its gradients are slow.
    """
    if x.requires_grad:
        if x.numel() > LARGE:
            return torch.baddbmm(bias, x, weight)
        return (x * weight.mT).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, weight.mT, x.mT).mT


def normalized(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """LayerNorm without gain and shift."""
    gain = None
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # There torch has fast code for a LayerNorm with a gain alone. Where it was measured, one of
        # ones changes no bit of what comes out, and gradients by rounding at some widths.
        gain = _ones(x.shape[-1], x.dtype)
    return F.layer_norm(x, x.shape[-1:], gain)


@lru_cache
def _ones(width: int, dtype: torch.dtype) -> Float[Tensor, " width"]:
    """On the CPU, and fit for training, whatever goes on when they are first asked for."""
    with torch.inference_mode(False):
        return torch.ones(width, dtype=dtype, device="cpu")


def waves(x: Float[Tensor, "*batch obs"], frequencies: int) -> Float[Tensor, "*batch inputs"]:
    """Every number also as sin and cos of 1, 2, 4, ... times itself, for so many frequencies.

    A network of the bare numbers is smooth over short distances (spectral bias; positional
    encoding: Tancik et al., arXiv 2006.10739), and so values leak through thin walls.
    """
    if frequencies == 0:
        return x
    angles = torch.cat([x * 2.0**k for k in range(frequencies)], -1)
    return torch.cat([x, angles.sin(), angles.cos()], -1)


class CriticEnsemble(Ensemble):
    """Q_1..Q_E: values of actions, in units of (scaled) reward."""

    def forward(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
    ) -> Float[Tensor, "members *batch candidates"]:
        """Value of every candidate by every member."""
        return self.of_actions(observations, actions).squeeze(-1)


class ValueEnsemble(Ensemble):
    """V_1..V_E: values of states."""

    def forward(
        self, observations: Float[Tensor, "*batch obs"]
    ) -> Float[Tensor, " members *batch"]:
        """Value of every state by every member."""
        return self.of_shared(waves(observations, self.frequencies)).squeeze(-1)


def build_actor(config: NetworkConfig, generator: torch.Generator | None = None) -> MixturePolicy:
    """The actor that a config describes, freshly initialized."""
    return MixturePolicy(
        config.observation_size,
        config.action_size,
        config.actor_components,
        config.actor_hidden,
        config.min_std,
        config.max_std,
        generator,
    )


def build_behavior(
    config: NetworkConfig, generator: torch.Generator | None = None
) -> MixturePolicy:
    """The behavior model's network that a config describes, freshly initialized."""
    return MixturePolicy(
        config.observation_size,
        config.action_size,
        config.behavior_components,
        config.behavior_hidden,
        config.min_std,
        config.max_std,
        generator,
    )


def build_action_values(
    config: NetworkConfig, generator: torch.Generator | None = None
) -> CriticEnsemble:
    """Networks of observation and action, of the critics' sizes, freshly initialized."""
    return CriticEnsemble(
        config.critics,
        config.observation_size,
        config.action_size,
        config.critic_hidden,
        config.critic_layer_norm,
        config.critic_frequencies,
        generator=generator,
    )


def build_values(config: NetworkConfig, generator: torch.Generator | None = None) -> ValueEnsemble:
    """The state-value ensemble that a config describes, freshly initialized."""
    return ValueEnsemble(
        config.critics,
        config.observation_size,
        0,
        config.critic_hidden,
        config.critic_layer_norm,
        config.critic_frequencies,
        generator=generator,
    )
