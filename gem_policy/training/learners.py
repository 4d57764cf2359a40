"""The learners of a run: behavior model, state values, critics, actor, each with an optimizer.

A learner changes its own state in place, by `update(batch)`, and holds everything that has to be
saved to go on bit for bit: weights, target weights, Adam's moments, number of updates done.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gem_policy.compiled import compile_strictly
from gem_policy.config import NetworkConfig
from gem_policy.critics import Critics, build_critics
from gem_policy.errors import TrainingError
from gem_policy.mixture import GaussianMixture
from gem_policy.networks import (
    CriticEnsemble,
    MixturePolicy,
    ValueEnsemble,
    build_action_values,
    build_actor,
    build_behavior,
    build_values,
)
from gem_policy.training.config import TrainConfig
from gem_policy.training.dropout import dropout_generator, forward_with_dropout
from gem_policy.training.losses import critic_loss, expectile_loss, guided_em_loss
from gem_policy.training.pieces import in_pieces
from gem_policy.training.precision import LossOf, lower_hidden
from gem_policy.training.replay import FIELDS, Batch, Replay

Metrics = dict[str, Tensor]
Modules = Mapping[str, nn.Module]

_DROPOUT_STREAMS = {"behavior": 0, "actor": 3}  # the phases' numbers


class Learner(abc.ABC):
    """Weights, Adam's moments and a cosine learning rate; subclasses say what the loss is.

    Class attributes:
        reads: Fields of a `Batch` that the loss reads; the others need not be gathered.

    Args:
        modules: The networks to train, by the name under which they are saved.
        rate: Initial learning rate, reached at update 0 and falling to 0 at ``updates``.
        updates: Length of the schedule.
        frozen: Networks that the loss needs and no gradient trains, by name; see `follow`.
        weight_decay: AdamW's, of the weight matrices; 0 is plain Adam.
        precision: Of the products between hidden layers; see `lower_hidden`.
    """

    reads: frozenset[str] = FIELDS

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        rate: float,
        updates: int,
        weight_decay: float = 0.0,
        frozen: Mapping[str, nn.Module] | None = None,
        precision: str = "float32",
    ) -> None:
        self.modules, self.frozen = dict(modules), dict(frozen or {})
        self.precision = precision
        self._loss_of = LossOf(self.loss, self.modules | self.frozen)
        self.rate, self.updates, self.step = rate, updates, 0
        self.weight_decay = weight_decay
        self.parameters = [p for m in self.modules.values() for p in m.parameters()]
        self.optimizer = self._optimizer(weight_decay)
        # What Adam makes at its first step, made now so that it can be loaded.
        self.moments = [
            {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for p in self.parameters
        ]
        for parameter, moments in zip(self.parameters, self.moments, strict=True):
            self.optimizer.state[parameter] = moments
        self._pieces: list[tuple[Tensor, ...]] = []
        self._compiled: Callable[[Any], Tensor] | None = None

    def _optimizer(self, weight_decay: float) -> torch.optim.Optimizer:
        """Adam; with decay, AdamW (Loshchilov and Hutter, 2019) in two groups, biases without."""
        if weight_decay == 0:
            return torch.optim.Adam(self.parameters, lr=self.rate, fused=True)
        named = [item for module in self.modules.values() for item in module.named_parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in named if n.startswith("weights.")]},
            {"params": [p for n, p in named if not n.startswith("weights.")], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.rate, weight_decay=weight_decay, fused=True)

    @abc.abstractmethod
    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """The loss of a batch and the metrics to log, none of them synchronized.

        Args:
            batch: With the fields of `reads`.
            told: Whether metrics are wanted; else there are none, which saves their computation.
        """

    def update(self, batch: Any, told: bool = True) -> Metrics:
        """One Adam step on one batch, of the kind that `loss` takes; ``told`` as there."""
        self.set_rate()
        metrics = self.apply(batch, told)
        self.step += 1
        return metrics

    def apply(self, batch: Any, told: bool = True) -> Metrics:
        """The tensor work of an update, which can be recorded and done again.

        Nothing in it depends on the number of updates done, but dropout.
        """
        loss, metrics = self.evaluate(batch, told)
        gradients = torch.autograd.grad(loss, self.parameters)
        # Fused Adam reads a gradient in the parameter's order, whatever its strides are, and those
        # of a stacked linear layer are transposed.
        gradients = tuple(gradient.contiguous() for gradient in gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        for pieces, gradient in zip(self._pieces, gradients, strict=False):
            parts = torch.split(gradient.view(-1), len(pieces[0]))
            for piece, part in zip(pieces, parts, strict=True):
                piece.grad = part
        self.optimizer.step()
        self.follow(self.modules, self.frozen)
        return metrics

    def evaluate(self, batch: Any, told: bool = True) -> tuple[Tensor, Metrics]:
        """The loss as an update computes it."""
        if self._compiled is None:
            return self.lowered_loss(batch, told)
        # The metrics apart, so that what is read changes nothing about the run.
        with torch.no_grad():
            metrics = self.lowered_loss(batch, True)[1] if told else {}
        return self._compiled(batch), metrics

    def lowered_loss(self, batch: Any, told: bool = True) -> tuple[Tensor, Metrics]:
        """The loss with hidden layers in the precision asked for."""
        if self.precision == "float32":
            return self.loss(batch, told)
        lowered = lower_hidden(dict(self._loss_of.named_parameters()), self.precision)
        arguments = (batch, told)
        found: tuple[Tensor, Metrics] = torch.func.functional_call(
            self._loss_of, lowered, arguments
        )
        return found

    def follow(  # noqa: B027  # most learners have nothing that follows
        self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module]
    ) -> None:
        """What moves after an Adam step without a gradient, in place.

        Of the networks given, not of its own: several seeds stacked obey the rule of one.
        """

    def learning_rate(self) -> float:
        """The rate of the next update."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * self.step / max(self.updates, 1)))

    def set_rate(self) -> None:
        """Tell the optimizer the rate of the next update; in place where it is a tensor."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def make_recordable(self) -> None:
        """Have the optimizer read its rate from the device, and work on pieces; see `in_pieces`."""
        self.optimizer, self._pieces = in_pieces(self.optimizer, self.parameters, self.moments)

    def make_compiled(self, **options: Any) -> None:
        """Have `torch.compile`, with these options, make the code of the loss and its gradient."""
        self._compiled = compile_strictly(
            lambda batch: self.lowered_loss(batch, False)[0], **options
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by name; the tensors are the live ones."""
        named = {
            f"{name}.{key}": value
            for name, module in (self.modules | self.frozen).items()
            for key, value in module.state_dict().items()
        }
        for i, moments in enumerate(self.moments):
            for key, value in moments.items():
                named[f"adam.{i}.{key}"] = value
        return named

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Put back what `tensors` gave; every name must be there with the same shape."""
        own = self.tensors()
        wrong = sorted(set(own) ^ set(tensors))
        wrong += [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
        if wrong:
            raise TrainingError(
                f"The saved training state does not fit these settings: {wrong[:8]}. "
                "Resume with the settings that the run was started with."
            )
        for name, value in own.items():
            value.copy_(tensors[name])
        for pieces, moments in zip(self._pieces, self.moments, strict=False):
            for piece in pieces:
                self.optimizer.state[piece]["step"].copy_(moments["step"])
        self.step = step


class BehaviorLearner(Learner):
    """Maximum likelihood of the dataset's actions under the behavior mixture."""

    reads = frozenset({"observations", "actions"})

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model: MixturePolicy = build_behavior(network, generator).to(device)
        super().__init__(
            {"behavior": self.model},
            config.policy_lr,
            config.behavior_updates,
            config.weight_decay or 0.0,
            precision=config.precision,
        )

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """Negative log-likelihood, as a guided EM step whose weights are all one."""
        ones = torch.ones_like(batch.actions[:, 0])
        mixture = _propose(self.model, batch.observations, self.config, "behavior", self.step)
        loss = guided_em_loss(mixture, batch.actions, ones)
        if not told:
            return loss.loss, {}
        return loss.loss, {"behavior/log_prob": loss.log_prob, **_usage("behavior", loss.usage)}


