"""Runs: reproducible, killed and resumed to the bit, stopped when broken, and worth it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as serialize
from small_datasets import GOALS, random_episode, write_dataset
from tiny_runs import SHORT, TINY, UPDATES, Stop, run, stop_at

from gem_policy import checkpoint as files
from gem_policy.config import NetworkConfig
from gem_policy.errors import CheckpointError, ConfigError, TrainingError
from gem_policy.policy import GEMPolicy
from gem_policy.training.advantages import judge, weigh
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.learners import CriticLearner, ValueLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.state import STATE_FILE, read_state
from gem_policy.training.trainer import PHASES, Progress, fit

# What these runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        rng = np.random.default_rng(0)
        episodes = [random_episode(9, rng, GOALS, terminated=i % 2 == 0) for i in range(8)]
        write_dataset("test/goal-v0", episodes, observation_space=GOALS)
        yield folder


@pytest.fixture
def dataset() -> Dataset:
    return load("test/goal-v0")


# -- a run ---------------------------------------------------------------------------------------


def test_a_run_ends_with_a_policy_for_the_datasets_spaces(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(dataset, tmp_path, progress=seen.append)
    policy = GEMPolicy.load(tmp_path, device="cpu")
    assert policy.observation_space == dataset.observation_space
    assert policy.action_space == dataset.action_space
    one = {key: np.zeros(box.shape) for key, box in GOALS.spaces.items()}
    assert policy.action_space.contains(policy.predict(one, deterministic=True)[0])
    told = policy.provenance
    assert told["dataset_id"] == "test/goal-v0"
    assert told["dataset_steps"] == 72 and told["dataset_episodes"] == 8
    assert told["train"]["batch_size"] == 16
    assert str(tmp_path) not in json.dumps(told)
    assert [p.done for p in seen] == list(range(1, UPDATES + 1))
    assert all(p.total == UPDATES for p in seen)
    assert list(dict.fromkeys(p.phase for p in seen)) == list(PHASES)
    logged = {p.done for p in seen if p.metrics}
    assert logged == {5, 10, 12, 17, 22, 27, 32, 37, 42, 44, 49, 54, 56}
    last = [p.metrics for p in seen if p.metrics][-1]
    assert {"actor/log_prob", "actor/effective_components", "actor/usage_0"} <= set(last)
    assert sum(last[f"actor/usage_{k}"] for k in range(2)) == pytest.approx(1)
    assert 1 <= last["actor/effective_components"] <= 2.0001


def test_the_calibration_is_that_of_held_out_actions(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path)
    policy = GEMPolicy.load(tmp_path, device="cpu")
    _, held_out = dataset.split(1 - SHORT.holdout, SHORT.seed)
    data = held_out.transitions.all()
    actions = policy.scaler.apply(data.actions).unsqueeze(-2)
    density = policy.behavior_mixture(data.observations).log_prob(actions).squeeze(-1)
    expected = np.quantile(density.detach().double().numpy(), np.linspace(0, 1, 1001))
    np.testing.assert_allclose(policy.calibration.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(
    dataset: Dataset, tmp_path: Path
) -> None:
    first = run(dataset, tmp_path / "a")
    torch.manual_seed(123)  # global random state has no say
    assert run(dataset, tmp_path / "b") == first
    assert run(dataset, tmp_path / "c", log_every=1) == first
    other = TrainConfig(**{**vars(SHORT), "seed": 1})
    assert run(dataset, tmp_path / "d", other) != first


# -- stopped and resumed -------------------------------------------------------------------------


@pytest.mark.parametrize("update", [1, 7, 12, 13, 30, 32, 33, 43, 44])
def test_a_run_stopped_anywhere_and_resumed_is_the_run_that_was_not(
    dataset: Dataset, tmp_path: Path, update: int
) -> None:
    config = replace(SHORT, precision="bfloat16" if update % 2 else "float32")
    network = {**TINY, "critic_hidden": (8, 8)}  # a layer between two hidden ones, to be rounded
    whole = run(dataset, tmp_path / "whole", config, network=network)
    with pytest.raises(Stop):
        run(dataset, tmp_path / "cut", config, network=network, progress=stop_at(update))
    seen: list[Progress] = []
    assert run(dataset, tmp_path / "cut", config, network=network, progress=seen.append) == whole
    if update > 5:
        assert seen[0].done > 1, "it began again"


def test_a_finished_run_is_not_trained_again(dataset: Dataset, tmp_path: Path) -> None:
    first = run(dataset, tmp_path)
    seen: list[Progress] = []
    assert run(dataset, tmp_path, progress=seen.append) == first
    assert seen == []


SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    from gem_policy.training.config import TrainConfig
    from gem_policy.training.dataset import load
    from gem_policy.training.trainer import fit

    torch.set_num_threads(1)
    network, train, out = eval(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
    from pathlib import Path

    def progress(now):
        print(now.done, flush=True)

    fit(load("test/goal-v0"), Path(out), TrainConfig(**train), network=network, log_every=5,
        save_seconds=0.0, progress=progress)
    """
)


