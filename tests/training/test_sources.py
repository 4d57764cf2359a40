from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gem_policy.errors import DatasetError
from gem_policy.training import sources
from gem_policy.training.recipes.networks import Agent, HandExpert
from gem_policy.training.sources import Original, Source, convert, read_arrays


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes classes of modules that do not exist, to pickle as other people did."""

    def make(module: str, name: str, *bases: type) -> type:
        made = type(name, bases or (object,), {"__module__": module})
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        monkeypatch.setattr(sys.modules[module], name, made, raising=False)
        return made

    yield make


def hand_policy(foreign: Any) -> tuple[bytes, nn.Sequential]:
    """A pickled Gaussian policy in the layout of mjrl: 3 observations, 2 actions, width 4."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model = foreign("mjrl.utils.fc_network", "FCNetwork", nn.Module)()
    model.fc_layers = nn.ModuleList([net[0], net[2], net[4]])
    shifts = {"in_shift": 1.0, "in_scale": 2.0, "out_shift": 0.1, "out_scale": 0.5}
    sizes = {"in_shift": 3, "in_scale": 3, "out_shift": 2, "out_scale": 2}
    model.transformations = {n: np.full(sizes[n], v) for n, v in shifts.items()}
    for name, value in shifts.items():
        setattr(model, name, torch.full((sizes[name],), value))
    policy = foreign("mjrl.policies.gaussian_mlp", "MLP")()
    policy.model, policy.old_model = model, model
    policy.log_std = nn.Parameter(torch.full((2,), -1.0))
    policy.log_std_val = np.full(2, -1.0)
    return pickle.dumps(policy), net


def test_a_hand_policy_acts_as_its_original(foreign: Any) -> None:
    pickled, net = hand_policy(foreign)
    expert = HandExpert(sources.read_hand_policy(pickled))
    x = np.array([0.3, -0.7, 1.2])
    with torch.no_grad():
        mean = net((torch.tensor(x).float() - 1.0) / 2.0).numpy() * 0.5 + 0.1
    np.testing.assert_allclose(expert.act(x, None), np.clip(mean, -1, 1), rtol=1e-5)
    rng = np.random.default_rng(0)
    drawn = np.stack([expert.act(x, rng) for _ in range(4000)])
    # Far from the bounds the standard deviation is exp(-1).
    assert drawn.std(0) == pytest.approx(np.exp(-1), rel=0.05)


def test_demonstrations_are_laid_end_to_end() -> None:
    rng = np.random.default_rng(0)
    paths = [
        {
            "observations": rng.standard_normal((n, 3)),
            "actions": rng.standard_normal((n, 2)),
            "rewards": rng.standard_normal(n),
            "init_state_dict": {
                "qpos": np.full(4, n),
                "qvel": np.zeros(4),
                "door_body_pos": np.ones(3),
            },
        }
        for n in (2, 5)
    ]
    arrays = sources.read_demonstrations(pickle.dumps(paths, protocol=2))
    assert arrays["episode_lengths"].tolist() == [2, 5]
    assert arrays["observations"].shape == (7, 3)
    np.testing.assert_array_equal(arrays["actions"][2:], paths[1]["actions"])
    assert arrays["init_qpos"].tolist() == [[2] * 4, [5] * 4]


