"""A Gaussian mixture over actions, one per observation: pure tensor maths, no parameters.

Axis letters (`gem_policy.__doc__`): ``*batch`` leading axes, ``components`` K, ``candidates`` N,
``action`` A. All quantities are in normalized action units, the box [-1, 1]^A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianMixture:
    """K diagonal Gaussians with weights, for every index of the batch axes.

    Attributes:
        logits: Unnormalized log weights, any finite values.
        mean: Component means, in normalized action units.
        log_std: Natural logarithm of the standard deviations, in normalized action units.
    """

    logits: Float[Tensor, "*batch components"]
    mean: Float[Tensor, "*batch components action"]
    log_std: Float[Tensor, "*batch components action"]

    @property
    def log_weights(self) -> Float[Tensor, "*batch components"]:
        """Normalized log weights: ``log alpha_k``."""
        return torch.log_softmax(self.logits, dim=-1)

    def component_log_prob(
        self, actions: Float[Tensor, "*batch candidates action"]
    ) -> Float[Tensor, "*batch candidates components"]:
        """``log alpha_k + log N(a; mu_k, Sigma_k)`` for every action and component, in nats."""
        offset = actions.unsqueeze(-2) - self.mean.unsqueeze(-3)
        standardized = offset * torch.exp(-self.log_std).unsqueeze(-3)
        # The part that does not depend on the action is summed once per component, not per action.
        constant = self.log_weights - self.log_std.sum(-1)
        constant = constant - HALF_LOG_TWO_PI * actions.shape[-1]
        square = standardized.square().sum(-1)
        return torch.sub(constant.unsqueeze(-2), square, alpha=0.5)

    def log_prob(
        self, actions: Float[Tensor, "*batch candidates action"]
    ) -> Float[Tensor, "*batch candidates"]:
        """Log density of the actions under the mixture, in nats (a density: may be positive)."""
        return torch.logsumexp(self.component_log_prob(actions), dim=-1)

    def responsibilities(
        self, actions: Float[Tensor, "*batch candidates action"]
    ) -> Float[Tensor, "*batch candidates components"]:
        """Posterior probability of each component given the action; sums to 1 over components."""
        return torch.softmax(self.component_log_prob(actions), dim=-1)

    def sample(
        self, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch {count} action"]:
        """Draw ``count`` independent actions per batch index (not clipped to the box).

        The generator must live on the tensors' device; None uses torch's global state.
        """
        weights = self.log_weights.exp()
        flat = weights.reshape(-1, weights.shape[-1])
        index = torch.multinomial(flat, count, replacement=True, generator=generator)
        index = index.reshape(*weights.shape[:-1], count)
        mean, std = self.pick(index)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + std * noise

    def pick(
        self, index: Int[Tensor, "*batch candidates"]
    ) -> tuple[
        Float[Tensor, "*batch candidates action"], Float[Tensor, "*batch candidates action"]
    ]:
        """Mean and standard deviation of the components with the given indices."""
        wide = index.unsqueeze(-1).expand(*index.shape, self.mean.shape[-1])
        return torch.gather(self.mean, -2, wide), torch.gather(self.log_std, -2, wide).exp()

    def order(self) -> Int[Tensor, "*batch components"]:
        """Component indices by falling weight; equal weights keep their order."""
        return torch.argsort(self.logits, dim=-1, descending=True, stable=True)

    def heaviest(self) -> Int[Tensor, "*batch 1"]:
        """The first component of `order`."""
        return self.logits.argmax(-1, keepdim=True)

    def mode(self) -> Float[Tensor, "*batch action"]:
        """Mean of the heaviest component: the action of a deterministic actor (our choice)."""
        mean, _ = self.pick(self.heaviest())
        return mean.squeeze(-2)
