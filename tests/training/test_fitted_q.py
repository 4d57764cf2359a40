"""Fitted Q evaluation where the true value is known: a bandit, and a walk along a line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import tiny_checkpoint, tiny_policy
from small_datasets import random_episode, write_dataset

from gem_policy.checkpoint import save_folder
from gem_policy.cli import main
from gem_policy.config import SelectionConfig
from gem_policy.errors import ConfigError, TrainingError, TrainingWarning
from gem_policy.policy import GEMPolicy
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.fitted_q import chosen_actions, estimate, grid
from gem_policy.training.fitted_q_learner import FittedQConfig
from gem_policy.training.transitions import Transitions

LINE = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
PUSH = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
MODE = SelectionConfig(candidates=1, all_modes=True)
BEST = SelectionConfig(candidates=8, kappa=1.0, support_weight=0.0, all_modes=True)
MIDDLE = SelectionConfig(candidates=2, kappa=1.0, support_weight=0.0, all_modes=True)
SMALL = FittedQConfig(
    updates=500, batch_size=128, learning_rate=5e-3, target_rate=0.1, hidden=(32, 32)
)


def move(x: Any, action: Any) -> Any:
    """A walk that is pulled back to 0: the reward is the new position."""
    return 0.6 * x + 0.4 * action


def pusher() -> GEMPolicy:
    """Its critics like large actions, which is right on the line: more candidates are better."""
    policy = GEMPolicy(tiny_checkpoint(LINE, PUSH, seed=3), torch.device("cpu"))
    policy.critics = lambda observations, actions: actions.sum(-1)[None]  # type: ignore[assignment]
    return policy


def walks(episodes: int, steps: int, ends: bool = False) -> Dataset:
    """Random walks along the line; with ``ends`` the first step of an episode is its last."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, episodes).astype(np.float32)
    # An episode leans to one side, so that the ends of the line are visited, too.
    actions = rng.uniform(-1.5, 1.5, (episodes, 1)) + rng.uniform(-1, 1, (episodes, steps))
    actions = np.clip(actions, -1, 1).astype(np.float32)
    rows = [x]
    for t in range(steps):
        rows.append(move(rows[-1], actions[:, t]))
    observations = np.stack(rows, 1)
    last = np.zeros((episodes, steps), bool)
    last[:, -1] = True
    data = Transitions(
        observations=torch.from_numpy(observations.reshape(-1, 1)),
        actions=torch.from_numpy(actions.reshape(-1, 1)),
        rewards=torch.from_numpy(observations[:, 1:].reshape(-1).copy()),
        terminated=torch.from_numpy((last if ends else last & False).reshape(-1)),
        truncated=torch.from_numpy((last & False if ends else last).reshape(-1)),
        episode=torch.arange(episodes).repeat_interleave(steps),
    )
    nothing = (None, None, None, None, "", {}, 0, {})
    return Dataset("test/line-v0", data, torch.arange(episodes), LINE, PUSH, *nothing)


