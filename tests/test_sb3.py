"""A policy inside Stable-Baselines3: evaluation, vector environments, callbacks, BasePolicy."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import ACTIONS, BOX, GOAL, LinearEnv, ScriptedEnv, row_of, sample, tiny_policy
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
)

from gem_policy.errors import CheckpointError, ConfigError, DependencyError, SpaceError
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy
from gem_policy.sb3 import SB3Model, SB3Policy

each_space = pytest.mark.parametrize("space", [BOX, GOAL], ids=["box", "goal"])
LINEAR = {
    "observation_space": LinearEnv().observation_space,
    "action_space": LinearEnv().action_space,
}


def scripted(space: gym.Space[Any], **kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: ScriptedEnv(space, **kwargs)


# -- evaluate_policy and vector environments -----------------------------------------------------


@each_space
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluate_policy_plays_a_monitored_environment(
    space: gym.Space[Any], deterministic: bool
) -> None:
    env = Monitor(ScriptedEnv(space))
    policy = tiny_policy(space)
    for player in (policy, MixturePredictor(policy, "actor"), SB3Policy(policy)):
        mean, std = evaluate_policy(player, env, n_eval_episodes=3, deterministic=deterministic)
        assert (mean, std) == (3.0, 0.0)


@each_space
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv], ids=["dummy", "subprocess"])
def test_evaluate_policy_plays_vector_environments(space: gym.Space[Any], kind: type) -> None:
    options = {"start_method": "fork"} if kind is SubprocVecEnv else {}
    venv = VecMonitor(kind([scripted(space, rewards=[1.0] * n) for n in (2, 3, 5)], **options))
    try:
        returns, lengths = evaluate_policy(
            tiny_policy(space), venv, n_eval_episodes=6, return_episode_rewards=True
        )
    finally:
        venv.close()
    assert sorted(returns) == [2, 2, 3, 3, 5, 5]  # type: ignore[arg-type]
    assert sorted(lengths) == [2, 2, 3, 3, 5, 5]  # type: ignore[arg-type]


def test_a_worker_started_afresh_can_hold_a_policy(tmp_path: Path) -> None:
    tiny_policy().save(tmp_path / "model.safetensors")
    script = tmp_path / "forkserver.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import gymnasium as gym
            import numpy as np
            from stable_baselines3.common.vec_env import SubprocVecEnv

            FILE = {str(tmp_path / "model.safetensors")!r}

            def make():
                from gem_policy import GEMPolicy

                policy = GEMPolicy.load(FILE, device="cpu")
                class Env(gym.Env):
                    observation_space = policy.observation_space
                    action_space = policy.action_space
                    def reset(self, *, seed=None, options=None):
                        return np.zeros(3, np.float32), {{}}
                    def step(self, action):
                        own, _ = policy.predict(np.zeros(3, np.float32), deterministic=True)
                        gap = float(np.abs(own - action).max())
                        return np.zeros(3, np.float32), gap, False, False, {{}}
                return Env()

            if __name__ == "__main__":
                from gem_policy import GEMPolicy

                venv = SubprocVecEnv([make], start_method="forkserver")
                actions, _ = GEMPolicy.load(FILE, device="cpu").predict(
                    venv.reset(), deterministic=True
                )
                print(venv.step(actions)[1].tolist())
                venv.close()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "[0.0]", done.stderr


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "InvertedPendulum-v5", "Reacher-v5"])
def test_a_policy_acts_in_real_environments(name: str) -> None:
    if name.startswith("PointMaze"):
        import gymnasium_robotics

        assert gymnasium_robotics.__name__  # importing it registers the mazes
    env = Monitor(gym.make(name, max_episode_steps=8))
    assert isinstance(env.action_space, gym.spaces.Box)
    policy = tiny_policy(env.observation_space, env.action_space)
    try:
        alone, _ = evaluate_policy(policy, env, n_eval_episodes=2)
        assert np.isfinite(alone)
        observation, _ = env.reset(seed=3)
        action, _ = policy.predict(observation, deterministic=True)
        assert env.action_space.contains(action)
        env.step(action)
    finally:
        env.close()


# -- where code insists on BasePolicy ------------------------------------------------------------


def imitations_rule(policy: Any, deterministic: bool) -> Callable[..., Any]:
    """What imitation's rollouts accept: an SB3 algorithm or policy, or a callable of three."""
    if isinstance(policy, BaseAlgorithm | BasePolicy):
        return lambda observations, states, starts: policy.predict(
            observations, state=states, episode_start=starts, deterministic=deterministic
        )
    if callable(policy):
        assert not deterministic, "a callable decides that for itself"
        return lambda observations, states, starts: policy(observations, states, starts)
    raise TypeError(f"neither a policy nor callable: {policy!r}")


