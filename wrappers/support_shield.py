"""SupportShield: no action that the data does not support reaches the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.config import plain, require, require_number
from gem_policy.errors import SupportError
from gem_policy.policy import GEMPolicy
from gem_policy.wrappers.policy_wrapper import (
    PolicySource,
    PolicyWrapper,
    read_actions,
    require_finite,
    resets_next,
    write_actions,
)
from gem_policy.wrappers.records import Array, Record, add, first, spread

Percentile = float | np.floating[Any] | np.integer[Any]
MODES = ("replace", "nearest", "refuse")


class Shield:
    """The rule of the shield, for any number of environments; it counts, and keeps no other state.

    Args:
        policy: Judges, and replaces.
        envs: Number of environments.
        percentile: Threshold in percent.
        mode: One of `MODES`.

    Attributes:
        steps: Actions judged since it was made.
        interventions: How many of them it replaced or refused.

    Raises:
        ConfigError: The threshold is outside [0, 100] or there is no such mode.
    """

    def __init__(self, policy: GEMPolicy, envs: int, percentile: Percentile, mode: str) -> None:
        self.policy, self.percentile, self.mode = policy, plain(percentile), mode
        require_number("percentile", self.percentile, "a number in [0, 100]", 0, 100)
        require(mode in MODES, "mode", mode, f"in {MODES}")
        self.steps = self.interventions = 0
        self._episode = np.zeros((2, envs), dtype=np.int64)  # steps, interventions

    def begin(self, where: NDArray[np.bool_]) -> None:
        """New episodes: their counts start again."""
        self._episode[:, where] = 0

    def blank(self) -> Record:
        """The record of environments where nobody has acted."""
        size, dtype = self.policy.action_space.shape, self.policy.action_space.dtype
        actions = np.empty((0, *size), dtype)
        text, flags, numbers = np.empty(0, object), np.empty(0, np.bool_), np.empty(0)
        inactive = np.zeros(self._episode.shape[1], dtype=np.bool_)
        return self._record(flags, text, text, numbers, numbers, actions, actions, inactive)

    def guard(
        self,
        rows: Float[Tensor, "active obs"],
        given: Float[Tensor, "active action"],
        active: NDArray[np.bool_],
    ) -> tuple[Array, NDArray[np.bool_], Record]:
        """Judge one action for every active environment.

        Args:
            rows: Observations, flattened, environment units.
            given: What the agent wants to do.
            active: Shape (envs,): which environments the rows belong to.

        Returns:
            The actions to execute, which of them are replacements, both for active environments
            only, and the record, for all.

        Raises:
            SupportError: The mode is ``"refuse"`` and there is something to refuse.
            SpaceError: An observation is not finite.
        """
        require_finite(rows, "SupportShield")
        percentile = self._percentile(rows, given)
        finite = torch.isfinite(given).all(-1)
        blocked = ~(finite & (percentile >= self.percentile))
        executed, nearest = given.clone(), torch.zeros_like(blocked)
        if bool(blocked.any()):
            executed[blocked], nearest[blocked] = self._replacements(rows[blocked], given[blocked])
        stopped = blocked.cpu().numpy()
        self._count(active, stopped)
        if self.mode == "refuse" and stopped.any():
            self._refuse(percentile, given, executed, stopped, np.flatnonzero(active))
        gap = self.policy.scaler.apply(given) - self.policy.scaler.apply(executed)
        dtype = self.policy.action_space.dtype
        done = executed.cpu().numpy().astype(dtype)
        done[stopped] = write_actions(executed[blocked], self.policy)
        reason = np.where(finite.cpu().numpy(), "unsupported", "not finite").astype(object)
        by = np.where(nearest.cpu().numpy(), "nearest", "choice").astype(object)
        record = self._record(
            stopped,
            np.where(stopped, reason, ""),
            np.where(stopped, by, ""),
            percentile.double().cpu().numpy(),
            gap.square().sum(-1).sqrt().double().cpu().numpy(),
            given.cpu().numpy().astype(dtype, copy=False),
            done,
            active,
        )
        return done, stopped, record

    @torch.inference_mode()
    def _percentile(
        self, rows: Float[Tensor, "active obs"], given: Float[Tensor, "active action"]
    ) -> Float[Tensor, " active"]:
        """The number of `GEMPolicy.assess` that matters here, by one network instead of three."""
        normalized = self.policy.scaler.apply(given).unsqueeze(-2)
        density = self.policy.behavior_mixture(rows).log_prob(normalized).squeeze(-1)
        density = torch.where(torch.isfinite(given).all(-1), density, torch.nan)
        return self.policy.support_percentile(density)

    def _replacements(
        self, rows: Float[Tensor, "blocked obs"], given: Float[Tensor, "blocked action"]
    ) -> tuple[Float[Tensor, "blocked action"], Bool[Tensor, " blocked"]]:
        """The policy's choices, or the nearest supported candidates; and which are the latter."""
        # With a count, because nothing is to be compiled for every number of rows.
        decision = self.policy.decide(rows, count=self.policy.selection.candidates)
        if self.mode != "nearest":
            return decision.action, torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        candidates = decision.candidates
        percentile = self.policy.support_percentile(candidates.log_behavior)
        gap = candidates.actions - self.policy.scaler.apply(given).unsqueeze(-2)
        distance = gap.square().sum(-1)
        distance = torch.where(percentile >= self.percentile, distance, torch.inf)
        distance = torch.where(distance.isnan(), torch.inf, distance)
        best = distance.min(-1)
        found = torch.isfinite(best.values)
        wide = best.indices[:, None, None].expand(-1, 1, given.shape[-1])
        nearest = self.policy.scaler.invert(candidates.actions.gather(-2, wide).squeeze(-2))
        return torch.where(found.unsqueeze(-1), nearest, decision.action), found

    def _count(self, active: NDArray[np.bool_], stopped: NDArray[np.bool_]) -> None:
        self._episode[0, active] += 1
        self._episode[1, active] += stopped
        self.steps += len(stopped)
        self.interventions += int(stopped.sum())

    def _refuse(
        self,
        percentile: Float[Tensor, " active"],
        given: Float[Tensor, "active action"],
        choice: Float[Tensor, "active action"],
        stopped: NDArray[np.bool_],
        envs: NDArray[np.intp],
    ) -> None:
        told = "; ".join(
            (f"environment {envs[i]}: " if self._episode.shape[1] > 1 else "")
            + f"action {np.round(given[i].tolist(), 4).tolist()} is more likely than "
            f"{float(percentile[i]):.3g} % of the dataset's own actions, the policy would take "
            f"{np.round(choice[i].tolist(), 4).tolist()}"
            for i in np.flatnonzero(stopped)
        )
        raise SupportError(
            f"Refused at percentile={self.percentile:g}: {told}. The environment was not stepped: "
            "send another action, lower `percentile`, or use mode='replace' or 'nearest'."
        )

    def _record(
        self,
        intervened: NDArray[np.bool_],
        reason: Array,
        replacement: Array,
        percentile: Array,
        distance: Array,
        requested: Array,
        executed: Array,
        active: NDArray[np.bool_],
    ) -> Record:
        """The record of all environments from columns of the active ones."""
        columns = {
            "intervened": intervened,
            "reason": reason,
            "replacement": replacement,
            "percentile": percentile,
            "distance": distance,
            "requested": requested,
            "executed": executed,
        }
        steps, interventions = self._episode.copy()
        counts = {"steps": steps, "interventions": interventions}
        return {"shield": spread(columns, active) | counts}


