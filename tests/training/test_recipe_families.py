"""The recipes that need other people's policies: here with made-up ones, in the real simulators."""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from gem_policy.errors import DatasetError
from gem_policy.training import recipes
from gem_policy.training.recipes import adroit, antmaze, mujoco, references
from gem_policy.training.recipes.episodes import Episodes
from gem_policy.training.recipes.recipe import Recipe, References, Shard

SMALL = ("gem/antmaze/umaze-v0", "gem/door/expert-v0", "gem/hopper/mixed-v0")


def layers(inputs: int, outputs: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = ((8, inputs), (8, 8), (outputs, 8))
    arrays = {f"W{i}": 0.3 * rng.standard_normal(s).astype("f") for i, s in enumerate(sizes)}
    return arrays | {f"b{i}": np.zeros(s[0], "f") for i, s in enumerate(sizes)}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sources with random policies in it."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for name in ("hand_dapg", "sb3_agents", "d4rl_ant_controller"):
        (folder / name).mkdir()
    ant = layers(29, 8, rng) | {"log_std_W": np.zeros((8, 8)), "log_std_b": np.full(8, -1.0)}
    np.savez(folder / "d4rl_ant_controller" / "ant_goal_policy.npz", **ant)
    for algorithm in mujoco.ALL:
        agent = layers(11, 3, rng) | {"log_std": np.full(3, -1.0)}
        extra = {"activation": np.array("tanh"), "squash": np.array(False)}
        np.savez(folder / "sb3_agents" / f"{algorithm}-Hopper-v3.npz", **agent, **extra)
    shifts = {"in_shift": np.zeros(39), "in_scale": np.ones(39)}
    shifts |= {"out_shift": np.zeros(28), "out_scale": np.ones(28), "log_std": np.zeros(28)}
    np.savez(folder / "hand_dapg" / "door_expert_policy.npz", **layers(39, 28, rng), **shifts)
    env = gym.make(adroit.env_spec(adroit.VARIANTS[0]), disable_env_checker=True)
    env.reset(seed=0)
    state = env.unwrapped.get_env_state()  # type: ignore[attr-defined]
    env.close()
    demos = {
        "episode_lengths": np.array([7, 5]),
        "actions": rng.uniform(-1.3, 1.3, (12, 28)),
        **{f"init_{name}": np.stack([value] * 2) for name, value in state.items()},
    }
    np.savez(folder / "hand_dapg" / "door_human_demos.npz", **demos)
    return folder


def made(name: str, sources: Path, steps: int, index: int = 0, seed: int = 0) -> Episodes:
    return recipes.describe(name).simulate(Shard(index, steps, seed, sources))


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_data_and_another_shard_other_data(
    made_up: Path, name: str
) -> None:
    one, again = made(name, made_up, 30), made(name, made_up, 30)
    np.testing.assert_array_equal(one.actions, again.actions)
    np.testing.assert_array_equal(one.rewards, again.rewards)
    assert (one.actions[:8] != made(name, made_up, 30, index=1).actions[:8]).any()
    assert one.actions.dtype == np.float32 and np.abs(one.actions).max() <= 1.0
    assert one.steps == 30 and bool(one.truncations[-1] | one.terminations[-1])


@pytest.mark.parametrize("name", SMALL)
def test_recorded_states_lead_to_the_recorded_rows(made_up: Path, name: str) -> None:
    episode = next(made(name, made_up, 12).split())
    env = gym.make(recipes.describe(name).env_spec(), disable_env_checker=True)
    inner = env.unwrapped
    env.reset(seed=0)
    infos = episode["infos"]
    for t in range(len(episode["rewards"])):
        if hasattr(inner, "set_env_state"):
            names = ("qpos", "qvel", "door_body_pos")
            inner.set_env_state({name: infos[name][t] for name in names})
        else:
            body = getattr(inner, "ant_env", inner)
            body.set_state(infos["qpos"][t], infos["qvel"][t])
        if "goal" in infos:
            inner.goal = infos["goal"][t]  # type: ignore[attr-defined]
        after, reward, *_ = inner.step(episode["actions"][t])
        expected = episode["observations"]
        got, row = (
            (after["observation"], expected["observation"][t + 1])
            if isinstance(after, dict)
            else (after, expected[t + 1])
        )
        np.testing.assert_allclose(got, row, atol=1e-3)
        assert reward == pytest.approx(episode["rewards"][t], abs=1e-3)
    env.close()


def test_hand_episodes_have_the_length_of_d4rl(made_up: Path) -> None:
    assert made("gem/door/expert-v0", made_up, 250).lengths.tolist() == [200, 50]
    pen = recipes.describe("gem/pen/expert-v0")
    assert pen.eval_env_spec().max_episode_steps == 100
    assert recipes.describe("gem/hammer/expert-v0").eval_env_spec().max_episode_steps == 200


def test_demonstrations_are_played_again_from_their_states(made_up: Path) -> None:
    human = made("gem/door/human-v0", made_up, 12)
    assert human.lengths.tolist() == [7, 5]
    demos = np.load(made_up / "hand_dapg" / "door_human_demos.npz")
    np.testing.assert_array_equal(human.infos["qpos"][0], demos["init_qpos"][0])
    np.testing.assert_array_equal(human.infos["qpos"][8], demos["init_qpos"][1])
    np.testing.assert_array_equal(human.actions, np.clip(demos["actions"], -1, 1).astype("f"))
    assert human.truncations.nonzero()[0].tolist() == [6, 11]
    assert made("gem/door/human-v0", made_up, 9).lengths.tolist() == [7, 2]


def test_clones_and_demonstrations_take_turns(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adroit, "DEMONSTRATION_STEPS", 12)
    monkeypatch.setattr(adroit, "CLONE_EPOCHS", 2)
    cloned = made("gem/door/cloned-v0", made_up, 24, index=0)
    human = made("gem/door/cloned-v0", made_up, 24, index=1)
    adroit._clone.cache_clear()
    assert human.lengths.tolist() == [7, 5, 7, 5]
    assert cloned.lengths.tolist() == [24]
    assert (cloned.actions != human.actions).any()


def test_the_agents_of_a_mixed_set_take_turns(made_up: Path) -> None:
    shards = [made("gem/hopper/mixed-v0", made_up, 20, index=i).actions for i in range(5)]
    assert len({part[0].tobytes() for part in shards}) == 5
    mixed = next(v for v in mujoco.VARIANTS if v.name == "gem/hopper/mixed-v0")
    assert mixed.agents == ("tqc", "sac", "ppo", "a2c")


@pytest.mark.parametrize(
    ("name", "turns"),
    [("hopper/mixed", 4), ("hopper/medium-expert", 2), ("hopper/expert", 1), ("door/cloned", 2)],
)
def test_a_small_set_still_holds_every_agent(name: str, turns: int) -> None:
    recipe = recipes.describe(name)
    sizes = [shard.steps for shard in recipe.shards(100, 0, None)]
    assert len(sizes) == turns and sum(sizes) == 100 and max(sizes) == 100 // turns
    whole = [shard.steps for shard in recipe.shards(recipe.steps, 0, None)]
    assert set(whole[:-1]) == {recipe.shard_steps} and sum(whole) == recipe.steps


def test_ants_stay_in_full_episodes_with_weak_actions(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = made("gem/antmaze/umaze-v0", made_up, 710)
    assert episodes.lengths.tolist() == [700, 10]
    assert np.abs(episodes.actions).max() <= 0.2 + 1e-6
    assert not episodes.terminations.any()
    goals = episodes.observations["desired_goal"]
    assert (goals[:701] == goals[0]).all() and (goals[701] != goals[0]).any()
    assert episodes.observations["observation"].shape == (712, 27)


@pytest.mark.parametrize("variant", antmaze.VARIANTS, ids=lambda v: v.name)
def test_ants_are_evaluated_in_the_maze_of_their_data(variant: antmaze.Variant) -> None:
    """The published umaze is evaluated in a mirrored maze; this one must not be."""
    specs = antmaze.env_spec(variant), antmaze.eval_env_spec(variant)
    walls = [[[c == 1 for c in row] for row in s.kwargs["maze_map"]] for s in specs]
    assert walls[0] == walls[1]
    env = gym.make(EnvSpec.from_json(specs[1].to_json()))
    maze = env.unwrapped.maze  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=0)
    assert tuple(maze.cell_xy_to_rowcol(observation["desired_goal"])) == variant.goal
    assert tuple(maze.cell_xy_to_rowcol(observation["achieved_goal"])) == variant.start
    assert observation["observation"].shape == (27,)
    env.close()


@pytest.mark.parametrize("name", SMALL)
def test_references_are_measured_in_the_evaluation_environment(
    made_up: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "EPISODES", 1)
    scores = recipes.describe(name).references(0, made_up)
    assert scores.episodes == 1
    assert np.isfinite([scores.minimum, scores.maximum]).all()


def test_the_expert_of_the_ant_is_the_policy_of_the_data(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def controller(env: object, agent: object, rng: object, noise: float) -> antmaze.Actor:
        seen.append(noise)
        return lambda observation: np.zeros(8, "f")

    monkeypatch.setattr(antmaze, "controller", controller)
    monkeypatch.setattr(references, "EPISODES", 1)
    recipes.describe("antmaze/umaze").references(989, made_up)
    assert seen == [antmaze.NOISE]


def test_sets_with_the_same_evaluation_measure_references_once(
    made_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EnvSpec] = []

    def measure(spec: EnvSpec, expert: object, seed: int) -> References:
        asked.append(spec)
        return References(0.0, 1.0, 100)

    monkeypatch.setattr(references, "measure", measure)
    for name in ("hopper/mixed", "hopper/expert", "antmaze/umaze", "antmaze/umaze-diverse"):
        recipes.describe(name).references(987, made_up)
    assert [spec.id for spec in asked] == ["Hopper-v5", "AntMaze_UMaze-v5"]
    recipes.describe("hopper/mixed").references(988, made_up)
    assert len(asked) == 3


def needing_sources() -> list[Recipe]:
    return [r for r in map(recipes.describe, recipes.names()) if r.needs_sources]


def test_without_sources_a_recipe_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GEM_POLICY_SOURCES", raising=False)
    assert len(needing_sources()) == 6 + 5 + 12
    for recipe in needing_sources():
        with pytest.raises(DatasetError, match="datasets sources.*GEM_POLICY_SOURCES"):
            recipes.make(recipe.name)
    with pytest.raises(DatasetError, match="has no `sb3_agents/ppo-HalfCheetah-v3.npz`"):
        recipes.make("gem/halfcheetah/medium-v0", sources=tmp_path, root=tmp_path, steps=10)


@pytest.fixture
def real() -> Path:
    """Other people's policies."""
    folder = os.environ.get("GEM_POLICY_SOURCES")
    if not folder:
        pytest.skip("needs other people's policies: set GEM_POLICY_SOURCES to their folder")
    return Path(folder)


@pytest.mark.sources
@pytest.mark.slow
def test_the_real_demonstrations_open_doors(real: Path) -> None:
    human = made("gem/door/human-v0", real, adroit.DEMONSTRATION_STEPS)
    assert len(human) == 25
    assert human.returns().mean() == pytest.approx(803.1, abs=5.0)


@pytest.mark.sources
@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [
        ("gem/door/expert-v0", 1000, 2000.0),
        ("gem/hammer/expert-v0", 1000, 8000.0),
        ("gem/hopper/medium-v0", 3000, 800.0),
        ("gem/halfcheetah/expert-v0", 1000, 10_000.0),
        ("gem/walker2d/expert-v0", 1000, 3500.0),
    ],
)
def test_real_policies_earn_what_they_are_known_for(
    real: Path, name: str, steps: int, least: float
) -> None:
    whole = made(name, real, steps).split()
    returns = [episode["rewards"].sum() for episode in whole]
    assert np.mean(returns[:-1] or returns) > least


@pytest.mark.sources
@pytest.mark.slow
@pytest.mark.parametrize("variant", antmaze.VARIANTS, ids=lambda v: v.name)
def test_the_real_ant_reaches_most_goals(real: Path, variant: antmaze.Variant) -> None:
    episodes = made(variant.name, real, 10 * variant.limit)
    assert (episodes.returns() > 0).mean() >= 0.5
