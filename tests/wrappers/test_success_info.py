"""SuccessInfo: SB3 finds success where the environment said it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import Autoreset
from wrappers_fakes import ACTIONS, Pond, plain, roll

from gem_policy import wrappers
from gem_policy.wrappers import vector

STILL = np.zeros(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("ever", "expected"),
    [
        # Ponds succeed at step 2 of 4; each episode begins with a reset.
        (True, [0, 0, 1, 1, 1, 0, 0, 1]),
        (False, [0, 0, 1, 0, 0, 0, 0, 1]),
    ],
)
def test_success_is_copied(ever, expected):
    infos = [out[-1] for out in roll(wrappers.SuccessInfo(Pond(4), ever), [STILL] * 6)]
    assert [info["is_success"] for info in infos] == [bool(e) for e in expected]
    assert {type(info["is_success"]) for info in infos} == {bool}


def test_nothing_else_changes():
    wrapped = roll(wrappers.SuccessInfo(Pond(4)), [STILL] * 6)
    for *_, info in wrapped:
        del info["is_success"]
    assert plain(wrapped) == plain(roll(Pond(4), [STILL] * 6))


def test_an_environment_that_never_says_gets_nothing():
    for *_, info in roll(wrappers.SuccessInfo(Pond(4, says_success=False)), [STILL] * 6):
        assert info == {}


def test_sb3_finds_it(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.monitor import Monitor

    unit = gym.spaces.Box(-1, 1, (2,), np.float32)
    model = sb3.PPO("MlpPolicy", Pond(4, action_space=unit), n_steps=8, batch_size=8, device="cpu")
    for ever in (True, False):
        env = Monitor(wrappers.SuccessInfo(Pond(4, action_space=unit), ever))
        callback = EvalCallback(
            env, eval_freq=4, n_eval_episodes=2, verbose=0, log_path=str(tmp_path / str(ever))
        )
        model.learn(8, callback=callback)
        found = np.load(tmp_path / str(ever) / "evaluations.npz")["successes"]
        assert found.shape[1] == 2
        assert (found == ever).all()


def test_a_real_maze():
    pytest.importorskip("gymnasium_robotics")
    env = wrappers.SuccessInfo(gym.make("PointMaze_UMaze-v3"))
    infos = [out[-1] for out in roll(env, [env.action_space.sample() for _ in range(5)])]
    assert all(info["is_success"] == info["success"] for info in infos)
    env.close()


class Quiet(Pond):
    """Says so only where it succeeds."""

    def _info(self):
        return {"success": True} if self.steps == 2 else {}


@pytest.mark.parametrize("kind", [Pond, Quiet])
@pytest.mark.parametrize("ever", [True, False])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_twin_says_what_singles_say(mode, ever, kind):
    makers = [lambda n=n: kind(n, action_space=ACTIONS) for n in (1, 3, 4)]
    wrapped = [lambda m=m: wrappers.SuccessInfo(m(), ever) for m in makers]
    twin = vector.SuccessInfo(SyncVectorEnv(makers, autoreset_mode=mode), ever)
    inside = SyncVectorEnv(wrapped, autoreset_mode=mode)

    def said(infos):
        found = {k: infos[k] for k in ("is_success", "_is_success") if k in infos}
        return {k: v.tolist() for k, v in found.items()} if any(infos.get("_is_success", [])) else 0

    outs = [env.reset(seed=1) for env in (twin, inside)]
    assert said(outs[0][1]) == said(outs[1][1])
    for _ in range(11):
        outs = [env.step(np.zeros((3, 2), np.float32)) for env in (twin, inside)]
        assert said(outs[0][-1]) == said(outs[1][-1])
        if "final_info" in outs[1][-1]:
            assert said(outs[0][-1]["final_info"]) == said(outs[1][-1]["final_info"])
        done = outs[0][2] | outs[0][3]
        if mode == AutoresetMode.DISABLED and done.any():
            for env in (twin, inside):
                env.reset(options={"reset_mask": done.copy()})


@pytest.mark.parametrize("kind", [Pond, Quiet])
@pytest.mark.parametrize("ever", [True, False])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_an_environment_that_resets_itself_begins_anew(kind, ever, length):
    single = wrappers.SuccessInfo(Autoreset(kind(length)), ever)
    twin = vector.SuccessInfo(SyncVectorEnv([lambda: kind(length)]), ever)
    results = [(single.reset(seed=0), twin.reset(seed=0))]
    results += [(single.step(STILL), twin.step(STILL[None])) for _ in range(3 * length + 3)]
    for one, other in results:
        told = other[-1].get("_is_success", [False])[0]
        assert one[-1].get("is_success") == (other[-1]["is_success"][0] if told else None)


def test_an_environment_that_resets_itself_within_a_step_begins_anew():
    class Again(Pond):
        def step(self, action):
            *rest, info = super().step(action)
            observation = self.reset()[0] if rest[-1] else rest[0]
            return observation, *rest[1:], info

    env = wrappers.SuccessInfo(Again(3))
    env.reset(seed=0)
    said = [env.step(STILL)[-1]["is_success"] for _ in range(6)]
    assert said == [False, True, True] * 2


def test_reset_after_the_end_begins_one_episode():
    class Early(Pond):
        def _info(self):
            return {"success": self.steps == 0}

    env = wrappers.SuccessInfo(Early(2))
    for _ in range(2):
        said = [env.reset(seed=0), env.step(STILL), env.step(STILL)]
        assert all(out[-1]["is_success"] for out in said)
