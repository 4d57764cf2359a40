"""The actor's phase of a finished run again, on its values and critics, with other settings.

    python benchmarks/actor_again.py RUN OUT [--components 1] [--weight-kappa 5]
                                     [--weight-temperature 1] [--weight-source data]
                                     [--weight-floor 0] [--episode-temperature none]

RUN is the folder of a finished `gem-policy train`, OUT the checkpoint to write. Everything that is
not given is the run's: data, split, critics, updates, seed. With one component it is the ablation
K = 1. The checkpoint says in its provenance that its actor was made so.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from actor_phase import CPU, FinishedRun

from gem_policy import checkpoint as files
from gem_policy.cli import number_or_none
from gem_policy.training.preparation import prepare
from gem_policy.training.provenance import versions


def main() -> None:
    """Train the actor and write a checkpoint that differs in nothing else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--components", type=int, default=1)
    parser.add_argument("--weight-kappa", type=float, help="default: the run's")
    parser.add_argument("--weight-temperature", type=float, help="default: the run's")
    parser.add_argument("--weight-source", help="default: the run's")
    parser.add_argument("--weight-floor", type=float, help="default: the run's")
    parser.add_argument("--episode-temperature", help="a number or none; default: the run's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = FinishedRun(options.run)
    config = run.config
    names = ("weight_kappa", "weight_temperature", "weight_source", "weight_floor")
    given = {name: getattr(options, name) for name in names}
    config = replace(config, **{name: x for name, x in given.items() if x is not None})
    if options.episode_temperature is not None:
        config = replace(config, episode_temperature=number_or_none(options.episode_temperature))
    replay = run.weighed(prepare(run.dataset, config, CPU).training, config)
    actor = run.train(replay, config, actor_components=options.components)
    made = run.with_actor(actor, actor_components=options.components)
    again = {"actor_again": {"versions": versions()}, "train": asdict(config)}
    files.save(replace(made, provenance={**made.provenance, **again}), options.out)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
