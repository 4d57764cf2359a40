"""AntMaze: a four-legged walker sent through mazes by a planner, after D4RL and Minari.

The planner picks the next cell of a shortest path, a policy that D4RL's authors trained walks
there. It learned on a weaker ant: its actions are multiplied by 0.2, the ratio of the torques, and
so all actions of these sets lie in [-0.2, 0.2] of a space that reaches from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from gem_policy.training.recipes import references
from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes
from gem_policy.training.recipes.networks import Agent
from gem_policy.training.recipes.recipe import Recipe, References, Shard
from gem_policy.training.recipes.robotics import make_robotics
from gem_policy.training.recipes.waypoints import MazeMap
from gem_policy.training.sources import read_arrays

TORQUE = 0.2  # 30 Nm, which the policy learned with, over the 150 Nm of this ant
NOISE = 0.2  # added to the policy's actions, as D4RL does
WANDER = 0.5  # m around the middle of the next cell
SIGHT = 10.0  # m; the distance at which the policy is shown every waypoint

Map = list[list[int | str]]
Array = NDArray[Any]
Actor = Callable[[dict[str, Array]], Array]


@dataclass(frozen=True)
class Variant:
    """One dataset.

    Attributes:
        title: Maze, as in the environment's id.
        kind: What follows the maze in the dataset's name, if anything.
        start: Row and column where evaluation starts.
        goal: Row and column of the goal of the evaluation.
        limit: Steps of an episode.
        cells: Environment whose map says where data starts and ends; `evaluation` for the two
            cells above, empty for all free cells.
    """

    title: str
    kind: str
    start: tuple[int, int]
    goal: tuple[int, int]
    limit: int
    cells: str

    @property
    def name(self) -> str:
        """Id of the dataset."""
        return f"gem/antmaze/{self.title.lower()}{'-' if self.kind else ''}{self.kind}-v0"


VARIANTS = (
    Variant("UMaze", "", (3, 1), (1, 1), 700, "evaluation"),
    Variant("UMaze", "diverse", (3, 1), (1, 1), 700, ""),
    Variant("Medium", "play", (1, 1), (6, 6), 1000, ""),
    Variant("Medium", "diverse", (1, 1), (6, 6), 1000, "_Diverse_GR"),
    Variant("Large", "play", (1, 1), (7, 9), 1000, ""),
    Variant("Large", "diverse", (1, 1), (7, 9), 1000, "_Diverse_GR"),
)


def env_spec(variant: Variant) -> EnvSpec:
    """The environment that the data comes from."""
    if variant.cells == "evaluation":
        return eval_env_spec(variant)
    return _spec(f"AntMaze_{variant.title}{variant.cells}-v5", variant.limit)


def eval_env_spec(variant: Variant) -> EnvSpec:
    """The environment that policies are scored in: one start, one goal, the maze of the data."""
    env = make_robotics(f"AntMaze_{variant.title}-v5")
    maze_map: Map = [list(row) for row in env.unwrapped.maze.maze_map]  # type: ignore[attr-defined]
    env.close()
    for (row, column), mark in ((variant.start, "r"), (variant.goal, "g")):
        maze_map[row][column] = mark
    return _spec(f"AntMaze_{variant.title}-v5", variant.limit, maze_map=maze_map)


def controller(
    env: gym.Env[Any, Any], agent: Agent, rng: np.random.Generator, noise: float
) -> Actor:
    """The behavior policy: from an observation to an action in [-0.2, 0.2], float32, shape (8,).

    Args:
        env: A maze environment, for its map.
        agent: Walks toward a point that is given relative to the body.
        rng: Draws waypoints and actions.
        noise: Standard deviation of the noise on the agent's actions.
    """
    maze = env.unwrapped.maze  # type: ignore[attr-defined]
    cells = MazeMap(maze.maze_map, float(maze.maze_size_scaling))

    def act(observation: dict[str, Array]) -> Array:
        position, goal = observation["achieved_goal"], observation["desired_goal"]
        goal_cell = cells.cell(goal)
        cell = cells.next_cell(cells.cell(position), goal_cell)
        target = goal
        if cell != goal_cell:
            target = cells.center(cell) + rng.uniform(-WANDER, WANDER, size=2)
        toward = target - position
        toward = SIGHT * toward / max(float(np.linalg.norm(toward)), 1e-8)
        seen = np.concatenate([observation["observation"], toward])
        action = agent.act(seen, 0, rng)
        if noise:
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1.0, 1.0)
        return (TORQUE * action).astype(np.float32)

    return act


def simulate(variant: Variant, shard: Shard) -> Episodes:
    """Simulate `shard.steps` steps in episodes of full length; the goal does not end them."""
    agent = _agent(shard.sources)
    env = make_robotics(env_spec(variant))
    maze: Any = env.unwrapped
    act = controller(env, agent, np.random.default_rng([shard.seed, shard.index, 1]), NOISE)
    recorder, time = EpisodeRecorder(), 0
    observation: Any = None
    try:
        for step in range(shard.steps):
            if time == 0:
                seed = references.episode_seed(shard.seed, shard.index, step)
                observation, info = maze.reset(seed=seed)
                recorder.begin(observation, _state(maze, observation, info))
            action = act(observation)
            observation, reward, _, _, info = maze.step(action)
            time = (time + 1) % variant.limit
            recorder.step(
                action,
                float(reward),
                False,
                time == 0,
                observation,
                _state(maze, observation, info),
            )
    finally:
        env.close()
    return recorder.finish()


def reference_scores(variant: Variant, seed: int, sources: Path | None) -> References:
    """Random actions, and the behavior policy: without its noise the ant stays stuck at walls."""
    return _scores_of_maze(variant.title, seed, sources)


@lru_cache
def _scores_of_maze(title: str, seed: int, sources: Path | None) -> References:
    variant = next(v for v in VARIANTS if v.title == title)
    agent = _agent(sources)

    def expert(env: gym.Env[Any, Any], episode: int) -> Actor:
        return controller(env, agent, np.random.default_rng([seed, episode]), noise=NOISE)

    return references.measure(eval_env_spec(variant), expert, seed)


def _agent(sources: Path | None) -> Agent:
    return Agent(read_arrays(sources, "d4rl_ant_controller/ant_goal_policy.npz"))


def _state(maze: Any, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
    body = maze.ant_env.data
    return {
        "qpos": body.qpos,
        "qvel": body.qvel,
        "goal": observation["desired_goal"],
        "success": bool(info["success"]),
    }


def _spec(env_id: str, limit: int, **kwargs: Any) -> EnvSpec:
    env = make_robotics(
        env_id,
        max_episode_steps=limit,
        continuing_task=True,
        reset_target=False,
        include_cfrc_ext_in_observation=False,
        **kwargs,
    )
    env.close()
    assert env.spec is not None
    env.spec.disable_env_checker = False
    return env.spec


def _recipe(variant: Variant) -> Recipe:
    where = {
        "evaluation": "one start, one goal",
        "": "any free cell as start and as goal",
        "_Diverse_GR": "a few marked cells as start and as goal",
    }[variant.cells]
    return Recipe(
        name=variant.name,
        summary=f"ant in the {variant.title} maze, {where}",
        description=(
            f"A planner sends an ant through AntMaze_{variant.title}-v5 (27 numbers of the body, "
            f"no contact forces), {where}. Every step it names a point within {WANDER} m per axis "
            "of the middle of the next cell of a shortest path, or the goal; the goal-reaching "
            "policy of D4RL's authors, sampled, with noise 0.2, walks there. It learned with a "
            "fifth of this ant's torque, so its actions are multiplied by 0.2. Episodes have full "
            f"length ({variant.limit} steps) and end as truncated; reward 1 for every step within "
            "0.45 m of the goal, which neither moves nor ends the episode. After Minari's "
            "D4RL/antmaze sets, whose walker is another; evaluation uses the maze of the data, "
            "not a mirrored one."
        ),
        simulate=partial(simulate, variant),
        env_spec=partial(env_spec, variant),
        eval_env_spec=partial(eval_env_spec, variant),
        references=partial(reference_scores, variant),
        algorithm="shortest-path planner + goal-reaching SAC policy, noise 0.2",
        shard_steps=10 * variant.limit,
        credits="Walker: D4RL (Fu et al., 2020; code Apache-2.0, data CC BY 4.0). Recipe: D4RL, "
        "Minari.",
        needs_sources=True,
    )


RECIPES = tuple(_recipe(variant) for variant in VARIANTS)