@each_space
def test_imitations_rollouts_take_the_adapter_and_the_policy_itself(space: gym.Space[Any]) -> None:
    policy = tiny_policy(space)
    venv = DummyVecEnv([scripted(space)] * 2)
    observations, starts = venv.reset(), np.ones(2, dtype=bool)
    adapted = imitations_rule(SB3Policy(policy), True)(observations, None, starts)
    called = imitations_rule(policy, False)(observations, None, starts)
    np.testing.assert_array_equal(adapted[0], called[0])
    assert adapted[1] is called[1] is None
    venv.step(adapted[0])


@each_space
def test_the_adapter_decides_as_the_policy_does(space: gym.Space[Any]) -> None:
    policy = tiny_policy(space)
    adapter = SB3Policy(policy)
    assert isinstance(adapter, BasePolicy)
    assert (adapter.observation_space, adapter.action_space) == (space, ACTIONS)
    assert adapter.device == policy.device
    batch = sample(space, np.random.default_rng(0), (3,))
    expected, _ = policy.predict(batch, deterministic=True)
    state = (np.zeros(1),)
    answer = adapter.predict(batch, state, np.ones(3, dtype=bool), True)
    np.testing.assert_array_equal(answer[0], expected)
    assert answer[1] is state
    tensors, _ = adapter.obs_to_tensor(batch)
    np.testing.assert_array_equal(adapter._predict(tensors, deterministic=True), expected)
    adapter.set_random_seed(7)
    drawn, _ = adapter.predict(batch)
    policy.set_random_seed(7)
    np.testing.assert_array_equal(policy.predict(batch)[0], drawn)
    with pytest.raises(ValueError, match="tuple"):
        adapter.predict((row_of(batch, 0), {}))


def test_the_adapter_is_saved_and_loaded_without_pickle(tmp_path: Path) -> None:
    policy = tiny_policy()
    SB3Policy(policy).save(tmp_path / "model.safetensors")
    again = SB3Policy.load(tmp_path / "model.safetensors", device="cpu")
    batch = sample(BOX, np.random.default_rng(0), (3,))
    np.testing.assert_array_equal(
        again.predict(batch, deterministic=True)[0], policy.predict(batch, deterministic=True)[0]
    )
    with pytest.raises(CheckpointError, match="MixturePredictor cannot be saved"):
        SB3Policy(MixturePredictor(policy, "actor")).save(tmp_path / "other.safetensors")


# -- callbacks -----------------------------------------------------------------------------------


def test_eval_callback_during_the_learning_of_an_sb3_algorithm_can_play_a_policy(
    tmp_path: Path,
) -> None:
    """A baseline beside a learning agent: the same callback, our policy in place of the model."""
    policy = tiny_policy(**LINEAR)

    class Beside(EvalCallback):
        def init_callback(self, model: BaseAlgorithm) -> None:
            super().init_callback(SB3Model(policy, model.get_env()))  # type: ignore[arg-type]

    own = EvalCallback(Monitor(LinearEnv()), eval_freq=10, n_eval_episodes=2, verbose=0)
    beside = Beside(
        Monitor(LinearEnv()),
        eval_freq=10,
        n_eval_episodes=2,
        verbose=0,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
    )
    agent = A2C("MlpPolicy", Monitor(LinearEnv()), n_steps=5, seed=0, device="cpu")
    agent.learn(20, callback=[own, beside])
    assert own.n_calls == beside.n_calls == 20
    with np.load(tmp_path / "evaluations.npz") as log:
        assert log["results"].shape == (2, 2)
    assert beside.last_mean_reward != own.last_mean_reward
    best = GEMPolicy.load(tmp_path / "best_model", device="cpu")
    batch = sample(BOX, np.random.default_rng(0), (3,))[:, :2]
    np.testing.assert_array_equal(
        best.predict(batch, deterministic=True)[0], policy.predict(batch, deterministic=True)[0]
    )