def test_a_run_killed_at_random_moments_is_resumed_to_the_bit(
    dataset: Dataset, tmp_path: Path
) -> None:
    """SIGKILL: nothing can be tidied up. The moments are random up to the machine's own timing."""
    long = replace(SHORT, **{f"{name}_updates": 150 for name in PHASES})
    whole = run(dataset, tmp_path / "whole", long)
    out = tmp_path / "killed"
    moments = random.Random(0)
    for phase in (1, 2, 3):  # values, critics, actor
        target = 150 * phase + moments.randint(10, 60)
        command = [sys.executable, "-c", SCRIPT, repr(TINY), repr(vars(long)), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= target:
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=120) == -signal.SIGKILL
        process.stdout.close()
        assert not (out / files.WEIGHTS_FILE).exists()
        assert (out / STATE_FILE).exists()
    assert run(dataset, out, long) == whole


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 17}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"critic_updates": 21}, "critic_updates"),
    ],
)
def test_other_settings_do_not_resume_a_run(
    dataset: Dataset, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(Stop):
        run(dataset, tmp_path, progress=stop_at(20))
    before = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(TrainingError, match=f"(?s)other settings or data.*{told}.*another --out"):
        run(dataset, tmp_path, TrainConfig(**{**vars(SHORT), **change}))
    with pytest.raises(TrainingError, match="(?s)other settings.*critics"):
        run(dataset, tmp_path, network={**TINY, "critics": 3})
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_only_the_settings_that_differ_are_told(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(dataset, tmp_path, progress=stop_at(20))
    with pytest.raises(TrainingError) as error:
        run(dataset, tmp_path, replace(SHORT, weight_floor=0.05), network={**TINY, "critics": 3})
    told = "(network.critics: 2 then, 3 now; train.weight_floor: 0.0 then, 0.05 now)"
    assert told in str(error.value)


def test_two_runs_do_not_work_in_one_folder(dataset: Dataset, tmp_path: Path) -> None:
    def another(now: Progress) -> None:
        with pytest.raises(TrainingError, match="Another run is at work in .*another --out"):
            run(dataset, tmp_path, replace(SHORT, seed=1))
        with pytest.raises(TrainingError, match="Another run is at work"):
            fit_seeds(dataset, tmp_path, SHORT, seeds=2, network=TINY)
        raise Stop

    with pytest.raises(Stop):
        run(dataset, tmp_path, progress=another)
    run(dataset, tmp_path)  # the first is not at work any more


def test_a_file_system_without_locks_is_no_reason_not_to_train(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(code: int) -> Any:
        def acquire(self: Any, *args: Any, **kwargs: Any) -> None:
            raise OSError(code, os.strerror(code))

        return acquire

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse(errno.ENOLCK))
    run(dataset, tmp_path / "out")
    assert (tmp_path / "out" / files.WEIGHTS_FILE).exists()
    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse(errno.EROFS))
    with pytest.raises(CheckpointError, match="out cannot be written to .Read-only file system"):
        run(dataset, tmp_path / "out")


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_a_run_resumes_with_the_unit_that_it_began_with(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    data = dataset.transitions
    paid = replace(dataset, transitions=replace(data, rewards=data.rewards * factor))
    with pytest.raises(Stop):
        run(paid, tmp_path, progress=stop_at(20))
    monkeypatch.setattr("gem_policy.training.reward_scale.LARGEST", 1e-3)
    with pytest.raises(TrainingError, match=r"\(reward_unit: .* then, .* now\)"):
        run(paid, tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"network": {"critcs": 3}}, r"unknown settings \['critcs'\]"),
        ({"network": {"observation_size": 3}}, "`observation_size` must be .*as in the dataset"),
        ({"network": {"critics": 0}}, "`critics` must be"),
        ({"selection": {"kapa": 3}}, r"Unknown selection settings \['kapa'\]"),
        ({"selection": {"kappa": -1}}, "`kappa` must be"),
        ({"device": "tpu9"}, "Device 'tpu9' cannot be used here"),
        ({"log_every": 0}, "`log_every` must be"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    dataset: Dataset, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=told):
        fit(dataset, out, SHORT, **options)
    with pytest.raises(ConfigError, match=told):
        fit_seeds(dataset, out, SHORT, seeds=2, **options)
    assert not out.exists()


def test_a_file_is_no_folder_of_a_run(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here")
    with pytest.raises(CheckpointError, match="out cannot be the folder of a run.*another --out"):
        run(dataset, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "here"


def test_other_data_of_the_same_name_and_size_do_not_resume_a_run(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run(dataset, tmp_path, progress=stop_at(20))
    rewards = dataset.transitions.rewards.clone()
    rewards[3] += 1
    other = replace(dataset, transitions=replace(dataset.transitions, rewards=rewards))
    with pytest.raises(TrainingError, match="(?s)other settings or data.*checksum: "):
        run(other, tmp_path)


def test_a_damaged_state_is_named(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match=f"{STATE_FILE} is damaged.*Delete it to start again"):
        run(dataset, tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"phase": "foo"}, "update 12 of the phase 'foo' is none"),
        ({"step": 13}, "update 13 of the phase 'behavior' is none"),
        ({"step": -3}, "update -3 of the phase 'behavior' is none"),
        ({"step": "x"}, "its step is 'x'"),
        ({"step": None}, "its step is None"),
        ({"step": True}, "its step is True"),
        ({"run": ["a"]}, r"its run is \['a'\]"),
        ({"phase": None}, "its phase is None"),
    ],
)
def test_a_state_that_cannot_be_is_named(
    dataset: Dataset, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(Stop):
        run(dataset, tmp_path, progress=stop_at(13))
    state = read_state(tmp_path)
    assert (state.phase, state.step) == ("behavior", 12)
    document = {"run": state.run, "phase": state.phase, "step": state.step, **changes}
    written = serialize(dict(state.tensors), {"gem_policy_training": json.dumps(document)})
    (tmp_path / STATE_FILE).write_bytes(written)
    with pytest.raises(TrainingError, match=f"is damaged .{told}.*Delete it to start again"):
        run(dataset, tmp_path)


def test_what_a_killed_run_left_of_its_files_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.x1_y" for name in (STATE_FILE, files.WEIGHTS_FILE)]
    other = tmp_path / ".notes.txt"
    for file in (*left, other):
        file.write_bytes(b"half")
    whole = run(dataset, tmp_path)
    assert not any(file.exists() for file in left) and other.exists()
    seed = tmp_path / "seeds" / "seed-0"
    seed.mkdir(parents=True)
    (seed / left[1].name).write_bytes(b"half")
    options: dict[str, Any] = {"network": TINY, "seeds": 1}
    (made,) = fit_seeds(dataset, tmp_path / "seeds", SHORT, **options)
    assert [file.name for file in seed.iterdir()] == [files.WEIGHTS_FILE] and made.is_file()
    assert len(made.read_bytes()) == len(whole)


# -- broken --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_state_stays(
    dataset: Dataset, tmp_path: Path
) -> None:
    wild = TrainConfig(**{**vars(SHORT), "reward_scale": 1e9})
    for_ever = np.float32(1e30)
    huge = type(dataset.transitions)(
        **{**vars(dataset.transitions), "rewards": dataset.transitions.rewards * for_ever}
    )
    broken = type(dataset)(**{**vars(dataset), "transitions": huge})
    with pytest.raises(TrainingError, match=r"value/loss.*by update 5 of the value phase") as told:
        run(broken, tmp_path, wild)
    assert STATE_FILE in str(told.value) and "learning rate" in str(told.value)
    state = read_state(tmp_path)
    assert (state.phase, state.step) == ("behavior", 12)
    assert all(torch.isfinite(t).all() for t in state.tensors.values())
    assert not (tmp_path / files.WEIGHTS_FILE).exists()


def test_a_gradient_that_is_not_finite_never_reaches_the_saved_state(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the reading itself is fine; what it did to the weights is not."""
    learner = PHASES["value"]
    honest = learner.update

    def spoil(self: Any, batch: Any, told: bool) -> Any:
        metrics = honest(self, batch, told)
        if self.step == 10:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = torch.nan
        return metrics

    monkeypatch.setattr(learner, "update", spoil)
    with pytest.raises(TrainingError, match="value phase"):
        run(dataset, tmp_path)
    state = read_state(tmp_path)
    assert all(torch.isfinite(t).all() for t in state.tensors.values())
    assert state.step < 10 or state.phase == "behavior"


# -- what one phase hands to the next --------------------------------------------------------------


def learners_of(dataset: Dataset, config: TrainConfig) -> tuple[Any, ValueLearner, CriticLearner]:
    prepared = prepare(dataset, config, torch.device("cpu"))
    net = NetworkConfig(8, 2, **TINY)
    made = (
        kind(net, config, torch.Generator().manual_seed(7), torch.device("cpu"))
        for kind in (ValueLearner, CriticLearner)
    )
    return prepared.training, *made


@pytest.mark.parametrize("steps", [1, 4])
def test_the_critics_targets_are_advantages_in_standard_deviations(
    dataset: Dataset, steps: int
) -> None:
    config = replace(SHORT, discount=0.9, reward_scale=0.5, reward_shift=-0.1, critic_steps=steps)
    replay, value, _ = learners_of(dataset, config)
    got = judge(replay, value, config).advantages
    expected = np.empty(tuple(got.shape))
    with torch.no_grad():
        for i in range(len(replay)):
            row = int(replay.index[i])
            total = -value.values(replay.rows[row]).double()
            for n in range(steps):
                total += 0.9**n * float(replay.rewards[i + n])
                ended = float(replay.continues[i + n]) == 0
                last = i + n + 1 == len(replay) or replay.index[i + n + 1] != row + n + 1
                if ended or last or n + 1 == steps:
                    break
            after = value.values(replay.rows[row + n + 1]).double()
            expected[i] = (total + (0 if ended else 0.9 ** (n + 1)) * after).numpy()
    expected /= expected.mean(axis=1).std()
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert 0 < int((replay.continues == 0).sum()) < len(replay)


@pytest.mark.parametrize("kappa", [0.0, 3.0])
@pytest.mark.parametrize(("source", "floor"), [("critics", 0.0), ("data", 0.0), ("data", 0.3)])
def test_the_actors_weights_are_those_of_lower_bounds_less_their_mean(
    dataset: Dataset, source: str, floor: float, kappa: float
) -> None:
    config = replace(SHORT, weight_kappa=kappa, weight_temperature=0.02, weight_max=1.5)
    config = replace(config, weight_source=source, weight_floor=floor)
    replay, value, critic = learners_of(dataset, config)
    replay = judge(replay, value, config)
    got = weigh(replay, critic, config).weights
    bounds = []
    with torch.no_grad():
        for i in range(len(replay)):
            action = replay.actions[i].unsqueeze(0)
            q = critic.critics(replay.rows[replay.index[i]], action).double().numpy()[:, 0]
            if source == "data":
                q = replay.advantages[i].double().numpy()
            bounds.append(q.mean() - kappa * q.std())
    centered = np.array(bounds) - np.mean(bounds)
    expected = np.minimum(np.exp(centered / 0.02), 1.5)
    assert 0 < (expected == 1.5).sum() < len(expected)
    expected += floor * expected.mean()
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-38)  # denormals
