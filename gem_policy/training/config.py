"""Every setting of a training run; each value is recorded in the checkpoint that comes out."""

from __future__ import annotations

from dataclasses import dataclass

from gem_policy.config import (
    make_plain,
    require,
    require_choice,
    require_count,
    require_flag,
    require_number,
)

SOURCES = ("critics", "data")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the offline trainer. All defaults are our choices; DESIGN.md has the reasons.

    Attributes:
        seed: Seed of initialization and of every batch.
        behavior_updates: Updates of the behavior model.
        value_updates: Updates of the state values.
        critic_updates: Updates of the critics.
        actor_updates: Updates of the actor.
        batch_size: Transitions per update.
        critic_lr: Adam's learning rate for values and critics; falls to 0 along a cosine.
        policy_lr: The same for behavior model and actor.
        discount: gamma, per step.
        value_source: What the state values are expectiles of. ``"data"``: the returns of the data's
            next ``value_steps`` steps, bootstrapped from a slow copy of the values; half the cost,
            and the same in a world without chance. ``"critics"``: IQL's rule, values of critics
            that are fitted to one step: luck does not count as skill.
        value_steps: n of those returns; a larger n carries far rewards back faster, at the price of
            leaning towards the behavior for n steps. 1 with ``value_source="critics"``.
        critic_steps: n of the critics' targets, the n-step advantages of the data; only 1 where
            they look ahead, as they do by default. 1 rests on the
            shape of the values around a state, more on what followed in the data; noisier.
        target_rate: Step of the moving average that the slow copy of the values is.
        expectile: tau of the state value; 0.5 is the mean, 1 the best action in the data.
        weight_temperature: T in exp(A / T), in standard deviations of the dataset's advantages.
        weight_kappa: The advantages in the weights are lower bounds, mean - kappa * std over the
            critics; 0 takes their mean.
        weight_source: Whose advantages the weights are made of. ``"critics"``: what the critics say
            of the action. ``"data"``: what the transition itself came to by the finished values,
            ``r + gamma V(s') - V(s)``: nothing is lost to the critics' fit, but in a world of
            chance luck counts as skill.
        weight_max: Largest weight of a transition in the actor's loss, before the floor, and
            largest of an episode.
        weight_floor: Added to every weight, as a share of the mean weight: so much of cloning is in
            the actor's loss. It keeps states alive whose advantages all look bad: 0.05 to 0.2 for
            data of one agent. Where there is a worse one too, it brings that one back.
        episode_temperature: T_e: a transition's weight is also multiplied with exp(z / T_e), z the
            return of its whole episode, in standard deviations. It tells which of two agents'
            actions is better where one step does not, and needs no critics. Where chance decides
            what an episode comes to, luck counts as skill. None: episodes weigh the same, as they
            do in small datasets; see `gem_policy.training.episodes`.
        cautious: Where behavior model or critics do not generalize to held-out episodes (the rules
            are in `gem_policy.training.generalization`), advantages weigh nothing and critics do
            not choose: the actor is a clone of the data, in which whole episodes still have their
            weights, and the policy takes its mode unless selection settings are given. Without
            weights of episodes it is the behavior model (where their networks differ in size, one
            that is trained like it).
        responsibility_floor: Smallest responsibility of a component, before renormalizing; keeps
            components alive.
        return_normalization: Divide every reward by the range of the dataset's episode returns
            and multiply it with 1000 (IQL's for locomotion, arXiv 2110.06169):
            ``r * 1000 / (max return - min return)``, before the scale and the shift.
        reward_scale: Factor on every reward, applied before the shift. Below 0 where the data's
            rewards are costs.
        reward_shift: Added to every reward (IQL's -1 for AntMaze, for example).
        terminal_reward: A (raw) reward of at least this ends the return, as if the task were over.
            For goal tasks whose data continue with a new goal: the value of the old goal's state
            is never visited in such data. None: only the dataset's own terminations do.
        holdout: Fraction of the episodes kept out of training, for validation and calibration.
        dropout: Probability of a hidden unit of behavior model and actor to be dropped in an
            update. For few demonstrations, though on door's 25 it was no help. Never when deployed.
        weight_decay: AdamW's, decoupled, of behavior model and actor: every update multiplies their
            weight matrices (not the biases) with 1 - rate * weight_decay. None: 0.5 for few
            demonstrations, datasets of no more than 10,000 transitions, else 0; the checkpoint
            records which. See `gem_policy.training.few_demonstrations`.
        patience: Early stopping of behavior model and actor. Their held-out log-likelihood
            (weighted, for the actor) is measured every ``validate_every`` updates; the weights
            that did best are the ones that the phase ends with, and it ends at the latest after
            this many measurements in a row without a better one. 0: no early stopping. With few
            episodes, raise ``holdout`` as well: what is measured should not be one episode.
        validate_every: Updates between two such measurements.
        precision: Of the products between hidden layers in an update, which are most of the work:
            ``"bfloat16"`` is faster where the processor multiplies it. Weights, first and last
            layers, losses and whatever is evaluated besides updates are float32 in any case.
    """

    seed: int = 0
    behavior_updates: int = 20_000
    value_updates: int = 20_000
    critic_updates: int = 20_000
    actor_updates: int = 20_000
    batch_size: int = 256
    critic_lr: float = 3e-4
    policy_lr: float = 1e-3
    discount: float = 0.99
    value_source: str = "data"
    value_steps: int = 1
    critic_steps: int = 1
    target_rate: float = 0.005
    expectile: float = 0.9
    weight_temperature: float = 0.5
    weight_kappa: float = 5.0
    weight_source: str = "data"
    weight_max: float = 20.0
    weight_floor: float = 0.0
    episode_temperature: float | None = 0.5
    cautious: bool = True
    responsibility_floor: float = 0.0
    return_normalization: bool = False
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    terminal_reward: float | None = None
    holdout: float = 0.02
    dropout: float = 0.0
    weight_decay: float | None = None
    patience: int = 0
    validate_every: int = 500
    precision: str = "float32"

    def __post_init__(self) -> None:
        make_plain(self)
        require_count("seed", self.seed, 0, 2**24 - 1)  # it shares 32 bits with the phase
        for name in ("behavior_updates", "value_updates", "critic_updates", "actor_updates"):
            require_count(name, getattr(self, name), 0)
        require_count("batch_size", self.batch_size)
        require_count("value_steps", self.value_steps)
        require_count("critic_steps", self.critic_steps)
        for name in ("critic_lr", "policy_lr"):
            require_number(name, getattr(self, name), "a number in (0, 1]", 1e-12, 1)
        require_number("discount", self.discount, "a number in [0, 1]", 0, 1)
        require_number("target_rate", self.target_rate, "a number in [0, 1]", 0, 1)
        fine = isinstance(self.expectile, float) and 0 < self.expectile < 1
        require(fine, "expectile", self.expectile, "a number strictly between 0 and 1")
        require_number("weight_temperature", self.weight_temperature, "> 0", 1e-9, 1e9)
        require_number("weight_kappa", self.weight_kappa, "a finite number >= 0", 0, 1e9)
        for name in ("value_source", "weight_source"):
            require_choice(name, getattr(self, name), SOURCES)
        fits = self.value_source == "data" or self.value_steps == 1
        require(fits, "value_steps", self.value_steps, '1 with value_source="critics"')
        require_number("weight_max", self.weight_max, "a number >= 1", 1, 1e9)
        require_number("weight_floor", self.weight_floor, "a finite number >= 0", 0, 1e9)
        if self.episode_temperature is not None:
            require_number(
                "episode_temperature", self.episode_temperature, "> 0, or None (null)", 1e-9, 1e9
            )
        require_number("responsibility_floor", self.responsibility_floor, "in [0, 0.5]", 0, 0.5)
        for name in ("cautious", "return_normalization"):
            require_flag(name, getattr(self, name))
        require_number("reward_scale", self.reward_scale, "a finite number", -1e9, 1e9)
        require(self.reward_scale != 0, "reward_scale", self.reward_scale, "other than 0")
        require_number("reward_shift", self.reward_shift, "a finite number", -1e9, 1e9)
        if self.terminal_reward is not None:
            require_number("terminal_reward", self.terminal_reward, "finite", -1e30, 1e30)
        require_number("holdout", self.holdout, "a number in [0, 0.5]", 0, 0.5)
        require_number("dropout", self.dropout, "a number in [0, 0.9]", 0, 0.9)
        if self.weight_decay is not None:
            require_number("weight_decay", self.weight_decay, "in [0, 1], or None (null)", 0, 1)
        require_count("patience", self.patience, 0)
        require_count("validate_every", self.validate_every)
        require_choice("precision", self.precision, PRECISIONS)