@pytest.mark.parametrize("vector", [False, True], ids=["one", "vector"])
def test_eval_callback_evaluates_a_policy_and_saves_the_best(tmp_path: Path, vector: bool) -> None:
    policy = tiny_policy(**LINEAR)
    env: Any = VecMonitor(DummyVecEnv([LinearEnv] * 3)) if vector else Monitor(LinearEnv())
    model = SB3Model(policy, env)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = EvalCallback(
        VecMonitor(DummyVecEnv([LinearEnv])) if vector else Monitor(LinearEnv()),
        eval_freq=4,
        n_eval_episodes=2,
        log_path=str(tmp_path / "log"),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    twin = VecMonitor(DummyVecEnv([LinearEnv]))
    for evaluated in (callback.eval_env, twin):
        evaluated.seed(0)
    model.play(12, callback)
    model.logger.close()
    with np.load(tmp_path / "log" / "evaluations.npz") as log:
        assert log["timesteps"].tolist() == ([12] if vector else [4, 8, 12])
        assert log["ep_lengths"].tolist() == [[5, 5]] * len(log["timesteps"])
        assert set(log["successes"].flatten().tolist()) <= {True, False}
        for results in log["results"]:
            expected, _ = evaluate_policy(policy, twin, 2, return_episode_rewards=True)
            np.testing.assert_allclose(results, expected, rtol=1e-5)
    assert "eval/mean_reward" in (tmp_path / "progress.csv").read_text()
    assert callback.best_mean_reward > -np.inf
    assert GEMPolicy.load(tmp_path / "best" / "best_model", device="cpu").selection == (
        policy.selection
    )


def test_callbacks_see_every_step_and_can_stop_the_play() -> None:
    seen: list[dict[str, Any]] = []

    class Recorder(BaseCallback):
        def _on_step(self) -> bool:
            seen.append({k: self.locals[k] for k in ("actions", "rewards", "dones", "infos")})
            return True

    model = SB3Model(tiny_policy(), DummyVecEnv([scripted(BOX, rewards=[2.0, 3.0])] * 2))
    model.play(8, Recorder())
    assert [step["rewards"].tolist() for step in seen] == [[2, 2], [3, 3], [2, 2], [3, 3]]
    assert [step["dones"].all() for step in seen] == [False, True, False, True]
    assert model.num_timesteps == 8
    model.play(1000, [Recorder(), StopTrainingOnMaxEpisodes(max_episodes=3)])
    assert model.num_timesteps == 12


@pytest.mark.filterwarnings("ignore:rich is experimental")  # tqdm's, of SB3's progress bar
def test_the_play_takes_what_learn_takes(tmp_path: Path) -> None:
    seen: list[int] = []

    def count(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(local["self"].num_timesteps)
        return len(seen) < 5

    model = SB3Model(tiny_policy(), Monitor(ScriptedEnv(BOX)))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.play(3)
    assert model.num_timesteps == 3
    model.play(9, count)
    assert seen == [1, 2, 3, 4, 5] and model.num_timesteps == 5
    bar = ProgressBarCallback()
    model.play(7, [bar, LogEveryNTimesteps(3)])
    assert (bar.pbar.total, bar.pbar.n) == (7, 7)
    model.logger.close()
    assert (tmp_path / "progress.csv").exists()
    for steps, played in ((0, 0), (1e1, 10)):
        model.play(steps)
        assert model.num_timesteps == played
    with pytest.raises(ConfigError, match="`steps` must be a finite number >= 0"):
        model.play(-1)


def test_a_reward_threshold_stops_the_play() -> None:
    env = Monitor(ScriptedEnv(BOX))
    stop = StopTrainingOnRewardThreshold(reward_threshold=2.5)
    callback = EvalCallback(env, callback_on_new_best=stop, eval_freq=2, verbose=0)
    model = SB3Model(tiny_policy(), Monitor(ScriptedEnv(BOX)))
    model.play(50, callback)
    assert model.num_timesteps == 2


def test_the_model_offers_what_callbacks_ask_an_algorithm_for() -> None:
    policy, env = tiny_policy(), Monitor(ScriptedEnv(BOX))
    model = SB3Model(policy, env)
    assert isinstance(model.get_env(), VecEnv)
    assert model.get_vec_normalize_env() is None
    assert (model.observation_space, model.action_space) == (BOX, ACTIONS)
    assert model.device == policy.device
    rewards_only = VecNormalize(DummyVecEnv([scripted(BOX)]), norm_obs=False)
    assert SB3Model(policy, rewards_only).get_vec_normalize_env() is rewards_only


def test_an_environment_that_is_not_the_policys_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"not the policy's: expected .*Box.* got .*Dict"):
        SB3Model(tiny_policy(BOX), Monitor(ScriptedEnv(GOAL)))
    other = gym.spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(SpaceError, match=r"expected shape \(2,\), got \(3,\)"):
        SB3Model(tiny_policy(), Monitor(ScriptedEnv(BOX, other)))
    with pytest.raises(SpaceError, match="normalizes observations itself"):
        SB3Model(tiny_policy(), VecNormalize(DummyVecEnv([scripted(BOX)])))


def test_without_sb3_the_message_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "try:\n    import gem_policy.sb3\n"
        "except ImportError as error:\n    print(type(error).__name__, error.name, error)"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120)
    assert told.startswith(f"{DependencyError.__name__} stable_baselines3 ")
    assert "pip install 'gem-policy[sb3]'" in told


def test_tensors_of_the_adapter_live_where_the_policy_computes() -> None:
    adapter = SB3Policy(tiny_policy())
    assert adapter._predict(torch.zeros(1, 3)).device.type == "cpu"
