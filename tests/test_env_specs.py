"""Environments described by files: made by registered code, whatever the file calls its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from fakes import tiny_policy

from gem_policy.env_specs import make_spec, read_spec
from gem_policy.environments import make_env
from gem_policy.errors import DependencyError, SpaceError

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


def test_code_that_moved_is_found_by_its_id() -> None:
    env = make_spec(read_spec(described(entry_point="gymnasium.envs.of_old:Pole")))
    assert type(env.unwrapped).__name__ == "InvertedPendulumEnv"
    env.close()


@pytest.mark.parametrize("document", ["{", "x", {"id": 1}, [1], 5, described(kwargs=3)])
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
