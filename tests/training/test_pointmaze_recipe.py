from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem_policy.errors import DatasetError
from gem_policy.training.recipes import pointmaze, references
from gem_policy.training.recipes.episodes import Episodes
from gem_policy.training.recipes.recipe import Shard
from gem_policy.training.recipes.waypoints import MazeMap, WaypointFollower

UMAZE = pointmaze.VARIANTS[0]
MAP = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
FREE = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]  # along the only path


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_next_cell_leads_along_the_only_path(start: int, goal: int) -> None:
    maze = MazeMap(MAP, scaling=1.0)
    step = np.sign(goal - start)
    assert maze.next_cell(FREE[start], FREE[goal]) == FREE[start + step]


@given(st.lists(st.lists(st.sampled_from([0, 1]), min_size=4, max_size=4), min_size=3, max_size=4))
def test_paths_are_shortest_in_any_maze(rows: list[list[int]]) -> None:
    maze, free = (
        MazeMap(rows, 1.0),
        {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == 0},
    )
    for goal in free:
        distance = {goal: 0}
        for _ in free:  # relax until nothing can change
            for i, j in free:
                near = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
                known = [distance[cell] for cell in near if cell in distance]
                if known and (i, j) != goal:
                    distance[i, j] = min(known) + 1
        for start in free:
            if start not in distance:
                with pytest.raises(DatasetError, match="no path"):
                    maze.next_cell(start, goal)
            elif start != goal:
                assert distance[maze.next_cell(start, goal)] == distance[start] - 1


@pytest.mark.parametrize("scaling", [1.0, 4.0])
def test_cells_and_positions_are_each_others_inverse_and_the_simulators(scaling: float) -> None:
    maze = MazeMap(MAP, scaling)
    from gymnasium_robotics.envs.maze.maze_v4 import Maze

    theirs = Maze(MAP, scaling, 0.5)
    for cell in FREE:
        np.testing.assert_array_equal(maze.center(cell), theirs.cell_rowcol_to_xy(np.array(cell)))
        assert maze.cell(maze.center(cell) + 0.4 * scaling) == cell


def test_a_point_inside_a_wall_belongs_to_the_nearest_free_cell() -> None:
    maze = MazeMap(MAP, 1.0)
    assert maze.cell(maze.center((1, 1)) + np.array([-0.6, 0.0])) == (1, 1)


def test_the_follower_visits_every_cell_and_ends_at_the_goal_itself() -> None:
    maze = MazeMap(MAP, 1.0)
    follower = WaypointFollower(maze, 0.1, (-0.2, 0.0), np.random.default_rng(0))
    position, goal = maze.center((1, 1)), maze.center((3, 1)) + 0.2
    targets = []
    for _ in range(10):
        position = follower.target(position, goal).copy()  # jumps onto each waypoint
        targets.append(maze.cell(position))
    assert targets[:6] == FREE[1:]
    np.testing.assert_array_equal(position, goal)


def test_a_new_goal_starts_a_new_path() -> None:
    maze = MazeMap(MAP, 1.0)
    follower = WaypointFollower(maze, 0.1, (0.0, 0.0), np.random.default_rng(0))
    middle = maze.center((2, 3))
    assert maze.cell(follower.target(middle, maze.center((1, 1)))) == (1, 3)
    assert maze.cell(follower.target(middle, maze.center((3, 1)))) == (3, 3)


@pytest.fixture(scope="module")
def umaze() -> Episodes:
    return pointmaze.simulate(UMAZE, Shard(index=0, steps=1500, seed=0))