def test_the_ant_is_found_in_a_training_snapshot(foreign: Any) -> None:
    policy = foreign("rlkit.torch.sac.policies", "TanhGaussianPolicy", nn.Module)()
    policy.fc0, policy.fc1 = nn.Linear(3, 4), nn.Linear(4, 4)
    policy.last_fc, policy.last_fc_log_std = nn.Linear(4, 2), nn.Linear(4, 2)
    file = io.BytesIO()
    snapshot = {"exploration/policy": policy, "trainer/qf1": nn.Linear(2, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like to keep the source of the class, too
        torch.save(snapshot, file, _use_new_zipfile_serialization=False)
    agent = Agent(sources.read_ant(file.getvalue()))
    x = np.array([0.3, -0.7, 1.2])
    with torch.no_grad():
        hidden = policy.fc1(policy.fc0(torch.tensor(x).float()).relu()).relu()
        mean = policy.last_fc(hidden).tanh().numpy()
    np.testing.assert_allclose(agent.act(x, 0, None), mean, rtol=1e-5)


def agent_archive(state: dict[str, torch.Tensor], activation: str | None) -> bytes:
    """What `save` of Stable-Baselines3 writes, as far as it is read here."""
    policy, file = io.BytesIO(), io.BytesIO()
    torch.save(state, policy)
    kwargs = {} if activation is None else {"activation_fn": f"<class 'x.{activation}'>"}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": kwargs}))
        archive.writestr("policy.pth", policy.getvalue())
    return file.getvalue()


def layers(*names: str) -> dict[str, torch.Tensor]:
    """Random layers 3 -> 4 -> 4 -> 2."""
    sizes = ((4, 3), (4, 4), (2, 4))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, size in zip(names, sizes, strict=True):
        state[f"{name}.weight"] = torch.randn(size, generator=generator)
        state[f"{name}.bias"] = torch.randn(size[0], generator=generator)
    return state


def test_a_squashed_agent_is_read() -> None:
    state = layers("actor.latent_pi.0", "actor.latent_pi.2", "actor.mu")
    state |= {"actor.log_std.weight": torch.zeros(2, 4), "actor.log_std.bias": torch.zeros(2)}
    agent = Agent(sources.read_agent(agent_archive(state, None)))
    x = np.array([0.3, -0.7, 1.2])
    hidden = torch.tensor(x).float()
    for name in ("actor.latent_pi.0", "actor.latent_pi.2"):
        hidden = (state[f"{name}.weight"] @ hidden + state[f"{name}.bias"]).relu()
    mean = state["actor.mu.weight"] @ hidden + state["actor.mu.bias"]
    np.testing.assert_allclose(agent.act(x, 0, None), mean.tanh().numpy(), rtol=1e-5)


@pytest.mark.parametrize("activation", [None, "ReLU", "Tanh"])
def test_an_agent_with_normalized_observations_is_read(
    foreign: Any, activation: str | None
) -> None:
    net = "mlp_extractor.policy_net"
    state = layers(f"{net}.0", f"{net}.2", "action_net") | {"log_std": torch.zeros(2)}
    statistics = foreign("stable_baselines3.common.running_mean_std", "RunningMeanStd")()
    statistics.mean, statistics.var = np.full(3, 0.5), np.full(3, 4.0)
    wrapper = foreign("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize")()
    wrapper.obs_rms, wrapper.clip_obs, wrapper.epsilon = statistics, 10.0, 0.0
    agent = Agent(sources.read_agent(agent_archive(state, activation), pickle.dumps(wrapper)))
    x = np.array([0.3, -0.7, 1.2])
    hidden = (torch.tensor(x).float() - 0.5) / 2.0
    function = torch.relu if activation == "ReLU" else torch.tanh
    for name in (f"{net}.0", f"{net}.2"):
        hidden = function(state[f"{name}.weight"] @ hidden + state[f"{name}.bias"])
    mean = state["action_net.weight"] @ hidden + state["action_net.bias"]
    np.testing.assert_allclose(agent.act(x, 0, None), mean.clip(-1, 1).numpy(), rtol=1e-5)


def test_an_agent_that_was_told_the_time_is_told_it_here() -> None:
    arrays = {"W0": np.array([[0.0, 1.0]]), "b0": np.zeros(1), "W1": np.eye(1), "b1": np.zeros(1)}
    arrays |= {"W2": np.eye(1), "b2": np.zeros(1), "log_std": np.zeros(1)}
    agent = Agent({**arrays, "activation": np.array("relu"), "squash": np.array(False)})
    assert agent.act(np.array([5.0]), 250, None).item() == pytest.approx(0.75)


def test_arrays_that_make_no_policy_are_refused() -> None:
    with pytest.raises(DatasetError, match="missing: W0, b0"):
        Agent({})
    with pytest.raises(DatasetError, match="do not fit together"):
        Agent(
            {f"W{i}": np.zeros((2, 3)) for i in range(3)} | {f"b{i}": np.zeros(2) for i in range(3)}
        )


@pytest.fixture
def two_sources(foreign: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two described originals; the first was downloaded, as an archive of its repository."""
    pickled, _ = hand_policy(foreign)
    sha = hashlib.sha256(pickled).hexdigest()
    one = Source(
        "hand/policy.npz",
        "somebody/hand",
        "abc",
        "MIT",
        (Original("a/p.pickle", sha),),
        sources.read_hand_policy,
    )
    two = replace(one, target="other/policy.npz", repository="somebody/other")
    monkeypatch.setattr(sources, "SOURCES", (one, two))
    path = tmp_path / "downloads" / "hand-abc" / "a" / "p.pickle"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickled)
    return tmp_path / "downloads"


def test_what_was_downloaded_is_converted_and_the_rest_is_named(
    two_sources: Path, tmp_path: Path
) -> None:
    written, missing = convert(two_sources, tmp_path / "arrays")
    assert (written, missing) == (("hand/policy.npz",), ("other/policy.npz",))
    assert read_arrays(tmp_path / "arrays", "hand/policy.npz")["W0"].shape == (4, 3)


def test_where_nothing_was_downloaded_nothing_is_converted(tmp_path: Path) -> None:
    for downloads in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DatasetError, match="holds none of the originals"):
            convert(downloads, tmp_path / "arrays")


def test_another_file_than_the_described_one_is_refused(two_sources: Path, tmp_path: Path) -> None:
    next(two_sources.rglob("p.pickle")).write_bytes(b"something else")
    with pytest.raises(DatasetError, match="has the checksum .*github.com/somebody/hand/raw/abc"):
        convert(two_sources, tmp_path / "arrays")
    assert not (tmp_path / "arrays" / "hand" / "policy.npz").exists()


def test_missing_and_wrong_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="datasets sources"):
        read_arrays(None, "a.npz")
    with pytest.raises(DatasetError, match="has no `a.npz`.*datasets sources"):
        read_arrays(tmp_path, "a.npz")
    (tmp_path / "raw").mkdir()
    np.savez(tmp_path / "raw" / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DatasetError, match="not a file of plain arrays"):
        read_arrays(tmp_path, "a.npz")


@pytest.mark.parametrize(
    "reader", [sources.read_hand_policy, sources.read_ant, sources.read_demonstrations]
)
def test_pickles_of_something_else_are_refused(reader: Any) -> None:
    with pytest.raises(DatasetError, match="another file|of dicts"):
        reader(pickle.dumps({"a": np.zeros(2)}))


def test_archives_of_something_else_are_refused() -> None:
    with pytest.raises(DatasetError, match="not an agent"):
        sources.read_agent(b"no archive")


def test_every_source_is_described_once_and_completely() -> None:
    targets = [source.target for source in sources.SOURCES]
    assert len(set(targets)) == len(targets) == 17
    for source in sources.SOURCES:
        assert source.license and len(source.commit) == 40
        assert all(len(original.sha256) == 64 for original in source.originals)
        assert all(url.startswith("https://github.com/") for url in source.urls())
