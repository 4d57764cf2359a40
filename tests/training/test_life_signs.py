from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mixtures
from tiny_runs import SHORT, TINY, random_dataset, run

from gem_policy.errors import GEMWarning, TrainingWarning
from gem_policy.mixture import GaussianMixture
from gem_policy.training import life_signs
from gem_policy.training.life_signs import (
    component_distance,
    warn_of_dead_components,
    warn_of_overlap,
)
from gem_policy.training.seeds import fit_seeds


@given(mixtures(batch=st.sampled_from([(1,), (5,)])))
def test_the_distance_is_the_mean_over_pairs_written_out(mixture: GaussianMixture) -> None:
    mean, std = mixture.mean.double().numpy(), mixture.log_std.double().exp().numpy()
    rows, components, size = mean.shape
    found = [
        np.sqrt(
            sum(
                (mean[b, k, a] - mean[b, m, a]) ** 2 / ((std[b, k, a] ** 2 + std[b, m, a] ** 2) / 2)
                for a in range(size)
            )
            / size
        )
        for b in range(rows)
        for k in range(components)
        for m in range(k)
    ]
    if components == 1:
        with pytest.raises(ValueError, match="no pair"):
            component_distance(mixture)
    else:
        wide = GaussianMixture(mixture.logits, mixture.mean.double(), mixture.log_std.double())
        assert float(component_distance(wide)) == pytest.approx(float(np.mean(found)), rel=1e-6)


def test_the_distance_knows_no_weights_and_counts_standard_deviations() -> None:
    mean = torch.tensor([[[0.0, 0.0], [0.2, 0.2]]])
    for logits in (torch.zeros(1, 2), torch.tensor([[0.0, -50.0]])):
        mixture = GaussianMixture(logits, mean, torch.full((1, 2, 2), 0.1).log())
        assert float(component_distance(mixture)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("phase", "advice"),
    [("behavior", "behavior_components"), ("actor", "weight_temperature.*responsibility_floor")],
)
def test_a_dead_component_is_named_with_what_to_do(phase: str, advice: str) -> None:
    usage = torch.tensor([0.6, 0.39, 0.01, 0.0])
    with pytest.warns(
        TrainingWarning, match=f"2 of the 4.*component 2: 0.01, comp.* 3: 0.*{advice}"
    ):
        warn_of_dead_components(phase, usage)
    assert issubclass(TrainingWarning, GEMWarning)


@pytest.mark.parametrize("usage", [[0.5, 0.5], [0.974, 0.026], [1.0]])
def test_living_components_are_no_news(usage: list[float]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_dead_components("actor", torch.tensor(usage))
    assert told == []


def test_means_that_fell_together_are_told_with_whose_they_are() -> None:
    told = "(?s)seed 3's actor model overlap.*0.5 standard deviations.*actor_updates.*_components"
    for distance in (0.5, float("nan")):
        with pytest.warns(TrainingWarning, match=told.replace("0.5", f"{distance:.2g}")):
            warn_of_overlap("actor", distance, "seed 3's ")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_of_overlap("behavior", 1.0)
    assert seen == []


@pytest.mark.parametrize("lost", ["DEAD", "OVERLAP"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_runs_tell_what_they_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, lost: str
) -> None:
    # No run is so even that each component has its equal share, nor so far apart.
    monkeypatch.setattr(life_signs, lost, 1.0 if lost == "DEAD" else 1e9)
    dataset, told = random_dataset(tmp_path, [9] * 5), {"DEAD": "unused", "OVERLAP": "overlap"}
    with pytest.warns(TrainingWarning) as seen:
        if seeds == 1:
            run(dataset, tmp_path / "run")
        else:
            fit_seeds(dataset, tmp_path / "run", SHORT, seeds=2, network=TINY)
    messages = [str(w.message) for w in seen if told[lost] in str(w.message)]
    owners = ["the "] if seeds == 1 else ["seed 0's ", "seed 1's "]
    expected = [f"{owner}{phase} model" for phase in ("behavior", "actor") for owner in owners]
    assert len(messages) == len(expected)
    for message, who in zip(messages, expected, strict=True):
        assert who in message
