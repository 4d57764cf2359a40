"""The choices behind guided EM, measured one at a time on the bandits with a known answer.

    python benchmarks/em_choices.py RUNS [--json FILE]

RUNS is the folder that `benchmarks/bandit.py --runs` filled; data, behavior model, values and
critics are those of its runs in 2 and 8 dimensions, and only the actor is trained again, smaller
and shorter. Every variant differs from the default in one choice. Actors of one shape are trained
side by side as one stacked network: Adam works element by element, so each is what it would be
alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actor_phase import NUMBER, FinishedRun
from bandit import SEEDS, judged, kept, make_dataset
from bandits import PROBLEMS, Bandit
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from gem_policy import GEMPolicy
from gem_policy.config import SelectionConfig
from gem_policy.evaluate import machine
from gem_policy.networks import MixturePolicy, build_actor
from gem_policy.scoring import lower_bound, rule_of
from gem_policy.selection import select
from gem_policy.training.advantages import judge, weights_of
from gem_policy.training.losses import guided_em_loss
from gem_policy.training.replay import Sampler

DIMENSIONS = (2, 8)
HIDDEN = (32, 32)
UPDATES, BATCH, RATE = 600, 128, 5e-3
CONTEXTS = 200
BUDGETS = (1, 64)
WEIGHTS = (0.5, 1.0)  # lambda


@dataclass(frozen=True)
class Variant:
    """One choice made otherwise.

    Attributes:
        choice: What is varied.
        value: To what.
        train: Changes to `TrainConfig`.
        network: Changes to `NetworkConfig`.
        spread: Whether the means' biases start spread out.
        entropy: Weight of the mixture weights' entropy in the objective.
        candidates: Whether as many actions drawn from the behavior model, weighed by the critics,
            join the data.
    """

    choice: str
    value: str
    train: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    spread: bool = True
    entropy: float = 0.0
    candidates: bool = False


def varied(name: str, values: tuple[float, ...], where: str = "train") -> list[Variant]:
    """A setting of the package at several values other than its default."""
    return [Variant(name, f"{v:g}", **{where: {name: v}}) for v in values]  # type: ignore[arg-type]


VARIANTS = [
    Variant("default", ""),
    Variant("weight_source", "critics", {"weight_source": "critics"}),
    *varied("weight_kappa", (0.0, 1.0)),
    *varied("weight_temperature", (0.1, 0.25, 1.0, 2.0)),
    *varied("weight_floor", (0.05, 0.2, 1.0)),
    *varied("weight_max", (5.0, 100.0)),
    *varied("responsibility_floor", (0.01, 0.05)),
    Variant("initial spread", "none", spread=False),
    *varied("min_std", (0.01, 0.02, 0.1), "network"),
    *[Variant("entropy bonus", f"{c:g}", entropy=c) for c in (0.01, 0.1)],
    Variant("E-step", "data and scored candidates", candidates=True),
    *varied("actor_components", (1, 2, 3, 8, 16), "network"),
]


class Problem:
    """A run of `benchmarks/bandit.py`, and what the actors of all variants are trained on."""

    def __init__(self, bandit: Bandit, run: FinishedRun) -> None:
        self.bandit, self.run = bandit, run
        self.seed = run.config.seed
        replay = run.prepared.training
        self.data = (replay.rows[replay.index], replay.actions)
        self.advantages = judge(replay, run.value, run.config).advantages.T
        generator = torch.Generator().manual_seed(self.seed)
        behavior = GEMPolicy(run.checkpoint, torch.device("cpu")).behavior
        with torch.no_grad():
            drawn = behavior(self.data[0]).sample(1, generator).squeeze(-2).clamp(-1, 1)
            self.drawn = drawn
            self.q = self._values(self.data[0], self.data[1])
            self.q_drawn = self._values(self.data[0], drawn)

    def _values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.run.critic.critics(observations, actions.unsqueeze(-2)).squeeze(-1)

    def table(self, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
        """Observations, actions and weights that a variant's actor is trained on."""
        config = dataclasses.replace(self.run.config, **variant.train)
        own = self.advantages if config.weight_source == "data" else self.q
        bounds = [lower_bound(own, config.weight_kappa)]
        observations, actions = self.data
        if variant.candidates:
            bounds.append(lower_bound(self.q_drawn, config.weight_kappa))
            observations, actions = observations.repeat(2, 1), torch.cat((actions, self.drawn))
        return observations, actions, torch.cat(weights_of(bounds, config))


def started(problem: Problem, variant: Variant) -> MixturePolicy:
    """A fresh actor of a variant."""
    sizes = dataclasses.replace(problem.run.network, actor_hidden=HIDDEN, **variant.network)
    actor = build_actor(sizes, torch.Generator().manual_seed((problem.seed << 8) ^ NUMBER))
    if not variant.spread:
        k, size = actor.components, actor.action_size
        with torch.no_grad():  # the range of every other bias
            actor.biases[-1][k : k * (1 + size)] /= math.sqrt(HIDDEN[-1])
    return actor