class SupportShield(PolicyWrapper):
    """Replaces or refuses actions, of any agent, that the data does not support.

    An action is stopped where its density under the behavior model is lower than that of
    ``percentile`` percent of the dataset's own held-out actions; the checkpoint holds that
    calibration, in steps of 0.1 %, and thresholds between two steps act as the lower one. About
    ``percentile`` percent of the dataset's own actions would be stopped, too. Vector twin:
    `gem_policy.wrappers.vector.SupportShield`.

    After a step, ``info`` holds::

        info["gem"]["shield"] = {
            "intervened": bool,
            "reason": str,         # "unsupported", "not finite", or "" where it passed
            "replacement": str,    # "choice" (the policy's), "nearest", or "" where it passed
            "percentile": float,   # of the action that was asked for
            "distance": float,     # from it to the executed one; a dimension of the box is 2 long
            "requested": array of shape action_space.shape,
            "executed": array of shape action_space.shape,
            "steps": int,          # of this episode, up to now
            "interventions": int,  # of this episode, up to now
        }

    and after a reset the same entries, with counts of 0 and blanks; also after the step that is a
    reset of a `gymnasium.wrappers.Autoreset` inside, which ignores the action. ``env.shield.steps``
    and ``env.shield.interventions`` count over all episodes.

    Whoever records transitions outside of this wrapper records what was asked for, not what was
    done: put Minari's DataCollector inside, or take ``executed``.

    Args:
        env: The environment; its spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        percentile: The threshold in percent.
        mode: What happens to a stopped action. ``"replace"``: the policy's own choice is done
            instead. ``"nearest"``: the policy's candidate that is nearest to it among those that
            pass the threshold; its own choice where none does. ``"refuse"``: `SupportError`, and
            the environment is not stepped.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        ConfigError: The threshold is outside [0, 100] or there is no such mode.
        SpaceError: The environment's spaces are not the policy's.
        CheckpointError: There is no such policy.

    Example::

        env = SupportShield(make_env(policy), policy, percentile=1.0, mode="nearest")
        model = SAC("MultiInputPolicy", env).learn(1000)
        env.shield.interventions / env.shield.steps
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        percentile: Percentile = 1.0,
        mode: str = "replace",
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection, percentile=percentile, mode=mode)
        self.shield = Shield(self.policy, 1, percentile, mode)
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and the counts of the episode."""
        observation, info = super().reset(seed=seed, options=options)
        self._over = False
        self.shield.begin(np.ones(1, dtype=np.bool_))
        add(info, first(self.shield.blank()))
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with the action if it is supported, else with another.

        Raises:
            SupportError: The mode is ``"refuse"`` and the action is not supported.
            SpaceError: The action has another shape than the action space, or the observation
                that it answers to is not finite.
            ResetNeeded: Nobody has called reset.
        """
        given, rows = read_actions(action, self.policy, ()), self._seen()
        active = np.ones(1, dtype=np.bool_)
        if self._over:  # nobody called reset: the environment resets itself
            self._over = False
            self.shield.begin(active)
        if resets_next(self.env):
            sent, record = action, self.shield.blank()
        else:
            executed, stopped, record = self.shield.guard(rows, given, active)
            sent = executed[0] if stopped[0] else action
        observation, reward, terminated, truncated, info = self.env.step(sent)
        self._over = bool(terminated or truncated)
        self._remember(observation)
        add(info, first(record))
        return observation, reward, terminated, truncated, info