def test_episodes_end_at_the_goal_and_begin_where_the_last_one_ended(umaze: Episodes) -> None:
    episodes = list(umaze.split())
    assert umaze.steps == 1500 and len(episodes) > 10
    for number, episode in enumerate(episodes):
        goals = episode["observations"]["desired_goal"]
        assert (goals == goals[0]).all()
        success = episode["infos"]["success"]
        last = number == len(episodes) - 1
        assert not success[:-1].any() and (last or success[-1])
        assert episode["truncations"].tolist() == [False] * (len(success) - 2) + [True]
        assert not episode["terminations"].any()
        assert episode["rewards"].tolist() == [float(reached) for reached in success[1:]]
        np.testing.assert_array_equal(episode["infos"]["goal"], goals)
        state = episode["observations"]["observation"]
        np.testing.assert_array_equal(
            state, np.hstack([episode["infos"]["qpos"], episode["infos"]["qvel"]])
        )
        np.testing.assert_array_equal(state[:, :2], episode["observations"]["achieved_goal"])
    for before, after in zip(episodes, episodes[1:], strict=False):
        end, start = before["observations"], after["observations"]
        np.testing.assert_array_equal(end["observation"][-1], start["observation"][0])
        assert np.abs(end["desired_goal"][-1] - start["desired_goal"][0]).max() > 0.01


def test_the_simulator_agrees_when_the_actions_are_played_again(umaze: Episodes) -> None:
    env = gym.make(pointmaze.env_spec(UMAZE), disable_env_checker=True)
    seed = np.random.SeedSequence([0, 0]).generate_state(2)[0] >> 1
    observation, _ = env.reset(seed=int(seed))
    first = next(umaze.split())
    for step, action in enumerate(first["actions"]):
        np.testing.assert_array_equal(
            observation["observation"], first["observations"]["observation"][step]
        )
        observation, reward, *_ = env.step(action)
        assert reward == first["rewards"][step]
    env.close()


def test_the_same_seed_gives_the_same_data_and_another_other_data(umaze: Episodes) -> None:
    again = pointmaze.simulate(UMAZE, Shard(index=0, steps=300, seed=0))
    other = pointmaze.simulate(UMAZE, Shard(index=1, steps=300, seed=0))
    np.testing.assert_array_equal(again.actions, umaze.actions[:300])
    assert (other.actions != umaze.actions[:300]).any()


def test_actions_are_noisy_and_inside_their_space(umaze: Episodes) -> None:
    assert umaze.actions.dtype == np.float32
    assert np.abs(umaze.actions).max() == 1.0
    assert 0.2 < np.abs(umaze.actions).mean() < 0.95


@pytest.mark.parametrize("variant", pointmaze.VARIANTS, ids=lambda v: v.name)
def test_the_evaluation_environment_has_one_goal_that_stays(variant: pointmaze.Variant) -> None:
    spec = pointmaze.eval_env_spec(variant)
    env = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert env.spec is not None and env.spec.max_episode_steps == variant.limit
    maze = env.unwrapped.maze  # type: ignore[attr-defined]
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        cell = tuple(maze.cell_xy_to_rowcol(observation["desired_goal"]))
        assert cell == variant.goal
    env.close()


def test_dense_reward_is_the_exponential_of_the_distance() -> None:
    dense = next(v for v in pointmaze.VARIANTS if v.name == "gem/pointmaze/umaze-dense-v0")
    episode = next(pointmaze.simulate(dense, Shard(index=0, steps=100, seed=0)).split())
    observations = episode["observations"]
    distance = np.linalg.norm(observations["achieved_goal"] - observations["desired_goal"], axis=1)
    np.testing.assert_allclose(episode["rewards"], np.exp(-distance[1:]), rtol=1e-12)


def test_the_planner_without_noise_is_a_better_reference_than_chance() -> None:
    def expert(env: gym.Env, episode: int) -> references.Actor:
        return pointmaze.controller(env, np.random.default_rng(episode), noise=0.0)

    scores = references.measure(pointmaze.eval_env_spec(UMAZE), expert, seed=0, episodes=2)
    assert scores.maximum > 100 > scores.minimum >= 0
    assert scores.episodes == 2


def test_no_scratch_file_of_the_simulator_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = pointmaze.eval_env_spec(UMAZE)
    assert json.loads(spec.to_json())["kwargs"]["maze_map"][1][1] == "g"
    assert list(tmp_path.iterdir()) == []
