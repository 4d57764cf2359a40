"""Frozen, validated settings: what the networks are, and how an action is selected."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gem_policy.errors import ConfigError

T = TypeVar("T")

VALUE_SCALES = ("raw", "standardized")
BOUNDS = ("lower", "paired")
# No network of this method is larger; a hostile checkpoint is refused before it costs memory.
MAX_SIZE = 2**20
MAX_LAYERS = 64
MAX_FREQUENCIES = 16  # beyond, single precision has nothing left to tell
MAX_CANDIDATES = 2**24  # beyond, no machine has the memory for one decision


def plain(value: Any) -> Any:
    """A number or flag of numpy's as Python's own, which JSON can hold; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def make_plain(config: Any) -> None:
    """Give a dataclass `plain` values, in its tuples too, in place."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        own = tuple(map(plain, value)) if isinstance(value, tuple) else plain(value)
        object.__setattr__(config, field.name, own)


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise a `ConfigError` that names the setting, the value got and what was expected."""
    if not condition:
        raise ConfigError(f"`{name}` must be {expected}, got {value!r}.")


def require_number(name: str, value: object, expected: str, low: float, high: float) -> None:
    """`require` for a finite number within [low, high]."""
    kinds = (int, float, np.integer, np.floating)
    number = isinstance(value, kinds) and not isinstance(value, bool)
    # Compared, not converted: JSON has integers that are too large for a float.
    finite = number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    require(finite and low <= value <= high, name, value, expected)  # type: ignore[operator]


def require_count(
    name: str, value: object, low: int = 1, high: int | None = None, or_none: bool = False
) -> None:
    """`require` for an integer of at least ``low``, and at most ``high`` if that is given.

    ``or_none``: the message says that None is possible too; it is for the caller to let it pass.
    """
    expected = f"an integer >= {low}" + (f" and <= {high}" if high is not None else "")
    expected += ", or None (null)" * or_none
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    fine = whole and value >= low and (high is None or value <= high)  # type: ignore[operator]
    require(fine, name, value, expected)


def require_flag(name: str, value: object) -> None:
    """`require` for True or False."""
    require(isinstance(value, bool), name, value, "True or False (JSON: true or false)")


