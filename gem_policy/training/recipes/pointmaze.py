"""PointMaze: a force-driven ball steered through a maze by a planner and a PD controller.

After the published `D4RL/pointmaze` sets of Minari, in the same environments and by the same
recipe, with two differences: the path is always a shortest one, and the data is made in
independent pieces of 50 000 steps, each from a reset of its own, instead of one piece of
1 000 000. Goals change when they are reached; that is where the stream is cut into episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from gem_policy.training.recipes import references
from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes
from gem_policy.training.recipes.recipe import Recipe, References, Shard
from gem_policy.training.recipes.robotics import make_robotics
from gem_policy.training.recipes.waypoints import MazeMap, WaypointFollower

GAIN_POSITION = 10.0  # force per m of distance to the waypoint, in units of the largest force
GAIN_VELOCITY = -1.0  # force per m/s
NOISE = 0.5  # standard deviation of the noise on each force component
REACH = 0.1  # m
SHIFT = (-0.2, 0.0)  # m


@dataclass(frozen=True)
class Variant:
    """One maze.

    Attributes:
        title: As in the environment's id.
        goal: Row and column of the goal cell of the evaluation environment.
        limit: Steps of an evaluation episode.
        dense: Whether the reward is exp(-distance) instead of 1 at the goal.
    """

    title: str
    goal: tuple[int, int]
    limit: int
    dense: bool

    @property
    def env_id(self) -> str:
        """Id of the Gymnasium-Robotics environment."""
        return f"PointMaze_{self.title}{'Dense' if self.dense else ''}-v3"

    @property
    def name(self) -> str:
        """Id of the dataset."""
        return f"gem/pointmaze/{self.title.lower()}{'-dense' if self.dense else ''}-v0"


VARIANTS = tuple(
    Variant(title, goal, limit, dense)
    for dense in (False, True)
    for title, goal, limit in (
        ("UMaze", (1, 1), 300),
        ("Medium", (6, 6), 600),
        ("Large", (7, 9), 800),
    )
)


def env_spec(variant: Variant) -> EnvSpec:
    """The environment that the data comes from: the goal moves on when it is reached."""
    return _spec(variant, limit=1_000_000, reset_target=True)


def eval_env_spec(variant: Variant) -> EnvSpec:
    """The environment that policies are scored in: one goal cell, any start, goal stays."""
    env = make_robotics(variant.env_id)
    maze_map = [list(row) for row in env.unwrapped.maze.maze_map]  # type: ignore[attr-defined]
    env.close()
    maze_map[variant.goal[0]][variant.goal[1]] = "g"
    return _spec(variant, limit=variant.limit, reset_target=False, maze_map=maze_map)


def controller(
    env: gym.Env[Any, Any], rng: np.random.Generator, noise: float
) -> Callable[[dict[str, NDArray[np.float64]]], NDArray[np.float32]]:
    """The behavior policy: from an observation to an action in [-1, 1], float32, shape (2,).

    Args:
        env: A maze environment, for its map.
        rng: Source of waypoint displacements and noise.
        noise: Standard deviation of the noise that is added before clipping; 0 for the expert.
    """
    maze = env.unwrapped.maze  # type: ignore[attr-defined]
    follower = WaypointFollower(
        MazeMap(maze.maze_map, float(maze.maze_size_scaling)), REACH, SHIFT, rng
    )

    def act(observation: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        state = observation["observation"]
        target = follower.target(state[:2], observation["desired_goal"])
        force = GAIN_POSITION * (target - state[:2]) + GAIN_VELOCITY * state[2:]
        if noise:
            force = force + noise * rng.standard_normal(2)
        return np.minimum(np.maximum(force, -1.0), 1.0).astype(np.float32)

    return act


def simulate(variant: Variant, shard: Shard) -> Episodes:
    """Simulate `shard.steps` steps from one reset; success ends an episode as truncated."""
    seeds = np.random.SeedSequence([shard.seed, shard.index]).generate_state(2)
    env = make_robotics(env_spec(variant))
    maze, recorder = env.unwrapped, EpisodeRecorder()
    try:
        observation, info = maze.reset(seed=int(seeds[0] >> 1))
        act = controller(env, np.random.default_rng(int(seeds[1])), NOISE)
        recorder.begin(observation, _infos(observation, bool(info["success"])))
        for step in range(shard.steps):
            action = act(observation)
            observation, reward, terminated, truncated, info = maze.step(action)
            success = bool(info["success"])
            recorder.step(
                action,
                float(reward),
                terminated,
                truncated or success,
                observation,
                _infos(observation, success),
            )
            if success and step + 1 < shard.steps:
                # The simulator has drawn a new goal already; the state goes on.
                observation = {**observation, "desired_goal": maze.goal.copy()}  # type: ignore[attr-defined]
                recorder.begin(observation, _infos(observation, False))
    finally:
        env.close()
    return recorder.finish()


def reference_scores(variant: Variant, seed: int, sources: Path | None) -> References:
    """Random actions, and the planner without noise, in the evaluation environment."""
    del sources

    def expert(env: gym.Env[Any, Any], episode: int) -> references.Actor:
        return controller(env, np.random.default_rng([seed, episode]), noise=0.0)

    return references.measure(eval_env_spec(variant), expert, seed)


def _infos(observation: dict[str, Any], success: bool) -> dict[str, Any]:
    state = observation["observation"]
    return {
        "qpos": state[:2],
        "qvel": state[2:],
        "goal": observation["desired_goal"],
        "success": success,
    }


def _spec(variant: Variant, *, limit: int, reset_target: bool, **kwargs: Any) -> EnvSpec:
    env = make_robotics(
        variant.env_id,
        max_episode_steps=limit,
        continuing_task=True,
        reset_target=reset_target,
        **kwargs,
    )
    env.close()
    assert env.spec is not None
    env.spec.disable_env_checker = False
    return env.spec


def _recipe(variant: Variant) -> Recipe:
    reward = "exp(-distance to the goal in m)" if variant.dense else "1 within 0.45 m of the goal"
    return Recipe(
        name=variant.name,
        summary=f"ball in the {variant.title} maze, planner with noise, "
        f"{'dense' if variant.dense else 'sparse'} reward",
        description=(
            f"A planner and a PD controller steer the ball of {variant.env_id} to goals that are "
            "drawn anew whenever one is reached. Action = 10 (waypoint - position) - velocity + "
            "0.5 N(0, I), clipped to [-1, 1]. Waypoints are the cells of a shortest path, moved "
            "by -U(0, 0.2) m per axis except for the first; the last is the goal; a waypoint "
            "counts as reached within 0.1 m. An episode ends, as truncated, where the environment "
            "reports success; its last observation still shows the goal that was reached. "
            f"Nothing terminates. Reward: {reward}. Made in pieces of 50 000 steps, each from one "
            "reset. The recipe is that of Minari's D4RL/pointmaze sets, whose exact numbers it "
            "does not reproduce."
        ),
        simulate=partial(simulate, variant),
        env_spec=partial(env_spec, variant),
        eval_env_spec=partial(eval_env_spec, variant),
        references=partial(reference_scores, variant),
        algorithm="shortest-path planner + PD controller, Gaussian noise 0.5",
        credits=(
            "Recipe: D4RL (Fu et al., 2020) and Minari (Farama Foundation); environments: "
            "Gymnasium-Robotics."
        ),
    )


RECIPES = tuple(_recipe(variant) for variant in VARIANTS)
