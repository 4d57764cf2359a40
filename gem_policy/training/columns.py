"""The tensors of a dataset: filled while it is read, then checked and clipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.errors import DatasetError
from gem_policy.training.location import Source
from gem_policy.training.storages import RawEpisode
from gem_policy.training.transitions import Transitions

OUTSIDE_TOLERANCE = 0.1  # of a dimension's range; data further outside is in other units
CHUNK = 65536  # rows that are checked at a time, to keep temporary arrays small


class Columns:
    """Tensors that are filled episode by episode, at their final size from the start.

    Args:
        source: What is read.
        observation_size: Numbers in one flattened observation.
        action_size: Numbers in one action.
        limit: Steps that there is room for.
    """

    def __init__(self, source: Source, observation_size: int, action_size: int, limit: int) -> None:
        steps, episodes = limit, min(source.total_episodes, limit)
        self._id, self._capacity, self._limit = source.id, source.total_steps, limit
        self._tensors = {
            "observations": torch.empty(steps + episodes, observation_size),
            "actions": torch.empty(steps, action_size),
            "rewards": torch.empty(steps),
            "terminated": torch.empty(steps, dtype=torch.bool),
            "truncated": torch.empty(steps, dtype=torch.bool),
            "episode": torch.empty(steps, dtype=torch.int64),
        }
        self._arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        self._steps = self._episodes = 0

    def check(self, episode: RawEpisode) -> None:
        """Refuse an episode that cannot be copied in.

        Raises:
            DatasetError: if its arrays are misaligned, or with it there are more steps than the
                metadata states.
        """
        steps = len(episode.rewards)
        rows = {len(array) for array in episode.observations}
        sizes = {len(episode.actions), len(episode.terminations), len(episode.truncations), steps}
        if steps == 0 or sizes != {steps} or rows != {steps + 1}:
            raise DatasetError(
                f"Episode {episode.number} of `{self._id}` is misaligned: {sorted(rows)} "
                f"observations, {len(episode.actions)} actions, {steps} rewards, "
                f"{len(episode.terminations)} terminations, {len(episode.truncations)} "
                "truncations; expected T + 1 observations to T >= 1 of everything else. Record "
                "it again with Minari's DataCollector, which keeps the last observation."
            )
        if self._steps + steps > self._capacity:
            raise DatasetError(
                f"`{self._id}` holds more steps than the {self._capacity} that its metadata "
                "states. The dataset was changed by hand or half written: make it again."
            )

    def append(self, episode: RawEpisode) -> bool:
        """Copy a checked episode in, unless it would be too many steps; says whether."""
        steps = len(episode.rewards)
        if self._steps + steps > self._limit:
            return False
        here = slice(self._steps, self._steps + steps)
        rows = slice(here.start + self._episodes, here.stop + self._episodes + 1)
        column = 0
        with np.errstate(over="ignore"):  # what does not fit float32 becomes inf, found later
            for array in episode.observations:
                self._arrays["observations"][rows, column : column + array.shape[1]] = array
                column += array.shape[1]
            self._arrays["actions"][here] = episode.actions
            self._arrays["rewards"][here] = episode.rewards
        self._arrays["terminated"][here] = episode.terminations
        self._arrays["truncated"][here] = episode.truncations
        self._arrays["episode"][here] = self._episodes
        self._steps, self._episodes = here.stop, self._episodes + 1
        return True

    def finish(self) -> Transitions:
        """The tensors, cut to what was filled."""
        ends = {"observations": self._steps + self._episodes}
        return Transitions(
            **{
                name: tensor
                if len(tensor) == (end := ends.get(name, self._steps))
                else tensor[:end].clone()
                for name, tensor in self._tensors.items()
            }
        )


def check_finite(source: Source, data: Transitions, numbers: Sequence[int]) -> None:
    """Refuse NaN and infinite numbers.

    Args:
        source: Of the data.
        data: What was read.
        numbers: Of its episodes, in the source.

    Raises:
        DatasetError: if there are any; the message counts them and has their episodes' numbers.
    """
    of_rows = torch.repeat_interleave(torch.tensor(numbers), data.lengths + 1)
    of_steps = torch.tensor(numbers)[data.episode]
    for name in ("rewards", "observations", "actions"):
        tensor = getattr(data, name)
        bad = sum(int((~chunk.isfinite()).sum()) for chunk in tensor.split(CHUNK))
        if bad:
            where = (~tensor.reshape(len(tensor), -1).isfinite()).any(1)
            found = (of_rows if name == "observations" else of_steps)[where]
            episodes = sorted(set(found.tolist()))
            raise DatasetError(
                f"`{source.id}` has {bad} NaN or infinite {name}, in the episodes {episodes}. "
                "Repair them, or leave them out: load(..., episode_filter=lambda episode: "
                "episode.number not in [...])."
            )


def clip_actions(source: Source, actions: Float[Tensor, "steps action"]) -> int:
    """Clip actions to their space, in place; how many steps had one outside.

    Raises:
        DatasetError: if one lies far outside.
    """
    space = source.action_space
    low, high = (torch.as_tensor(b.reshape(-1)).float() for b in (space.low, space.high))
    clipped, furthest = 0, torch.zeros_like(low)
    for chunk in torch.split(actions, CHUNK):
        excess = torch.maximum(low - chunk, chunk - high)
        furthest = torch.maximum(furthest, excess.amax(0))
        clipped += int((excess > 0).any(1).sum())
    share = furthest / (high - low)
    if bool((share > OUTSIDE_TOLERANCE).any()):
        worst = int(share.argmax())
        raise DatasetError(
            f"`{source.id}` has actions far outside of their space: dimension {worst} lies in "
            f"[{actions[:, worst].min():.4g}, {actions[:, worst].max():.4g}], its bounds are "
            f"[{low[worst]:.4g}, {high[worst]:.4g}]. They are in other units, or were stored "
            "before the environment clipped them: rescale or clip them and record again."
        )
    if clipped:
        for chunk in torch.split(actions, CHUNK):
            torch.clamp(chunk, low, high, out=chunk)
    return clipped