def require_choice(name: str, value: object, choices: Any) -> None:
    """`require` for one of a few words."""
    require(isinstance(value, str) and value in choices, name, value, f"in {choices}")


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings from ``NAME=VALUE`` texts: values are JSON where they can be read so, else strings.

    Raises:
        ConfigError: A text has no ``=``.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got {text!r}.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def from_mapping(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build a config dataclass from a JSON object; unknown or missing keys are named.

    Raises:
        ConfigError: A key is unknown or missing, or a value is refused by the dataclass.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown settings {unknown}, missing settings {missing}; "
            f"known ones are {sorted(fields)}."
        )
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return kind(**lists)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the actor, behavior model and critics. Our choices: the paper's are not public.

    Attributes:
        observation_size: Length of the flattened observation.
        action_size: Length of the action.
        actor_components: K of the actor.
        behavior_components: K of the behavior model.
        critics: E, independent members of the critic ensemble.
        actor_hidden: Widths of the actor's hidden layers. The trainer's default for datasets of no
            more than 10,000 transitions is (512, 512), with weight decay.
        behavior_hidden: Widths of the behavior model's hidden layers; the same.
        critic_hidden: Widths of every critic's hidden layers.
        critic_layer_norm: LayerNorm before each critic activation; see DESIGN.md for why.
        critic_frequencies: Critics and state values see every (normalized) number of the
            observation also as sin and cos of 1, 2, 4, ... times itself, for so many frequencies.
            For mazes, where a value changes within a wall's thickness. 0: the numbers alone.
        critic_lookahead: The critics are state values of where an action leads, by a learned step
            of the environment: `gem_policy.critics.LookaheadCritics`. False: networks of
            observation and action, which decide faster, and are the better ones where nothing
            follows (bandits). The step is a mean: where chance decides what follows, nobody has
            measured which are better.
        step_hidden: Widths of the hidden layers of that step's networks.
        min_std: Smallest standard deviation of a component, in normalized action units.
        max_std: Largest standard deviation of a component, in normalized action units.
    """

    observation_size: int
    action_size: int
    actor_components: int = 5
    behavior_components: int = 5
    critics: int = 4
    actor_hidden: tuple[int, ...] = (256, 256)
    behavior_hidden: tuple[int, ...] = (256, 256)
    critic_hidden: tuple[int, ...] = (256, 256)
    critic_layer_norm: bool = True
    critic_frequencies: int = 0
    critic_lookahead: bool = True
    step_hidden: tuple[int, ...] = (128, 128)
    min_std: float = 0.05
    max_std: float = 1.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name in (
            "observation_size",
            "action_size",
            "actor_components",
            "behavior_components",
            "critics",
        ):
            require_count(name, getattr(self, name), high=MAX_SIZE)
        for name in ("actor_hidden", "behavior_hidden", "critic_hidden", "step_hidden"):
            widths = getattr(self, name)
            count = len(widths) if isinstance(widths, tuple) else 0
            require(count >= 1, name, widths, "a non-empty tuple of layer widths")
            require(count <= MAX_LAYERS, name, f"{count} layers", f"at most {MAX_LAYERS} layers")
            for width in widths:
                require_count(name, width, high=MAX_SIZE)
        for name in ("critic_layer_norm", "critic_lookahead"):
            require_flag(name, getattr(self, name))
        require_count("critic_frequencies", self.critic_frequencies, 0, MAX_FREQUENCIES)
        require_number("min_std", self.min_std, "a number in [1e-6, 10]", 1e-6, 10)
        require_number("max_std", self.max_std, "a number in [1e-6, 100]", 1e-6, 100)
        require(
            self.max_std > self.min_std, "max_std", self.max_std, f"above min_std={self.min_std}"
        )


@dataclass(frozen=True)
class SelectionConfig:
    """The run-time knobs of a policy; all can change after loading, none needs retraining.

    Attributes:
        candidates: N, actions proposed per observation. The budget.
        kappa: Pessimism: standard deviations of the ensemble below its mean.
        support_weight: lambda, weight of the standardized log-density of the behavior model. Where
            a rare action is the best one, what is rare must not count for much: 0.5 (bandits in
            DESIGN.md).
        value_scale: ``"standardized"``: the bound is also standardized within the state's own
            candidates, so that one lambda serves tasks of any reward scale. ``"raw"``: it is not,
            which is the abstract's formula to the letter.
        temperature: 0 takes the best candidate; above 0, ``predict(deterministic=False)`` draws
            from softmax(score / temperature).
        bound: ``"lower"``: mean - kappa * std of the members' values. ``"paired"``: the same of
            each member's *difference* to its value of candidate 0, the actor's mode, which
            cancels what is common to all actions of the state (our choice, and our default, for
            the reasons in DESIGN.md; ``lower`` is the abstract's).
        proposal_scale: Factor on the components' standard deviations when candidates are drawn.
        value_knee: Standardized values above this count a tenth of the excess (our choice). The
            best of N noisy values is the more overrated the larger N is; with a knee, a larger
            budget goes into finding a good value with more support instead. None: no knee. Has no
            effect on raw values.
        all_modes: Whether the means of all components are candidates first, or only that of the
            heaviest one, the actor's mode (our default, measured: DESIGN.md). A rare component's
            mean is a candidate out of proportion to its weight, in every state.
        gain_kappa: A candidate may replace candidate 0, the actor's mode, only where it is better
            by a lower bound: where mean - gain_kappa * std of the members' differences is above 0.
            The others rank behind the mode. None: any may, and the best score may be that of a
            candidate which has support but no gain (our choice, and our default, measured:
            DESIGN.md). Of the deterministic set: among fresh draws there is no mode.
        least_gain: With ``gain_kappa``, the mean of those differences must also be above this, in
            units of `PolicyConfig.gain_unit`, a typical difference between the values of the data's
            actions (our choice, measured: DESIGN.md). 0, or where that unit is not known: any gain
            counts.
        gain_per_nat: With ``gain_kappa``, what the mean of those differences must be above besides,
            in the same unit and times ``support_weight``, for every nat of the behavior model's
            log-density that a candidate gives up against candidate 0 (our choice, measured:
            DESIGN.md). The more candidates, the more lie at the edges of the data, where critics
            are wrong. 0: support counts in the score alone.
        deciding_candidates: With ``gain_kappa`` and more candidates than this, one of the first
            this many must be one that may replace candidate 0, and have a better score, before any
            may; which one does is then for all of them to say (our choice, measured: DESIGN.md).
            The best of many scores is the better the more there are, though no action is: so a
            larger budget makes better choices, and hardly more of them. None: all decide.
    """

    candidates: int = 32
    kappa: float = 3.0
    support_weight: float = 1.0
    value_scale: str = "standardized"
    temperature: float = 0.0
    bound: str = "paired"
    proposal_scale: float = 1.0
    value_knee: float | None = None
    all_modes: bool = False
    gain_kappa: float | None = 2.0
    least_gain: float = 0.06
    gain_per_nat: float = 0.01
    deciding_candidates: int | None = 64

    def __post_init__(self) -> None:
        make_plain(self)
        require_count("candidates", self.candidates, high=MAX_CANDIDATES)
        require_number("kappa", self.kappa, "a finite number >= 0", 0, math.inf)
        require_number("support_weight", self.support_weight, "a finite number >= 0", 0, math.inf)
        require_number("temperature", self.temperature, "a finite number >= 0", 0, math.inf)
        require_number("proposal_scale", self.proposal_scale, "a finite number >= 0", 0, math.inf)
        require_choice("value_scale", self.value_scale, VALUE_SCALES)
        require_flag("all_modes", self.all_modes)
        if self.gain_kappa is not None:
            require_number(
                "gain_kappa", self.gain_kappa, "a finite number >= 0, or None (null)", 0, math.inf
            )
        require_number("least_gain", self.least_gain, "a finite number >= 0", 0, math.inf)
        require_number("gain_per_nat", self.gain_per_nat, "a finite number >= 0", 0, math.inf)
        if self.deciding_candidates is not None:
            require_count("deciding_candidates", self.deciding_candidates, or_none=True)
        if self.value_knee is not None:
            require_number("value_knee", self.value_knee, "a finite number or None", -1e9, 1e9)
        require_choice("bound", self.bound, BOUNDS)

    def replace(self, **changes: Any) -> SelectionConfig:
        """The same settings with some changed; an unknown name raises `ConfigError`."""
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            known = [f.name for f in dataclasses.fields(self)]
            raise ConfigError(f"Unknown selection settings {unknown}; known ones are {known}.")
        return dataclasses.replace(self, **changes)
