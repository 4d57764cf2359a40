"""CandidateChoice: the action is the rank of one of the policy's candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.config import MAX_CANDIDATES, plain, require_count
from gem_policy.errors import SpaceError
from gem_policy.policy import GEMPolicy
from gem_policy.wrappers.policy_wrapper import (
    PolicySource,
    PolicyWrapper,
    require_finite,
    resets_next,
    write_actions,
)
from gem_policy.wrappers.records import Array, Record, add, first, spread

Count = int | np.integer[Any]


def pick(
    policy: GEMPolicy,
    rows: Float[Tensor, "active obs"],
    ranks: NDArray[np.int64],
    count: int,
    active: NDArray[np.bool_],
) -> tuple[Array, Record]:
    """The candidates of the given ranks, best first, among `count`.

    Args:
        policy: Proposes and scores.
        rows: Flattened observations, environment units, of the active environments.
        ranks: For each of them.
        count: N.
        active: Shape (envs,): which environments the rows belong to.

    Returns:
        Their actions in environment units, and the record of all environments.

    Raises:
        SpaceError: An observation is not finite.
    """
    require_finite(rows, "CandidateChoice")
    decision = policy.decide(rows, count=count)
    candidates = decision.candidates
    order = decision.scores.argsort(dim=-1, descending=True, stable=True)
    index = order.gather(-1, torch.from_numpy(ranks).to(rows.device).unsqueeze(-1))
    wide = index.unsqueeze(-1).expand(-1, 1, candidates.actions.shape[-1])
    chosen = policy.scaler.invert(candidates.actions.gather(-2, wide).squeeze(-2))
    actions = write_actions(chosen, policy)
    log_beta = candidates.log_behavior.gather(-1, index)
    percentile = policy.support_percentile(log_beta)
    table = torch.cat((decision.scores.gather(-1, index), log_beta, percentile), -1)
    score, density, percent = table.double().cpu().numpy().T
    record = {
        "rank": ranks,
        "index": index.squeeze(-1).cpu().numpy(),
        "component": candidates.component.gather(-1, index).squeeze(-1).cpu().numpy(),
        "score": score,
        "log_beta": density,
        "percentile": percent,
        "action": actions,
    }
    return actions, {"candidate": spread(record, active)}


def unpicked(policy: GEMPolicy, envs: int) -> Record:
    """The record of environments where nobody has chosen."""
    whole, number = np.empty(0, np.int64), np.empty(0)
    action = np.empty((0, *policy.action_space.shape), policy.action_space.dtype)
    record: Record = {"rank": whole, "index": whole, "component": whole}
    record |= {"score": number, "log_beta": number, "percentile": number, "action": action}
    return {"candidate": spread(record, np.zeros(envs, dtype=np.bool_))}


def read_count(candidates: Count | None, policy: GEMPolicy) -> int:
    """How many ranks there are; None for the policy's setting.

    Raises:
        ConfigError: It is no integer of at least 1.
    """
    count: int = policy.selection.candidates if candidates is None else plain(candidates)
    require_count("candidates", count, high=MAX_CANDIDATES)
    return count


def read_ranks(ranks: Any, count: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Ranks as integers of the given shape.

    Raises:
        SpaceError: They are no integers in [0, count), or have another shape.
    """
    try:
        given = np.asarray(ranks)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpaceError(f"The rank cannot be made an integer: {error}.") from error
    # SB3's algorithms send arrays of shape () or (1,).
    if given.dtype.kind not in "iu" or given.size != int(np.prod(shape)):
        raise SpaceError(
            f"CandidateChoice takes ranks, integers of shape {shape}, got {given.dtype} of shape "
            f"{given.shape}. Continuous actions go to the environment inside."
        )
    given = given.reshape(shape).astype(np.int64)
    if given.size and not (given.min() >= 0 and given.max() < count):
        raise SpaceError(
            f"Ranks must lie in [0, {count - 1}], got {given.tolist()}: there are {count} "
            "candidates, and 0 is the best."
        )
    return given


class CandidateChoice(PolicyWrapper):
    """Makes the action the rank of a candidate, so that an agent learns to choose among them.

    Rank 0 is the policy's own choice, 1 the candidate with the second best score, and so on. The
    agent can only do what the policy proposes, and any algorithm for discrete actions can learn
    it online. Observations are as before. Vector twin:
    `gem_policy.wrappers.vector.CandidateChoice`.

    After a step, ``info`` holds::

        info["gem"]["candidate"] = {
            "rank": int,          # what the agent sent
            "index": int,         # place in the candidate set; 0 is the actor's mode
            "component": int,     # mixture component that it came from
            "score": float,       # what candidates are ranked by; -inf: it has a non-finite number
            "log_beta": float,    # log density under the behavior model, in nats
            "percentile": float,  # percent of the dataset's own actions that are less likely
            "action": array of shape (action size,), what was done, environment units
        }

    and after a reset the same entries, NaN and -1; also after the step that is a reset of a
    `gymnasium.wrappers.Autoreset` inside, which ignores the action.

    Args:
        env: The environment; its spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        candidates: N, the size of the new action space; None for the policy's setting. It stays
            when the policy's setting changes.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        ConfigError: `candidates` is below 1.
        SpaceError: The environment's spaces are not the policy's.
        CheckpointError: There is no such policy.

    Example::

        env = CandidateChoice(make_env(policy), policy, candidates=8)
        model = DQN("MultiInputPolicy", env).learn(1000)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        candidates: Count | None = None,
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection, candidates=candidates)
        self.candidates = read_count(candidates, self.policy)
        self.action_space = gym.spaces.Discrete(self.candidates)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = super().reset(seed=seed, options=options)
        add(info, first(unpicked(self.policy, 1)))
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with the candidate of the given rank.

        Raises:
            SpaceError: The action is no rank, or the observation is not finite.
            ResetNeeded: Nobody has called reset.
        """
        ranks, rows = read_ranks(action, self.candidates, (1,)), self._seen()
        if resets_next(self.env):  # what is ignored must still be an action
            sent, record = self.policy.action_space.low.copy(), unpicked(self.policy, 1)
        else:
            active = np.ones(1, dtype=np.bool_)
            actions, record = pick(self.policy, rows, ranks, self.candidates, active)
            sent = actions[0]
        observation, reward, terminated, truncated, info = self.env.step(sent)
        self._remember(observation)
        add(info, first(record))
        return observation, reward, terminated, truncated, info