def true_values(
    policy: GEMPolicy, starts: Any, selection: SelectionConfig, train: TrainConfig
) -> Any:
    """Played on the line with decisions of the policy itself."""
    own, policy.selection = policy.selection, selection
    x, total = starts[:, 0], 0.0
    for t in range(60 if train.discount else 1):
        action = policy.decide(torch.as_tensor(x, dtype=torch.float32)[:, None]).action[:, 0]
        x = move(x, action.numpy())
        total = total + train.discount**t * (train.reward_scale * x + train.reward_shift)
    policy.selection = own
    return total


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        (TrainConfig(discount=0.0, holdout=0.2), 1),
        (TrainConfig(discount=0.9, reward_scale=3.0, reward_shift=-1.0, holdout=0.2), 8),
    ],
    ids=["bandit", "walk"],
)
def test_estimates_are_near_the_true_values_and_in_their_order(
    train: TrainConfig, steps: int
) -> None:
    policy, data = pusher(), walks(1200 // steps, steps)
    own = policy.selection
    selections = [MODE, BEST, MIDDLE]
    found = estimate(policy, data, selections, SMALL, train=train)
    assert policy.selection == own
    held_out = data.split(0.8, train.seed)[1].transitions
    starts = held_out.observations[:: steps + 1].numpy()
    truths = [true_values(policy, starts, s, train) for s in selections]
    width = float(np.mean([t.std() for t in truths]) + np.std([t.mean() for t in truths]))
    for one, truth, selection in zip(found, truths, selections, strict=True):
        assert one.selection == selection and one.values.shape == truth.shape
        assert np.abs(one.values - truth).mean() < 0.15 * width
        assert one.value.mean == pytest.approx(float(truth.mean()), abs=0.1 * width)
        assert one.value.low < one.value.mean < one.value.high
        assert 0 <= one.spread < 0.1 * width and 0 <= one.drift < 0.1 * width
    order = np.argsort([t.mean() for t in truths])
    assert order.tolist() == [0, 2, 1]  # the line is made so that it is
    assert np.argsort([one.value.mean for one in found]).tolist() == order.tolist()


def test_the_return_ends_where_the_task_or_the_terminal_reward_ends_it() -> None:
    """With ends after every step a large discount changes nothing."""
    policy, config = pusher(), FittedQConfig(updates=60, batch_size=64, hidden=(16,))
    far, near = TrainConfig(discount=0.95, holdout=0.2), TrainConfig(discount=0.0, holdout=0.2)
    cut = TrainConfig(discount=0.95, holdout=0.2, terminal_reward=-100.0)
    ended, open_end = walks(100, 1, ends=True), walks(100, 1)

    def mean(data: Dataset, train: TrainConfig) -> float:
        return estimate(policy, data, [BEST], config, train=train)[0].value.mean

    bounded = pytest.approx(mean(ended, near), abs=1e-6)
    assert mean(ended, far) == bounded
    assert mean(open_end, cut) == bounded
    assert mean(open_end, far) != pytest.approx(mean(ended, far), abs=1e-3)


def test_side_by_side_is_the_same_as_alone() -> None:
    policy, data = pusher(), walks(60, 4)
    config = FittedQConfig(updates=20, batch_size=32, hidden=(16, 16), members=3)
    train = TrainConfig(discount=0.9, holdout=0.2)
    together = estimate(policy, data, [MODE, BEST], config, train=train)
    for one in together:
        alone = estimate(policy, data, [one.selection], config, train=train)[0]
        np.testing.assert_allclose(alone.values, one.values, rtol=1e-4, atol=1e-5)
        assert alone.spread == pytest.approx(one.spread, rel=1e-3)


def test_chosen_actions_are_those_of_decide() -> None:
    policy = tiny_policy()
    rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    selections = [
        SelectionConfig(candidates=1),
        SelectionConfig(candidates=6, kappa=2.0),
        SelectionConfig(candidates=16, support_weight=0.2, bound="paired"),
        SelectionConfig(candidates=16, value_scale="raw"),
        SelectionConfig(candidates=16, gain_kappa=0.0, least_gain=0.2),
    ]
    own, calls = policy.selection, []
    found = chosen_actions(policy, rows, selections, calls.append)
    assert policy.selection == own and calls[-1] == 300
    for selection, actions in zip(selections, found, strict=True):
        policy.selection = selection
        expected = policy.decide(rows).action
        same = torch.isclose(policy.scaler.invert(actions), expected, atol=1e-5).all(-1)
        assert same.float().mean() > 0.99  # a near tie may fall the other way
    assert (found[0] != found[2]).any()
    with pytest.raises(ConfigError, match="draw candidates in one way"):
        chosen_actions(policy, rows, [own, own.replace(all_modes=True)])


def test_a_grid_has_every_combination_and_the_mode_once() -> None:
    own = SelectionConfig(candidates=7, kappa=3.0, support_weight=0.5)
    assert grid(own, [], [], []) == [own]
    found = grid(own, [1, 4], [0.0, 1.0], [0.1, 0.2])
    told = [(s.candidates, s.kappa, s.support_weight) for s in found]
    assert told == [(1, 0, 0.1), (4, 0, 0.1), (4, 0, 0.2), (4, 1, 0.1), (4, 1, 0.2)]


def test_wrong_input_is_refused_in_words() -> None:
    policy, data, train = pusher(), walks(5, 2), TrainConfig(holdout=0.2)
    with pytest.raises(ConfigError, match="does not say how it was trained"):
        estimate(policy, data, [MODE])
    with pytest.raises(ConfigError, match="one SelectionConfig at least"):
        estimate(policy, data, [], train=train)
    with pytest.raises(TrainingError, match=r"of lengths \(1, 1\), the policy was made for"):
        estimate(tiny_policy(), data, [MODE], train=train)
    other = replace(data, action_space=gym.spaces.Box(0.0, 5.0, (1,), np.float32))
    with pytest.raises(TrainingError, match=r"actions in Box\(0.0, 5.0.*the same numbers mean"):
        estimate(policy, other, [MODE], train=train)


def test_an_interval_over_one_start_is_told() -> None:
    config = FittedQConfig(updates=2, batch_size=8, hidden=(4,))
    with pytest.warns(TrainingWarning, match="one held-out episode.*says nothing.*`holdout`"):
        estimate(pusher(), walks(5, 2), [MODE], config, train=TrainConfig(holdout=0.01))


def test_data_of_another_task_are_told() -> None:
    config = FittedQConfig(updates=2, batch_size=8, hidden=(4,))
    maze = {**json.loads(gym.spec("Hopper-v5").to_json()), "kwargs": {"maze_map": [[1, 0]]}}
    made = replace(pusher().to_checkpoint(), provenance={"env_spec": maze})
    policy = GEMPolicy(made, torch.device("cpu"))
    train = TrainConfig(holdout=0.4)

    def judge(**changes: Any) -> None:
        told = json.dumps({**maze, **changes})
        estimate(policy, replace(walks(5, 2), env_spec=told), [MODE], config, train=train)

    judge()
    policy.provenance["env_spec"]["kwargs"]["odd"] = float("nan")
    judge(kwargs={"maze_map": [[1, 0]], "odd": float("nan")})
    del policy.provenance["env_spec"]["kwargs"]["odd"]
    judge(kwargs={"maze_map": [[1, 0]], "render_mode": "rgb_array"}, max_episode_steps=3)
    with pytest.warns(TrainingWarning, match=r"another environment .*\['maze_map'\] differ"):
        judge(kwargs={"maze_map": [[1, 1]]})
    with pytest.warns(TrainingWarning, match=r"\['id'\] differ \(Walker2d-v5, Hopper-v5\)"):
        judge(id="Walker2d-v5")


def test_the_command_line_estimates_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    write_dataset("test/estimate-v0", [random_episode(8, rng) for _ in range(5)])
    space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    train = vars(TrainConfig(holdout=0.4))
    save_folder(tiny_checkpoint(space, box, provenance={"train": train}), tmp_path / "made")
    out = tmp_path / "deep" / "estimates.json"
    arguments = ["--candidates", "1,4", "--support-weight", "0,1", "--kappa", "2"]
    arguments += ["--updates", "3", "--json", str(out)]
    told = ["gem-policy", "estimate", str(tmp_path / "made"), "test/estimate-v0", *arguments]
    monkeypatch.setattr(sys, "argv", told)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    text, document = capsys.readouterr().out, json.loads(out.read_text())
    settings = [row["selection"] for row in document["rows"]]
    chosen = [(s["candidates"], s["support_weight"]) for s in settings]
    assert chosen == [(1, 0), (4, 0), (4, 1)]
    assert all(row["selection"]["kappa"] == 2 and row["starts"] == 2 for row in document["rows"])
    assert all(f"{row['value']['mean']:.4f}" in text for row in document["rows"])
    assert document["settings"]["updates"] == 3 and document["dataset_id"] == "test/estimate-v0"


def test_rewards_are_scaled_as_in_the_training() -> None:
    """By what the checkpoint says that they were; of other settings, by what these come to."""
    data = walks(60, 4)
    config = FittedQConfig(updates=40, batch_size=32, hidden=(16,))
    train = TrainConfig(discount=0.9, holdout=0.2, return_normalization=True, reward_shift=-1.0)
    returns = data.transitions.returns
    factor = 1000 / float(returns.max() - returns.min())
    plain = replace(train, return_normalization=False, reward_scale=factor)
    policy = pusher()
    [expected] = estimate(policy, data, [BEST], config, train=plain)
    [found] = estimate(policy, data, [BEST], config, train=train)
    assert found.value.mean == pytest.approx(expected.value.mean, rel=1e-5)
    policy.provenance = {"train": vars(train), "rewards": {"factor": 2 * factor, "shift": -1.0}}
    [told] = estimate(policy, data, [BEST], config)
    twice = replace(plain, reward_scale=2 * factor)
    [expected] = estimate(policy, data, [BEST], config, train=twice)
    assert told.value.mean == pytest.approx(expected.value.mean, rel=1e-5)
