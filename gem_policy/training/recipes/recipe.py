"""What a recipe is: how to simulate a piece of a dataset, and what to say about the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gem_policy.errors import DatasetError
from gem_policy.training.recipes.episodes import Episodes

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

NAMESPACE = "gem"


@dataclass(frozen=True)
class Shard:
    """The smallest piece that is simulated, and kept, as a whole.

    Attributes:
        index: Place in the dataset, from 0.
        steps: Number of steps to simulate.
        seed: Of the whole dataset; a shard draws from (seed, index), so that a dataset does not
            depend on the number of processes that made it.
        sources: Folder with other people's policies and demonstrations, for recipes that need it.
    """

    index: int
    steps: int
    seed: int
    sources: Path | None = None


@dataclass(frozen=True)
class References:
    """Mean returns in the evaluation environment that score 0 and 1 in normalized units.

    Attributes:
        minimum: Of uniformly random actions.
        maximum: Of the expert policy.
        episodes: Number of episodes behind each.
    """

    minimum: float
    maximum: float
    episodes: int


@dataclass(frozen=True)
class Recipe:
    """One dataset that this package knows how to make.

    Attributes:
        name: Id of the Minari dataset, `gem/<family>/<name>-v<number>`.
        summary: One line for a list.
        description: Paragraphs for the metadata: how it is made, and after which published set.
        simulate: Makes one shard; a module-level callable, since it travels to other processes.
        env_spec: The environment that the data comes from.
        eval_env_spec: The environment that policies are scored in.
        references: From (seed, sources) to the scores of random and expert policy.
        algorithm: What acted, for the metadata.
        steps: Size of the full dataset.
        shard_steps: Size of a shard.
        turns: How many shards make one round where several agents act in turn; a small dataset
            has smaller shards, so that the round is complete.
        requirements: Packages that rebuild the environments, pip style.
        license: Of the resulting data.
        credits: Whose work it builds on.
        needs_sources: Whether `simulate` reads other people's policies or demonstrations.

    Raises:
        DatasetError: if the name is outside the project's namespace or a size is not positive.
    """

    name: str
    summary: str
    description: str
    simulate: Callable[[Shard], Episodes]
    env_spec: Callable[[], EnvSpec]
    eval_env_spec: Callable[[], EnvSpec]
    references: Callable[[int, Path | None], References]
    algorithm: str
    steps: int = 1_000_000
    shard_steps: int = 50_000
    turns: int = 1
    requirements: tuple[str, ...] = ("gymnasium-robotics>=1.3", "mujoco>=3.1")
    license: str = "CC-BY-4.0"
    credits: str = ""
    needs_sources: bool = False

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if not self.name.startswith(f"{NAMESPACE}/"):
            raise DatasetError(
                f"A recipe's name must start with `{NAMESPACE}/`, got `{self.name}`: datasets made "
                "here never take a published id."
            )
        if min(self.steps, self.shard_steps, self.turns) < 1:
            raise DatasetError(
                f"`steps`, `shard_steps` and `turns` must be >= 1, got {self.steps}, "
                f"{self.shard_steps} and {self.turns}."
            )

    def shards(self, steps: int, seed: int, sources: Path | None) -> tuple[Shard, ...]:
        """Cut `steps` into shards; the last one may be smaller."""
        full = min(self.shard_steps, math.ceil(steps / self.turns))
        sizes = [min(full, steps - start) for start in range(0, steps, full)]
        return tuple(Shard(index, size, seed, sources) for index, size in enumerate(sizes))