class ValueLearner(Learner):
    """Expectile state values V_1..V_E, every member on its own targets.

    An expectile of the data's n-step returns, bootstrapped from a slow copy of the values. With
    ``value_source`` "critics" IQL's rule instead: each member has a critic of its own, fitted to
    ``r + gamma V(s')``, and its value is an expectile of that critic over the data's actions. The
    slow copy is of the values, not of the critics as in IQL: it breaks the same loop and saves an
    evaluation.
    """

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = config
        self.reads = frozenset({"observations", "ahead"})
        if config.value_source == "critics":
            self.reads |= {"actions", "rewards", "continues"}
        # Built in any case: what is drawn after it, the values' first weights, is then the same.
        self.helper: CriticEnsemble = build_action_values(network, generator).to(device)
        self.values: ValueEnsemble = build_values(network, generator).to(device)
        self.target: ValueEnsemble = build_values(network, generator).to(device)
        self.target.load_state_dict(self.values.state_dict())
        self.target.requires_grad_(False)
        modules: dict[str, nn.Module] = {"value": self.values}
        if config.value_source == "critics":
            modules["helper"] = self.helper
        super().__init__(
            modules,
            config.critic_lr,
            config.value_updates,
            frozen={"target": self.target},
            precision=config.precision,
        )

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """The expectile loss, and the helping critics' where there are any."""
        value = self.values(batch.observations)
        with torch.no_grad():
            after = self.target(batch.ahead.observations)
        if self.config.value_source == "critics":
            q = self.helper.of_pairs(batch.observations, batch.actions).squeeze(-1)
            error = critic_loss(q, batch.rewards, batch.continues, after, self.config.discount)
            fit = expectile_loss(q.detach(), value, self.config.expectile)
            total = fit.loss + error.loss
        else:
            target = batch.ahead.returns + batch.ahead.discounts * after
            fit = expectile_loss(target, value, self.config.expectile)
            total = fit.loss
        if not told:
            return total, {}
        spread = value.detach().std(0, correction=0).mean()
        metrics = {
            "value/loss": total.detach(),
            "value/mean": fit.value,
            "value/largest": value.detach().abs().amax(),
            "value/advantage": fit.advantage,
            "value/spread": spread,
        }
        return total, metrics

    @torch.no_grad()
    def follow(self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module]) -> None:
        """The target values move a little towards the values."""
        torch._foreach_lerp_(
            list(frozen["target"].parameters()),
            list(modules["value"].parameters()),
            self.config.target_rate,
        )


