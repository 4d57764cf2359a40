"""GEMPolicy: found by any name, decides by the rule, explains itself, falls back safely."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from fakes import BOX, GAIN_UNIT, GOAL, row_of, sample, tiny_checkpoint, tiny_policy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import seeds, selections

from gem_policy import policy as module
from gem_policy.checkpoint import WEIGHTS_FILE, Checkpoint
from gem_policy.config import SelectionConfig
from gem_policy.errors import ConfigError, SpaceError
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy

POLICY = tiny_policy()
SHAPES = st.sampled_from([(), (3,), (3, 2), (0,)])


def observations(*batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*batch, 3, generator=torch.Generator().manual_seed(seed))


def with_settings(selection: SelectionConfig) -> GEMPolicy:
    POLICY.selection = selection
    return POLICY


# -- decide --------------------------------------------------------------------------------------


@given(selections, SHAPES, st.one_of(st.none(), seeds))
@settings(max_examples=40)
def test_decisions_have_the_shapes_and_units_that_they_promise(
    selection: SelectionConfig, batch: tuple[int, ...], seed: int | None
) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    decision = with_settings(selection).decide(observations(*batch), generator)
    n = selection.candidates
    assert decision.action.shape == (*batch, 2)
    assert decision.index.shape == decision.supported.shape == batch
    assert decision.scores.shape == decision.candidates.log_behavior.shape == (*batch, n)
    assert decision.candidates.q.shape == (3, *batch, n)
    assert decision.supported.all()
    low, high = torch.tensor([-1.0, 0.25]), torch.tensor([1.0, 4.0])
    assert ((decision.action >= low) & (decision.action <= high)).all()
    inside = decision.candidates.actions
    assert ((inside >= -1) & (inside <= 1)).all()
    for place in reference.indices(*batch):
        chosen = inside[place][int(decision.index[place])]
        expected = low + (chosen + 1) / 2 * (high - low)
        assert torch.allclose(decision.action[place], expected, atol=1e-5)


@given(selections, seeds)
@settings(max_examples=40)
def test_the_decision_is_the_slow_twins(selection: SelectionConfig, seed: int) -> None:
    decision = with_settings(selection).decide(observations(seed=seed))
    q = decision.candidates.q.double().tolist()
    density = decision.candidates.log_behavior.double().tolist()
    expected = reference.scores_by(selection, GAIN_UNIT, q, density)
    if selection.gain_kappa is not None:  # float32 may see a gain where there is next to none
        size = 1e-4 * (1 + selection.gain_kappa) * (1 + max(map(max, q)) - min(map(min, q)))
        least = selection.least_gain * GAIN_UNIT
        per_nat = selection.gain_per_nat * selection.support_weight * GAIN_UNIT
        size += 1e-4 * per_nat * (max(density) - min(density))
        asked = reference.asked_gains(q, density, least, per_nat)
        gains = reference.paired_bound(q, selection.gain_kappa, asked)
        assume(all(gain == 0 or abs(gain) > size for gain in gains))
        plain = reference.scores_by(selection.replace(gain_kappa=None), GAIN_UNIT, q, density)
        ahead = [abs(v - plain[0]) for v in plain[1 : selection.deciding_candidates]]
        assume(all(v > 1e-3 * (1 + max(map(abs, plain))) for v in ahead))
    best = expected[int(decision.index)]
    # Scores nearer than float32 can tell may come in either order.
    size = 1 + max(abs(v) for v in expected) + (1 + selection.kappa) * max(map(max, q), default=0)
    assert best >= max(expected) - 2e-3 * size


@given(selections)
@settings(max_examples=20)
def test_rows_of_a_batch_agree_with_single_decisions(selection: SelectionConfig) -> None:
    policy, batch = with_settings(selection), observations(4)
    together = policy.decide(batch)
    for i in range(4):
        alone = policy.decide(batch[i])
        assert torch.allclose(alone.candidates.actions, together.candidates.actions[i], atol=1e-5)
        assert torch.allclose(alone.candidates.q, together.candidates.q[:, i], atol=1e-4)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 5))
@settings(max_examples=25)
def test_the_best_score_never_falls_as_the_budget_grows_under_a_fixed_rule(
    one: int, other: int, kappa: float
) -> None:
    few, many = sorted((one, other))
    rule = SelectionConfig(kappa=kappa, support_weight=0.0, value_scale="raw")
    batch = observations(3)
    small = with_settings(rule.replace(candidates=few)).decide(batch).scores.amax(-1)
    large = with_settings(rule.replace(candidates=many)).decide(batch).scores.amax(-1)
    assert (large >= small - 1e-5 * (1 + small.abs())).all()


def test_one_candidate_is_the_actors_mode() -> None:
    batch = sample(BOX, np.random.default_rng(0), (5,))
    one = with_settings(SelectionConfig(candidates=1))
    expected, _ = MixturePredictor(one, "actor").predict(batch, deterministic=True)
    np.testing.assert_array_equal(one.predict(batch, deterministic=True)[0], expected)
    slow = one.decide(torch.from_numpy(batch)).action
    np.testing.assert_allclose(slow, expected, rtol=1e-6)


def test_without_any_finite_value_the_actors_mode_is_returned_and_said() -> None:
    made = tiny_checkpoint()
    tensors = {**made.tensors, "critic.biases.2": torch.full((3, 1, 1), 3e38)}
    policy = GEMPolicy(type(made)(made.config, tensors, {}), torch.device("cpu"))
    batch = observations(4)
    decision = policy.decide(batch)
    assert not decision.supported.any()
    assert (decision.scores == -torch.inf).all()
    expected = policy.scaler.invert(policy.mixture(batch).mode())
    assert torch.allclose(decision.action, expected, atol=1e-6)
    assert "the actor's mode was returned" in str(policy.explain(batch[0].numpy()))


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_decide_names_the_size_that_it_wants(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match=r"shape \(\*batch, 3\), got .*`predict`"):
        POLICY.decide(torch.zeros(shape))


def test_mixtures_name_the_size_that_they_want() -> None:
    with pytest.raises(SpaceError, match=r"`mixture` takes .*shape \(\*batch, 3\), got"):
        POLICY.mixture(torch.zeros(4))
    with pytest.raises(SpaceError, match=r"`behavior_mixture` takes .*got a ndarray"):
        inspect.unwrap(GEMPolicy.behavior_mixture)(POLICY, np.zeros(3))


def test_complex_numbers_are_refused() -> None:
    rows, actions = torch.zeros(3), torch.zeros(1, 2)
    for take in (GEMPolicy.decide, GEMPolicy.mixture):
        with pytest.raises(SpaceError, match="takes real numbers, got torch.complex64"):
            inspect.unwrap(take)(POLICY, rows.to(torch.complex64))
    with pytest.raises(SpaceError, match="`assess` takes real numbers, got torch.complex64"):
        inspect.unwrap(GEMPolicy.assess)(POLICY, rows, actions.to(torch.complex64))


@pytest.mark.parametrize("wrong", [np.zeros(3), [0.0, 0.0, 0.0], {"a": 1}, None])
def test_decide_and_assess_take_tensors(wrong: Any) -> None:
    # Unwrapped, for the tests' type checker refuses it before.
    with pytest.raises(SpaceError, match=r"`decide` takes a tensor .*`predict` takes what"):
        inspect.unwrap(GEMPolicy.decide)(POLICY, wrong)
    with pytest.raises(SpaceError, match="`assess` takes a tensor of flattened"):
        inspect.unwrap(GEMPolicy.assess)(POLICY, wrong, torch.zeros(1, 2))
    with pytest.raises(SpaceError, match="`assess` takes a tensor of actions"):
        inspect.unwrap(GEMPolicy.assess)(POLICY, torch.zeros(3), wrong)


def test_settings_of_numpys_numbers_are_pythons_own(tmp_path: Path) -> None:
    """In another process, without the tests' type checker, which refuses them before."""
    tiny_policy().save(tmp_path / "made")
    code = (
        "import sys, numpy as np, torch; from gem_policy import GEMPolicy\n"
        "chosen = {'candidates': np.int64(5), 'kappa': np.float32(0.5)}\n"
        "chosen['all_modes'] = np.bool_(True)\n"
        "policy = GEMPolicy.load(sys.argv[1], device='cpu', seed=np.int64(7), **chosen)\n"
        "kinds = [type(getattr(policy.selection, name)).__name__ for name in chosen]\n"
        "again = GEMPolicy.load(policy.save(sys.argv[2]), device='cpu', seed=7)\n"
        "assert again.selection == policy.selection\n"
        "x = np.zeros(3, np.float32)\n"
        "assert (policy.predict(x)[0] == again.predict(x)[0]).all()\n"
        "count = policy.decide(torch.zeros(3), count=np.int64(4)).scores.shape\n"
        "print(kinds, tuple(count))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "made"), str(tmp_path / "again")]
    told = subprocess.check_output(command, text=True, timeout=120)
    assert told.strip() == "['int', 'float', 'bool'] (4,)"


def test_settings_change_at_any_time_and_only_by_settings() -> None:
    policy = tiny_policy()
    one = observations()
    policy.selection = policy.selection.replace(candidates=5)
    assert policy.decide(one).scores.shape == (5,)
    policy.selection = policy.selection.replace(candidates=50)
    assert policy.decide(one).scores.shape == (50,)
    with pytest.raises(ConfigError, match=r"must be a SelectionConfig, got dict.*replace\("):
        # Unwrapped, for the tests' type checker refuses it before.
        inspect.unwrap(GEMPolicy.selection.fset)(policy, {"candidates": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`candidates` must be an integer >= 1 and <= .*, got 0"):
        policy.selection.replace(candidates=0)
    with pytest.raises(
        ConfigError, match=r"Unknown selection settings \['budget'\]; known .*kappa"
    ):
        policy.selection.replace(budget=3)


# -- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kappa", "support_weight", "candidates"])
def test_a_setting_that_is_written_as_an_attribute_is_refused(name: str) -> None:
    policy = tiny_policy()
    before = policy.selection
    with pytest.raises(ConfigError, match=rf"policy.selection.replace\({name}=4\)"):
        setattr(policy, name, 4)
    assert policy.selection == before and callable(policy.candidates)


def test_a_decision_is_by_the_settings_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SelectionConfig(candidates=16)
    other = one.replace(candidates=64, kappa=0.0, support_weight=0.0, gain_kappa=None)
    policy, rows = with_settings(one), observations(8)
    expected, honest = policy.decide(rows), module.propose

    def interrupted(*arguments: Any) -> Any:
        policy.selection = other  # as another thread may
        return honest(*arguments)

    monkeypatch.setattr(module, "propose", interrupted)
    found = policy.decide(rows)
    assert torch.equal(found.scores, expected.scores) and policy.selection == other
    policy.selection = one
    told = policy.explain(rows[0].numpy())
    assert told.selection == one and len(told.rows) == 16


def test_a_policy_can_be_given_to_a_process_that_is_started_afresh(tmp_path: Path) -> None:
    """On macOS, and from Python 3.14 on, no process is a copy of the one that starts it."""
    tiny_policy(seed=5).save(tmp_path / "model.safetensors")
    script = tmp_path / "spawn.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing as mp
            import numpy as np
            from gem_policy import GEMPolicy

            def work(policy, answers):
                answers.put(policy.predict(np.zeros(3, np.float32))[0])

            if __name__ == "__main__":
                policy = GEMPolicy.load({str(tmp_path / "model.safetensors")!r}, device="cpu")
                policy.predict(np.zeros(3, np.float32))  # the generator goes on from here
                context = mp.get_context("spawn")
                answers = context.Queue()
                process = context.Process(target=work, args=(policy, answers))
                process.start()
                process.join(100)
                assert process.exitcode == 0, process.exitcode
                drawn = policy.predict(np.zeros(3, np.float32))[0]
                assert (answers.get(timeout=10) == drawn).all()
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def test_a_policy_is_found_by_name_file_and_folder(shipped: Path) -> None:
    batch = sample(BOX, np.random.default_rng(0), (3,))
    folder = shipped / "maze-large"
    answers = [
        GEMPolicy.load(source, device="cpu").predict(batch, deterministic=True)[0]
        for source in ("maze-large", folder, str(folder), folder / WEIGHTS_FILE)
    ]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_settings_given_to_load_are_in_force_and_the_others_kept(shipped: Path) -> None:
    policy = GEMPolicy.load("maze-small", device="cpu", candidates=128, kappa=0.5, seed=3)
    assert policy.selection == SelectionConfig(candidates=128, kappa=0.5)
    with pytest.raises(ConfigError, match=r"Unknown selection settings \['lam'\]"):
        GEMPolicy.load("maze-small", device="cpu", lam=1.0)
    with pytest.raises(ConfigError, match="`kappa` must be a finite number >= 0, got -1"):
        GEMPolicy.load("maze-small", device="cpu", kappa=-1)


def test_a_policy_loaded_while_deciding_has_gradients_later(shipped: Path) -> None:
    with torch.inference_mode():
        policy = GEMPolicy.load("maze-small", device="cpu")
    x = torch.randn(2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(policy.mixture(x).mean.sum(), x)
    assert slope.abs().sum() > 0


def test_a_policy_says_in_one_line_what_it_is() -> None:
    text = repr(tiny_policy())
    assert text.startswith("GEMPolicy(test/tiny-v0, device=cpu, SelectionConfig(candidates=12,")
    assert "\n" not in text


def test_fresh_draws_need_no_gain_over_one_of_them() -> None:
    """Without the mode among them, candidate 0 is a draw like any other."""
    policy = with_settings(SelectionConfig(candidates=16, gain_kappa=50.0, all_modes=True))
    observations = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    kept = policy.decide(observations).index == 0
    drawn = policy.decide(observations, torch.Generator().manual_seed(1)).index == 0
    policy.selection = policy.selection.replace(gain_kappa=None)
    free = policy.decide(observations, torch.Generator().manual_seed(1)).index == 0
    assert kept.float().mean() > 0.5 > drawn.float().mean()
    assert torch.equal(drawn, free)


def test_a_gain_is_large_in_the_units_of_the_checkpoint(tmp_path: Path) -> None:
    """The same critics in other units, and the same decisions where the unit says so."""
    made = tiny_checkpoint(selection=SelectionConfig(candidates=16, gain_kappa=0.0, least_gain=1.0))
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    shares = []
    for unit in (0.0, 0.05, 1e6):
        config = replace(made.config, gain_unit=unit)
        policy = GEMPolicy(Checkpoint(config, made.tensors), torch.device("cpu"))
        again = GEMPolicy.load(policy.save(tmp_path / "saved"), device="cpu")
        assert again.config.gain_unit == unit
        index = policy.decide(rows).index
        assert torch.equal(index, again.decide(rows).index)
        shares.append(float((index == 0).float().mean()))
    assert shares[0] < shares[1] < shares[2] == 1


# -- explain -------------------------------------------------------------------------------------


@given(selections, seeds)
@settings(max_examples=20)
def test_an_explanation_lists_every_candidate_best_first(
    selection: SelectionConfig, seed: int
) -> None:
    policy = with_settings(selection)
    one = observations(seed=seed).numpy()
    told = policy.explain(one)
    assert [row.rank for row in told.rows] == list(range(1, selection.candidates + 1))
    assert sorted(row.candidate for row in told.rows) == list(range(selection.candidates))
    scores = [row.score for row in told.rows]
    assert scores == sorted(scores, reverse=True)
    decision = policy.decide(torch.from_numpy(one))
    assert told.chosen.candidate == int(decision.index)
    assert told.chosen.action == pytest.approx(decision.action.tolist())
    z = reference.standardize([row.log_beta for row in told.rows])
    assert [row.z for row in told.rows] == pytest.approx(z, abs=1e-3)
    for row in told.rows:
        assert row.lcb == pytest.approx(row.q_mean - selection.kappa * row.q_std, abs=1e-4)
        assert 0 <= row.support_percentile <= 100
    q = decision.candidates.q.double().tolist()
    gains = reference.paired_bound(q, selection.kappa)
    if selection.gain_kappa is not None:
        gains = reference.paired_bound(q, selection.gain_kappa)
        assert told.least_gain == selection.least_gain * GAIN_UNIT
        per_nat = selection.gain_per_nat * selection.support_weight * GAIN_UNIT
        assert told.gain_per_nat == per_nat
    assert [row.gain for row in told.rows] == pytest.approx(
        [gains[row.candidate] for row in told.rows], abs=1e-3
    )


def test_an_explanation_is_a_table_and_plain_data() -> None:
    policy = with_settings(SelectionConfig(candidates=4))
    told = policy.explain(np.zeros((1, 3), np.float32))
    lines = str(told).splitlines()
    assert lines[0].startswith("4 candidates, kappa=3, support_weight=1")
    asked = "least_gain=0.06 (here 0.015), gain_per_nat=0.01 (here 0.0025), "
    asked += "deciding_candidates=64"
    assert lines[0].endswith(f"gain_kappa=2.0, {asked}")
    assert len(lines) == 2 + 4
    assert len({len(line.split("[")[0]) for line in lines[2:]}) == 1, "columns do not line up"
    assert [d["rank"] for d in told.to_dicts()] == [1, 2, 3, 4]
    with pytest.raises(SpaceError, match="one observation, got a batch of 2"):
        policy.explain(np.zeros((2, 3), np.float32))


def test_dict_observations_are_explained() -> None:
    policy = tiny_policy(GOAL)
    one = row_of(sample(GOAL, np.random.default_rng(0), (1,)), 0)
    assert policy.explain(one).chosen.action == pytest.approx(
        policy.predict(one, deterministic=True)[0].tolist()
    )


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20))
def test_the_support_percentile_is_the_share_of_the_data_below(values: list[float]) -> None:
    points = POLICY.calibration.tolist()
    got = POLICY.support_percentile(torch.tensor(values)).tolist()
    expected = [100 * sum(p <= v for p in points) / len(points) for v in values]
    assert got == pytest.approx(expected, abs=1e-3)


def test_public_names_are_there_and_others_are_not() -> None:
    import gem_policy

    for name in gem_policy.__all__:
        assert getattr(gem_policy, name) is not None
        assert name in dir(gem_policy)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _: Any = gem_policy.nothing
