"""A wrapped environment and a policy whose settings change in between, in any order of events."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from wrappers_fakes import Pond, plain, random_policy, without_gem

from gem_policy import GEMPolicy, wrappers
from gem_policy.errors import SupportError
from gem_policy.wrappers.support_shield import MODES

LENGTH = 4
numbers = st.floats(-3, 3, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
actions = st.tuples(numbers, numbers).map(lambda a: np.array(a, dtype=np.float32))


class WrappedEnvironment(RuleBasedStateMachine):
    """Monitor around shield around pond, beside a bare pond that does what the shield let through.

    The model of the shield is one line: an action passes where it is finite and its percentile,
    asked of `GEMPolicy.assess`, reaches the threshold; for all else the policy's own `predict`, a
    candidate or an error stands in.
    """

    @initialize(
        seed=st.integers(0, 3),
        percentile=st.sampled_from([0.0, 20.0, 60.0, 100.0]),
        mode=st.sampled_from(MODES),
    )
    def build(self, seed: int, percentile: float, mode: str) -> None:
        self.policy = random_policy(seed=seed)
        self.percentile, self.mode = percentile, mode
        self.inner, self.twin = Pond(LENGTH), Pond(LENGTH)
        shield = wrappers.SupportShield(self.inner, self.policy, percentile, mode)
        self.shield, self.env = shield.shield, wrappers.SupportMonitor(shield, self.policy)
        self.steps = self.interventions = 0
        self.reset(seed)

    @rule(seed=st.integers(0, 9) | st.none())
    def reset(self, seed: int | None) -> None:
        got, expected = self.env.reset(seed=seed), self.twin.reset(seed=seed)
        assert plain(without_gem([got])) == plain([expected])
        self.observation, info = got
        self.episode_steps = self.episode_interventions = 0
        self.over = False
        assert np.isnan(info["gem"]["log_beta"])
        assert info["gem"]["shield"]["steps"] == 0

    @precondition(lambda self: not self.over)
    @rule(action=actions)
    def act(self, action: np.ndarray) -> None:
        self.take(action)

    @precondition(lambda self: not self.over)
    @rule(deterministic=st.booleans())
    def follow_the_policy(self, deterministic: bool) -> None:
        action, _ = self.policy.predict(self.observation, deterministic=deterministic)
        assert self.policy.action_space.contains(action)
        self.take(action)

    def take(self, action: np.ndarray) -> None:
        choice, _ = self.policy.predict(self.observation, deterministic=True)
        passes = self.percentile <= self.percentile_of(action)  # NaN where it is not finite
        self.count(passes)
        if self.mode == "refuse" and not passes:
            with pytest.raises(SupportError):
                self.env.step(action)
            return
        *got, info = self.env.step(action)
        gem = info["gem"]
        executed = gem["shield"]["executed"]
        *expected, bare = self.twin.step(executed)
        assert plain(got) == plain(expected)
        assert plain(without_gem([(info,)])) == plain([(bare,)])
        self.observation, self.over = got[0], got[2] or got[3]

        assert gem["shield"]["intervened"] is not passes
        assert gem["shield"]["steps"] == self.episode_steps
        assert gem["shield"]["interventions"] == self.episode_interventions
        if passes:
            assert plain(executed) == plain(action)
        else:
            assert self.policy.action_space.contains(executed)
            if self.mode == "replace":
                np.testing.assert_array_equal(executed, choice)
        np.testing.assert_array_equal(gem["choice"]["action"], choice)

    def percentile_of(self, action: np.ndarray) -> float:
        rows = self.policy._reader.read(self.observation)[0][0]
        seen = self.policy.assess(*map(torch.from_numpy, (rows, action[None])))
        return float(seen.percentile[0])

    def count(self, passes: bool) -> None:
        self.steps += 1
        self.episode_steps += 1
        self.interventions += not passes
        self.episode_interventions += not passes

    @rule(
        candidates=st.integers(1, 40),
        kappa=st.sampled_from([0.0, 1.0, 5.0]),
        support_weight=st.sampled_from([0.0, 0.5, 100.0]),
        bound=st.sampled_from(["lower", "paired"]),
        value_scale=st.sampled_from(["raw", "standardized"]),
        temperature=st.sampled_from([0.0, 0.3]),
    )
    def turn_the_knobs(self, **changes: Any) -> None:
        self.policy.selection = self.policy.selection.replace(**changes)

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            again = GEMPolicy.load(self.policy.save(Path(folder) / "policy"), device="cpu")
        assert again.selection == self.policy.selection
        same = [p.predict(self.observation, deterministic=True)[0] for p in (again, self.policy)]
        assert plain(same[0]) == plain(same[1])

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        if not hasattr(self, "env"):
            return
        assert (self.shield.steps, self.shield.interventions) == (self.steps, self.interventions)
        assert plain(self.inner.state) == plain(self.twin.state)


def test_any_order_of_events() -> None:
    few = settings(max_examples=25, stateful_step_count=20)
    run_state_machine_as_test(WrappedEnvironment, settings=few)