def train(jobs: list[tuple[Problem, Variant]], floor: float) -> list[MixturePolicy]:
    """The actors of several jobs of one shape, trained side by side."""
    actors = [started(problem, variant) for problem, variant in jobs]
    tables = [problem.table(variant) for problem, variant in jobs]
    samplers = [
        Sampler(len(t[2]), BATCH, p.seed, NUMBER) for (p, _), t in zip(jobs, tables, strict=True)
    ]
    entropy = torch.tensor([variant.entropy for _, variant in jobs])
    parameters = {k: v.detach().requires_grad_() for k, v in stack_module_state(actors)[0].items()}  # type: ignore[arg-type]
    shape = actors[0]

    def loss(p: Any, rows: Tensor, actions: Tensor, weights: Tensor, bonus: Tensor) -> Tensor:
        mixture = functional_call(shape, p, (rows,))
        share = mixture.log_weights
        spread = -(weights * (share.exp() * share).sum(-1)).mean()
        return guided_em_loss(mixture, actions, weights, floor).loss - bonus * spread

    every = vmap(loss)
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    for step in range(UPDATES):
        chosen = [sampler(step) for sampler in samplers]
        rows, actions, weights = (
            torch.stack([t[i][c] for t, c in zip(tables, chosen, strict=True)]) for i in range(3)
        )
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / UPDATES))
        optimizer.zero_grad()
        every(parameters, rows, actions, weights, entropy).sum().backward()
        optimizer.step()
    for i, actor in enumerate(actors):
        actor.load_state_dict({k: v[i].detach() for k, v in parameters.items()})
    return actors


@torch.no_grad()
def measure(problem: Problem, variant: Variant, actor: MixturePolicy) -> dict[str, float]:
    """One variant's columns for one run."""
    changes = {"actor_hidden": HIDDEN, **variant.network}
    policy = GEMPolicy(problem.run.with_actor(actor, **changes), torch.device("cpu"))
    policy.selection = policy.selection.replace(all_modes=True)
    contexts = problem.bandit.contexts(CONTEXTS, np.random.default_rng((7, problem.seed)))
    normalized = policy.normalizer.apply(torch.from_numpy(contexts))
    found: dict[str, float] = {}
    for count in BUDGETS:
        candidates = policy.candidates(normalized, count)
        for weight in WEIGHTS if count > 1 else WEIGHTS[:1]:
            chosen_by = SelectionConfig(
                support_weight=weight, bound="lower", kappa=1.0, gain_kappa=None
            )
            best = select(rule_of(chosen_by, 0.0)(candidates))
            chosen = candidates.actions[torch.arange(CONTEXTS), best]
            actions = policy.scaler.invert(chosen).numpy()
            name = f"N={count}" + (f" lambda={weight:g}" if count > 1 else "")
            judgement = judged(problem.bandit, contexts, actions)
            found |= {f"{key} {name}": value for key, value in judgement.items()}
    mixture = actor(normalized)
    if actor.components > 1:
        pairs = torch.triu_indices(actor.components, actor.components, 1)
        gap = mixture.mean[:, pairs[0]] - mixture.mean[:, pairs[1]]
        found["distance of means"] = float(gap.norm(dim=-1).mean())
    replay = problem.run.prepared.held_out
    weights = problem.run.weighed(replay, problem.run.config).weights  # the default's, for all
    held_out = actor(replay.rows[replay.index])
    log_prob = held_out.log_prob(replay.actions.unsqueeze(-2)).squeeze(-1)
    found["weighted log-prob"] = float((weights * log_prob).sum() / weights.sum())
    usage = guided_em_loss(held_out, replay.actions, weights).usage
    found["effective components"] = float((-(usage * usage.clamp(min=1e-12).log()).sum()).exp())
    place = problem.bandit.places
    means = [policy.scaler.invert(m).numpy() for m in mixture.mean.unbind(1)]
    at_best = np.stack([place(contexts, m) == 2 for m in means], 1)
    found["weight at the best mode"] = float(
        (mixture.log_weights.exp().numpy() * at_best).sum(1).mean()
    )
    return found


def groups() -> Iterator[tuple[float, list[Variant]]]:
    """Variants that can be stacked: same shape, same constants; with their floor."""
    found: dict[Any, list[Variant]] = {}
    for variant in VARIANTS:
        floor = variant.train.get("responsibility_floor", 0.0)
        found.setdefault((floor, *sorted(variant.network.items())), []).append(variant)
    for (floor, *_), members in found.items():
        yield floor, members


def main() -> None:
    """Train all variants, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS)
    parser.add_argument("--json", type=Path, help="keeps what it has of other dimensions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "machine": machine(),
        "actor": {"hidden": HIDDEN, "updates": UPDATES, "batch_size": BATCH, "policy_lr": RATE},
        "contexts": CONTEXTS,
        "seeds": SEEDS,
        "dimensions": kept(options.json),
    }
    for dimension in options.dimensions:
        bandit = PROBLEMS[dimension]
        dataset = make_dataset(bandit, options.runs)
        problems = [
            Problem(bandit, FinishedRun(options.runs / f"{dimension}d-{seed}", dataset))
            for seed in SEEDS
        ]
        measured: dict[tuple[str, str], Any] = {}
        for floor, variants in groups():
            jobs = [(problem, variant) for variant in variants for problem in problems]
            for (problem, variant), actor in zip(jobs, train(jobs, floor), strict=True):
                row = measured.setdefault((variant.choice, variant.value), [])
                row.append(measure(problem, variant, actor))
        rows = []
        for variant in VARIANTS:
            trainings = measured[variant.choice, variant.value]
            mean = {k: float(np.mean([t[k] for t in trainings])) for k in trainings[0]}
            rows.append(
                {
                    "choice": variant.choice,
                    "value": variant.value,
                    "mean": mean,
                    "trainings": trainings,
                }
            )
            told = "  ".join(f"{k} {v:.3f}" for k, v in mean.items())
            print(f"{dimension}d  {variant.choice} {variant.value}: {told}", flush=True)
        document["dimensions"][str(dimension)] = rows
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
