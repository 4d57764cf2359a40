"""A test of the tests: each deliberate mistake must make the property fail that is there for it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest


class Mutant(NamedTuple):
    """One mistake: in ``where`` (module:qualified name) ``old`` becomes ``new``."""

    name: str
    where: str
    old: str
    new: str
    killer: str


MUTANTS = [
    # -- lower bound
    Mutant("ddof flipped", "scoring:lower_bound", "correction=0", "correction=1",
           "test_scoring:test_lower_bound_does_not_change_when_every_member_is_there_twice"),
    Mutant("sign of kappa", "scoring:lower_bound", "mean - kappa", "mean + kappa",
           "test_scoring:test_lower_bound_is_at_most_the_mean"),
    Mutant("kappa forgotten", "scoring:lower_bound", "kappa * q.std", "q.std",
           "test_scoring:test_lower_bound_is_the_formula"),
    Mutant("variance for std", "scoring:lower_bound", "q.std", "q.var",
           "test_scoring:test_lower_bound_moves_and_scales_with_the_values"),
    Mutant("minimum for mean", "scoring:lower_bound", "q.mean(0)", "q.amin(0)",
           "test_scoring:test_lower_bound_without_pessimism_or_ensemble_is_the_mean"),
    Mutant("first member only", "scoring:lower_bound", "q.mean(0)", "q[0]",
           "test_scoring:test_lower_bound_does_not_know_the_order_of_the_members"),
    Mutant("gain over nothing", "scoring:gains", "return q - q.gather", "return q + 0 * q.gather",
           "test_scoring:test_paired_bound_forgets_what_a_member_thinks_of_the_whole_state"),
    Mutant("broken reference", "scoring:first_finite",
           "torch.isfinite(q).all(0)", "torch.ones_like(q, dtype=torch.bool).all(0)",
           "test_scoring:test_a_broken_first_candidate_spoils_no_other"),
    Mutant("no gain needed", "scoring:Improving.__call__", "self.kappa) > 0",
           "self.kappa) > -1e9",
           "test_scoring:test_a_budget_that_brings_no_sure_gain_changes_nothing"),
    Mutant("pessimism of the gain forgotten", "scoring:Improving.__call__",
           "lower_bound(gain, self.kappa)", "lower_bound(gain, 0.0)",
           "test_scoring:test_a_budget_that_brings_no_sure_gain_changes_nothing"),
    Mutant("any gain will do", "scoring:Improving.__call__",
           "> self.least +", "> 0 * self.least +",
           "test_scoring:test_a_gain_must_be_large_in_units_of_the_policy_too"),
    Mutant("unit of the gain forgotten", "scoring:asked_gains",
           "config.least_gain * gain_unit", "config.least_gain",
           "test_scoring:test_a_gain_must_be_large_in_units_of_the_policy_too"),
    Mutant("lambda forgotten", "scoring:asked_gains",
           "config.gain_per_nat * config.support_weight", "config.gain_per_nat",
           "test_scoring:test_a_gain_must_pay_for_the_support_that_it_gives_up"),
    Mutant("support is given up for nothing", "scoring:Improving._price",
           "lost * self.per_nat", "lost * 0.0",
           "test_scoring:test_a_gain_must_pay_for_the_support_that_it_gives_up"),
    Mutant("support that is won is paid for", "scoring:Improving._price",
           ".clamp(min=0)", ".abs()",
           "test_scoring:test_a_gain_must_pay_for_the_support_that_it_gives_up"),
    Mutant("all decide", "scoring:Improving.__call__", "[..., : self.deciding]", "",
           "test_scoring:test_the_first_candidates_decide_whether_and_all_of_them_which"),
    Mutant("who may not decides", "scoring:Improving.__call__",
           "(allowed & fine & (scores > own))", "(fine & (scores > own))",
           "test_scoring:test_one_good_candidate_among_many_is_not_enough"),
    Mutant("who is no better decides", "scoring:Improving.__call__",
           "(allowed & fine & (scores > own))", "(allowed & fine)",
           "test_scoring:test_the_first_candidates_decide_whether_and_all_of_them_which"),
    Mutant("no mode to beat", "scoring:Improving.__call__",
           " | ~fine.gather(-1, first)", "",
           "test_scoring:test_one_good_candidate_among_many_is_not_enough"),
    Mutant("what is broken decides", "scoring:Improving.__call__",
           "allowed & fine &", "allowed &",
           "test_scoring:test_one_good_candidate_among_many_is_not_enough"),
    Mutant("a tie decides", "scoring:Improving.__call__", "(scores > own)", "(scores >= own)",
           "test_scoring:test_one_good_candidate_among_many_is_not_enough"),
    Mutant("too few to be decided", "scoring:Improving.__call__",
           "self.deciding < scores.shape[-1]", "self.deciding <= scores.shape[-1]",
           "test_scoring:test_the_first_candidates_decide_whether_and_all_of_them_which"),
    # -- support
    Mutant("statistics over the batch", "scoring:standardize",
           "wide, wide.shape[-1:], None", "wide, wide.shape, None",
           "test_scoring:test_other_states_of_the_batch_have_no_influence"),
    Mutant("sample std", "scoring:standardize", "z, 0.0).to(x.dtype)",
           "z * (1 - 1 / max(x.shape[-1], 2)) ** 0.5, 0.0).to(x.dtype)",
           "test_scoring:test_standardized_numbers_have_mean_zero_and_std_one_or_are_zero"),
    Mutant("no tie floor", "scoring:standardize", "(mean * inverse).abs() < 1 / TIE",
           "(mean * inverse).abs() < torch.inf",
           "test_scoring:test_rounding_is_no_difference"),
    Mutant("absolute tie floor", "scoring:standardize", "(mean * inverse).abs() < 1 / TIE",
           "inverse < 1 / TIE",
           "test_scoring:test_the_magnitude_of_the_numbers_does_not_matter"),
    Mutant("mean not taken off", "scoring:standardize", "z, 0.0).to(x.dtype)",
           "z + mean * inverse, 0.0).to(x.dtype)",
           "test_scoring:test_support_does_not_change_with_the_scale_or_offset_of_a_density"),
    Mutant("variance for std of support", "scoring:standardize", "z, 0.0).to(x.dtype)",
           "z * inverse, 0.0).to(x.dtype)",
           "test_scoring:test_standardize_is_the_formula"),
    Mutant("non-finite counts", "scoring:standardize", "torch.where(finite, wide, 0.0).sum",
           "torch.where(finite, wide, 1.0).sum",
           "test_scoring:test_what_is_not_finite_does_not_count_and_stays"),
    Mutant("sign of lambda", "scoring:BehaviorNormalized.__call__", "+ self.weight",
           "- self.weight", "test_scoring:test_an_endless_support_weight_takes_the_most_supported"),
    Mutant("density not standardized", "scoring:BehaviorNormalized.__call__",
           "standardize(candidates.log_behavior)", "candidates.log_behavior",
           "test_scoring:test_the_rule_of_any_settings_is_the_formula"),
    Mutant("lambda always", "scoring:rule_of",
           "BehaviorNormalized(base, config.support_weight) if config.support_weight else base",
           "BehaviorNormalized(base, config.support_weight + 0.1)",
           "test_scoring:test_without_support_weight_the_density_has_no_say"),
    Mutant("value scale ignored", "scoring:rule_of", '== "standardized"', '== "other"',
           "test_scoring:test_the_rule_of_any_settings_is_the_formula"),
    # -- selection
    Mutant("worst is best", "selection:select", "scores.argmax(-1)", "scores.argmin(-1)",
           "test_selection:test_the_first_best_is_chosen"),
    Mutant("last of equals", "selection:select", "scores.argmax(-1)",
           "scores.shape[-1] - 1 - scores.flip(-1).argmax(-1)",
           "test_selection:test_the_first_best_is_chosen"),
    Mutant("always the mode", "selection:select", "scores.argmax(-1)", "scores.argmax(-1) * 0",
           "test_selection:test_the_choice_follows_a_permutation_of_the_candidates"),
    Mutant("argmax over the wrong axis", "selection:select", "scores.argmax(-1)",
           "scores.argmax(0)", "test_selection:test_the_first_best_is_chosen"),
    Mutant("values not masked", "selection:usable", "candidates.q.sum(0) + ", "",
           "test_selection:test_whatever_the_rule_looks_at_values_and_densities_must_be_finite"),
    Mutant("densities not masked", "selection:usable", "+ candidates.log_behavior ", "",
           "test_selection:test_whatever_the_rule_looks_at_values_and_densities_must_be_finite"),
    Mutant("only the first member masked", "selection:usable", "q.sum(0)", "q[0]",
           "test_selection:test_whatever_the_rule_looks_at_values_and_densities_must_be_finite"),
    Mutant("everything masked", "selection:usable", "torch.isfinite(candidates.q",
           "(scores < 0) & torch.isfinite(candidates.q",
           "test_selection:test_whatever_is_finite_and_not_huge_can_be_chosen"),
    Mutant("inverse temperature", "selection:select", "/ temperature", "* temperature",
           "test_selection:test_draws_follow_the_softmax_of_the_scores"),
    # -- candidates
    Mutant("another sequence for every budget", "candidates:_kept_noise_table",
           "seed=0", "seed=count",
           "test_candidates:test_a_larger_budget_only_adds_candidates"),
    Mutant("lightest first", "candidates:propose", "mixture.order()[..., :means]",
           "mixture.order().flip(-1)[..., :means]",
           "test_candidates:test_the_means_come_first_by_falling_weight"),
    Mutant("not clipped", "candidates:propose", ".clamp_(-1, 1)", "",
           "test_candidates:test_every_candidate_is_in_the_box_and_names_a_living_component"),
    Mutant("scale forgotten", "candidates:propose", "value=scale", "value=1.0",
           "test_candidates:test_a_scale_of_zero_leaves_the_means"),
    Mutant("weights ignored", "candidates:_components", "torch.softmax(mixture.logits, -1)",
           "torch.softmax(mixture.logits * 0, -1)",
           "test_candidates:test_every_candidate_is_in_the_box_and_names_a_living_component"),
    # -- mixture
    Mutant("no normalization by the std", "mixture:GaussianMixture.component_log_prob",
           "self.log_weights - self.log_std.sum(-1)", "self.log_weights",
           "test_mixture:test_the_density_integrates_to_one"),
    Mutant("two pi once for all dimensions", "mixture:GaussianMixture.component_log_prob",
           "HALF_LOG_TWO_PI * actions.shape[-1]", "HALF_LOG_TWO_PI",
           "test_mixture:test_the_density_integrates_to_one"),
    Mutant("half forgotten", "mixture:GaussianMixture.component_log_prob", "alpha=0.5",
           "alpha=1.0", "test_mixture:test_log_prob_is_the_formula"),
    Mutant("densities that underflow", "mixture:GaussianMixture.log_prob",
           "torch.logsumexp(self.component_log_prob(actions), dim=-1)",
           "self.component_log_prob(actions).exp().sum(-1).log()",
           "test_mixture:test_log_prob_is_finite_on_the_closed_box"),
    Mutant("best component only", "mixture:GaussianMixture.log_prob",
           "torch.logsumexp(self.component_log_prob(actions), dim=-1)",
           "self.component_log_prob(actions).amax(-1)",
           "test_mixture:test_log_prob_is_the_formula"),
    Mutant("weights not normalized", "mixture:GaussianMixture.log_weights",
           "torch.log_softmax(self.logits, dim=-1)", "self.logits",
           "test_mixture:test_only_differences_of_the_logits_matter"),
    Mutant("variance for std of samples", "mixture:GaussianMixture.sample", "std * noise",
           "std.square() * noise", "test_mixture:test_samples_follow_the_density"),
    Mutant("one draw for all dimensions", "mixture:GaussianMixture.sample", "std * noise",
           "std * noise[..., :1]",
           "test_mixture:test_samples_of_each_dimension_are_independent_within_a_component"),
    Mutant("mode of the lightest", "mixture:GaussianMixture.heaviest", "argmax", "argmin",
           "test_mixture:test_the_mode_is_the_mean_of_the_heaviest_component"),
    # -- losses
    Mutant("expectile mirrored", "training.losses:expectile_loss", "1 - expectile, expectile",
           "expectile, 1 - expectile",
           "test_losses:test_the_value_that_minimizes_it_is_the_expectile"),
    Mutant("terminations ignored", "training.losses:critic_loss", "discount * continues",
           "discount", "test_losses:test_nothing_after_a_termination_counts"),
    Mutant("one target for all members", "training.losses:critic_loss", "continues * next_value",
           "continues * next_value.mean(0)",
           "test_losses:test_a_members_gradient_is_what_it_would_be_alone"),
    Mutant("mean over members", "training.losses:critic_loss", ".sum() / q.shape[-1]", ".mean()",
           "test_losses:test_a_members_gradient_is_what_it_would_be_alone"),
    Mutant("no clip of the weights", "training.losses:advantage_weights",
           ".clamp(max=float(ceiling))", "", "test_losses:test_weights_are_clipped_exponentials"),
    Mutant("weights of the mixture drift", "training.losses:_GuidedEM.forward",
           "log_weights.exp() * share.unsqueeze(-1) - pull", "-pull",
           "test_losses:test_with_unit_weights_and_no_floor_the_gradient_is_that_of_the_likelihood"),
    Mutant("hard responsibilities", "training.losses:_responsibilities",
           "torch.softmax(joint, dim=-1)", "(joint == joint.amax(-1, keepdim=True)).to(joint)",
           "test_losses:test_guided_em_is_the_formula"),
    Mutant("weights forgotten", "training.losses:_GuidedEM.forward", "share = weights /",
           "share = torch.ones_like(weights) /",
           "test_losses:test_a_weight_of_zero_is_an_absent_transition"),
    Mutant("no floor", "training.losses:_responsibilities", "clamp(min=floor)",
           "clamp(min=0.0)", "test_losses:test_the_floor_keeps_a_forgotten_component_alive"),
    Mutant("returns across episodes", "training.replay:look_ahead",
           "(episode[here] == episode[ahead:]) & ", "",
           "test_replay:test_returns_ahead_are_the_sum_written_out"),
    Mutant("worse episodes weigh more", "training.episodes:episode_weights",
           "advantage_weights(z / unit", "advantage_weights(-z / unit",
           "test_episodes:test_an_actor_tells_the_better_agent_where_both_pass"),
    Mutant("an episode expects itself", "training.episodes:fit_baseline", "/ (1 - leverage)", "",
           "test_episodes:test_the_baseline_is_ridge_regression_at_the_best_penalty"),
    Mutant("starts forgotten", "training.episodes:episode_weights",
           "returns[1] - baseline(starts[1])", "returns[1] - returns[0].mean()",
           "test_episodes:test_where_an_episode_starts_is_not_held_against_it"),
    Mutant("cut episodes count", "training.episodes:_whole", "torch.isin(part.lengths, limits)",
           "(part.lengths > 0)",
           "test_episodes:test_an_episode_that_was_cut_short_is_neither_good_nor_bad"),
    Mutant("raw returns weigh", "training.episodes:episode_weights", "part.returns * factor",
           "part.returns",
           "test_episodes:test_returns_are_those_of_the_rewards_that_are_trained_on"),
    Mutant("few episodes weigh as many", "training.episodes:episode_weights",
           ">= least", ">= 0",
           "test_episodes:test_so_many_effective_transitions_are_left"),
    # -- a policy and what wraps an environment
    Mutant("a batch at once", "predictor:Predictor._answer", "rows.shape[0] > 1",
           "rows.shape[0] < 0",
           "test_predictor:test_deterministic_answers_do_not_depend_on_the_batch"),
    Mutant("settings lost by saving", "policy:GEMPolicy.to_checkpoint", "self.selection",
           "self.config.selection", "test_wrapped_machine:test_any_order_of_events"),
    Mutant("the monitor acts", "wrappers.support_monitor:SupportMonitor.step",
           "self.env.step(action)", 'self.env.step(record["choice"]["action"])',
           "test_support_monitor:test_rollout_is_the_bare_one"),
    Mutant("the shield stops what is supported", "wrappers.support_shield:Shield.guard",
           "percentile >= self.percentile", "percentile <= self.percentile",
           "test_wrapped_machine:test_any_order_of_events"),
    Mutant("counts go on after a reset", "wrappers.support_shield:Shield.begin",
           "self._episode[:, where] = 0", "pass",
           "test_wrapped_machine:test_any_order_of_events"),
    # -- units and files
    Mutant("bound outside of the box", "normalize:ActionScaler.invert",
           "torch.clamp(scaled, self.low, self.high)",
           "scaled * 1.001",
           "test_predictor:test_the_action_lies_in_the_space_whatever_the_settings"),
    Mutant("NaN let through", "checkpoint:check_tensors",
           "not bool(torch.isfinite(tensor).all())", "False",
           "test_checkpoint:test_no_tensor_can_be_absent_misshapen_or_broken"),
    Mutant("shapes let through", "checkpoint:check_tensors",
           "tuple(tensor.shape) != expected[name]", "False",
           "test_checkpoint:test_no_tensor_can_be_absent_misshapen_or_broken"),
    Mutant("keys in another order", "spaces:leaves", "space.spaces.items()",
           "sorted(space.spaces.items(), reverse=True)",
           "test_spaces:test_rows_are_gymnasiums_flattening"),
]  # fmt: skip


def test_module(name: str) -> ModuleType:
    """A module of tests, once for all mutants."""
    if name not in sys.modules:
        here = Path(__file__).parent
        path = next(here.rglob(f"{name}.py"))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


test_module.__test__ = False  # type: ignore[attr-defined]


def apply(mutant: Mutant, patch: pytest.MonkeyPatch) -> None:
    """Put the mistaken function wherever the right one is known."""
    module_name, _, qualified = mutant.where.partition(":")
    module = importlib.import_module(f"gem_policy.{module_name}")
    owner_name, _, name = qualified.rpartition(".")
    owner: Any = getattr(module, owner_name) if owner_name else module
    original = inspect.getattr_static(owner, name)
    function = original.fget if isinstance(original, property) else original
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    assert source.count(mutant.old) >= 1, f"{mutant.where} no longer says {mutant.old!r}"
    namespace = dict(vars(module))
    flags = "from __future__ import annotations\n"
    exec(flags + source.replace(mutant.old, mutant.new), namespace)
    # The rest of the module, as seen by the mistaken function, is the module itself.
    made = namespace[name]
    if owner_name:
        patch.setattr(owner, name, made)
        return
    for holder in list(sys.modules.values()):
        known = getattr(holder, "__name__", "")
        if (
            known.startswith(("gem_policy", "test_", "fakes"))
            and vars(holder).get(name) is original
        ):
            patch.setattr(holder, name, made)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_each_mistake_is_found_by_its_property(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = mutant.killer.partition(":")
    killer = getattr(test_module(module), name)
    marks = [m for m in getattr(killer, "pytestmark", []) if m.name == "parametrize"]
    apply(mutant, monkeypatch)
    with pytest.raises(BaseException) as caught:
        for arguments in calls(marks):
            killer(**arguments)
    kinds = {type(e) for e in leaves(caught.value)}
    # A wrong answer, not only a mutant that could not run; `Failed` is pytest's "did not raise".
    assert kinds & {AssertionError, pytest.fail.Exception}, caught.value


def calls(marks: list[pytest.Mark]) -> list[dict[str, Any]]:
    """Every combination of a test's parameters."""
    found: list[dict[str, Any]] = [{}]
    for mark in marks:
        name, values = mark.args[:2]
        found = [{**known, name: value} for known in found for value in values]
    return found


def test_mutants_apply_to_what_the_package_says_today(monkeypatch: pytest.MonkeyPatch) -> None:
    for mutant in MUTANTS:
        with monkeypatch.context() as patch:
            apply(mutant, patch)
        module, _, name = mutant.killer.partition(":")
        assert hasattr(test_module(module), name), mutant.killer
