"""Environments described by files: made by registered code, whatever the file calls its own."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fakes import tiny_policy
from gymnasium.envs.registration import WrapperSpec

from gem_policy.env_specs import make_spec, read_spec, registered, without_policies
from gem_policy.environments import make_env
from gem_policy.errors import ConfigError, DependencyError, SpaceError
from gem_policy.wrappers import MatchSpaces, SuccessInfo

POLE = "InvertedPendulum-v5"


def described(env_id: str = POLE, **changes: Any) -> dict[str, Any]:
    """A description of an environment, as a checkpoint holds it."""
    document = json.loads(gym.spec(POLE).to_json())
    return {**document, "id": env_id, **changes}


@pytest.mark.parametrize("env_id", [POLE, "Unheard-v0"])
def test_what_a_file_calls_its_code_is_never_run(tmp_path: Path, env_id: str) -> None:
    mark = tmp_path / "ran"
    hostile = described(
        env_id, entry_point="subprocess:check_call", kwargs={"args": ["touch", str(mark)]}
    )
    # Gymnasium itself would.
    with pytest.raises(Exception, match="must inherit"):
        gym.make(read_spec(hostile))
    assert mark.exists()
    mark.unlink()
    policy = tiny_policy(provenance={"eval_env_spec": hostile})
    with pytest.raises((SpaceError, DependencyError), match=env_id):
        make_env(policy)
    assert not mark.exists()


@pytest.mark.parametrize(
    "entry", ["subprocess:check_call", "this:s", "gymnasium.wrappers:TimeLimits", "os", ""]
)
def test_wrappers_are_known_ones(entry: str) -> None:
    wrapper = {"name": "x", "entry_point": entry, "kwargs": {"args": ["true"]}}
    with pytest.raises(SpaceError, match="asks for the wrapper"):
        make_spec(read_spec(described(additional_wrappers=[wrapper])))


def test_known_wrappers_and_ones_already_imported_come_back() -> None:
    wrapped = Renamed(gym.wrappers.ClipAction(gym.make(POLE)))
    assert wrapped.spec is not None
    made = make_spec(read_spec(wrapped.spec.to_json()), max_episode_steps=7)
    assert isinstance(made, Renamed) and isinstance(made.env, gym.wrappers.ClipAction)
    assert made.spec is not None and made.spec.max_episode_steps == 7
    made.close()
    wrapped.close()


class Renamed(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """A wrapper of a user's own, in a module that is imported."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)


def test_wrappers_registered_under_the_id_need_no_import() -> None:
    wrapper = WrapperSpec("Renamed", "not.imported:Renamed", {})
    gym.register("gem-test/Wrapped-v0", lambda: gym.make(POLE), additional_wrappers=(wrapper,))
    try:
        found = registered(gym.spec("gem-test/Wrapped-v0"))
        assert found.additional_wrappers == (wrapper,)
    finally:
        del gym.registry["gem-test/Wrapped-v0"]


def test_environments_that_import_others_by_name_are_refused() -> None:
    for name in ("id", "env_id"):
        with pytest.raises(SpaceError, match="would import 'evil:CartPole-v1'"):
            registered(read_spec(described(kwargs={name: "evil:CartPole-v1"})))


def test_gymnasium_below_1_is_read() -> None:
    document = described(autoreset=False, apply_api_compatibility=False)
    del document["additional_wrappers"]
    for told in (document, json.dumps(document)):
        env = make_spec(read_spec(told))
        assert env.spec is not None and env.spec.id == POLE
        env.close()


def test_fitted_spaces_are_fitted_to_the_new_policy(tmp_path: Path) -> None:
    """Not to the one that the data was recorded with, whose file may be gone."""
    env = gym.make(POLE, max_episode_steps=6)
    box = env.action_space
    assert isinstance(box, gym.spaces.Box) and env.observation_space.shape is not None
    float32 = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    first = tiny_policy(float32, box)
    path = first.save(tmp_path / "secret_folder")
    fitted = SuccessInfo(MatchSpaces(gym.make(POLE, max_episode_steps=6), str(path)))
    assert fitted.spec is not None
    kept = without_policies(json.loads(fitted.spec.to_json()))
    assert "secret_folder" not in json.dumps(kept)
    for description in (kept, json.loads(fitted.spec.to_json())):
        policy = tiny_policy(float32, box, seed=1, provenance={"eval_env_spec": description})
        made = make_env(policy)
        assert made.observation_space == float32
        observation, _ = made.reset(seed=0)
        assert observation.dtype == np.float32
        made.close()
    with pytest.raises(SpaceError, match="expected dtype float32"):
        make_env(tiny_policy(float32, box, provenance={"eval_env_spec": described()}))
    env.close()
    fitted.close()


def test_code_that_moved_is_found_by_its_id() -> None:
    env = make_spec(read_spec(described(entry_point="gymnasium.envs.of_old:Pole")))
    assert type(env.unwrapped).__name__ == "InvertedPendulumEnv"
    env.close()


@pytest.mark.parametrize(
    "document", ["{", "x", {"id": 1}, [1], 5, described(kwargs=3), "[" * 100_000]
)
def test_what_describes_nothing_is_told(document: object) -> None:
    with pytest.raises(SpaceError, match="does not describe an environment"):
        make_env(tiny_policy(provenance={"eval_env_spec": document}))


def test_an_argument_of_another_version_is_told() -> None:
    with pytest.raises(SpaceError, match=f"{POLE} as installed here cannot be made.*no_such"):
        make_spec(read_spec(described(kwargs={"no_such": 1})))


def test_an_unknown_id_says_what_to_import() -> None:
    with pytest.raises(DependencyError, match="import what registers it"):
        make_spec(read_spec(described("Unheard-v0")))


def test_hostile_files_are_told_by_the_command_line(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = described(entry_point="os:system", kwargs={"command": f"touch {mark}"})
    tiny_policy(provenance={"eval_env_spec": hostile}).save(tmp_path / "evil.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "gem_policy", "evaluate", str(tmp_path / "evil.safetensors")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert not mark.exists()


def test_an_environment_is_made_for_a_policy_not_for_a_name() -> None:
    with pytest.raises(ConfigError, match="takes a GEMPolicy, got 'pointmaze-umaze'"):
        inspect.unwrap(make_env)("pointmaze-umaze")  # type: ignore[arg-type]