class CriticLearner(Learner):
    """The deployed critics: Q_e(s, a) - V_e(s), in standard deviations over the dataset.

    Member e is fitted to ``r + gamma V_e(s') - V_e(s)``, or to the same over several steps, with
    V_e finished: what IQL's critic learns, less the state's own value. Candidates of one state
    share that value, so it cannot change their order; but it is a hundred times larger than what
    the action changes in one step, and a network that has to represent both gets the difference
    wrong (our choice, measured).
    """

    reads = frozenset({"observations", "actions", "advantages"})

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = config
        self.critics: Critics = build_critics(network, generator).to(device)
        trained, kept = self.parts()
        super().__init__(
            trained,
            config.critic_lr,
            config.critic_updates,
            frozen=kept,
            precision=config.precision,
        )

    def parts(self) -> tuple[Modules, Modules]:
        """The networks to train, and those that the critics need besides, by name."""
        return {"critic": self.critics}, {}

    def begin(self, value: ValueLearner, training: Replay) -> None:
        """What is to be known of finished values and judged transitions; for these, nothing."""

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """Squared error, summed over members."""
        q = self.critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1)
        loss = (q - batch.advantages.T).square().sum() / q.shape[-1]
        if not told:
            return loss, {}
        detached = q.detach()
        metrics = {
            "critic/loss": loss.detach(),
            "critic/std": detached.mean(0).std(),
            "critic/spread": detached.std(0, correction=0).mean(),
        }
        return loss, metrics


class ActorLearner(Learner):
    """Critic-guided, advantage-weighted EM on the actor's mixture."""

    reads = frozenset({"observations", "actions", "weights"})

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model: MixturePolicy = build_actor(network, generator).to(device)
        super().__init__(
            {"actor": self.model},
            config.policy_lr,
            config.actor_updates,
            config.weight_decay or 0.0,
            precision=config.precision,
        )

    def become(self, model: MixturePolicy) -> bool:
        """Take over the weights of a mixture that is built alike, which ends the phase.

        Returns:
            False, and nothing is changed, where it is built otherwise.
        """
        own, other = self.model.state_dict(), model.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()}:
            return False
        self.model.load_state_dict(other)
        self.step = self.updates
        return True

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """Weighted log-likelihood; the weights come with the batch."""
        loss = guided_em_loss(
            _propose(self.model, batch.observations, self.config, "actor", self.step),
            batch.actions,
            batch.weights,
            self.config.responsibility_floor,
        )
        if not told:
            return loss.loss, {}
        metrics = {
            "actor/log_prob": loss.log_prob,
            "actor/weight": loss.weight,
            **_usage("actor", loss.usage),
        }
        return loss.loss, metrics


def _propose(
    model: MixturePolicy,
    observations: Float[Tensor, "batch obs"],
    config: TrainConfig,
    name: str,
    step: int,
) -> GaussianMixture:
    """The mixture as training sees it: with hidden units dropped, where that is wanted."""
    if config.dropout == 0:
        mixture: GaussianMixture = model(observations)
        return mixture
    generator = dropout_generator(config.seed, _DROPOUT_STREAMS[name], step)
    return forward_with_dropout(model, observations, config.dropout, generator)


def _usage(name: str, usage: Float[Tensor, " components"]) -> Metrics:
    """Share of every component and their effective number, exp of the entropy."""
    usage = usage.detach()
    entropy = -(usage * usage.clamp(min=1e-12).log()).sum()
    shares = {f"{name}/usage_{k}": usage[k] for k in range(usage.shape[0])}
    return {f"{name}/effective_components": entropy.exp(), **shares}


L = TypeVar("L", bound=Learner)


def expect(learner: Learner, kind: type[L]) -> L:
    """A learner as what it is."""
    if not isinstance(learner, kind):
        raise TypeError(f"Expected a {kind.__name__}, got {type(learner)}.")
    return learner
