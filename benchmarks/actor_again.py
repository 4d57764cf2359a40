"""The actor's phase of a finished run again, on its values and critics, with other settings.

    python benchmarks/actor_again.py RUN OUT [--components 1] [--weight-kappa 5]
                                     [--weight-temperature 1] [--weight-source data]
                                     [--weight-floor 0] [--episode-temperature null]

RUN is the folder of a finished `gem-policy train`, OUT the checkpoint to write. Everything that is
not given is the run's: data, split, critics, updates, seed. With one component it is the ablation
K = 1. The checkpoint says in its provenance that its actor was made so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from actor_phase import FinishedRun

from gem_policy import checkpoint as files
from gem_policy.training.export import episodes_of
from gem_policy.training.provenance import versions


def main() -> None:
    """Train the actor and write a checkpoint that differs in nothing else."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--components", type=int, default=1)
    parser.add_argument("--weight-kappa", type=float, help="default: the run's")
    parser.add_argument("--weight-temperature", type=float, help="default: the run's")
    parser.add_argument("--weight-source", help="default: the run's")
    parser.add_argument("--weight-floor", type=float, help="default: the run's")
    parser.add_argument(
        "--episode-temperature", type=json.loads, help="a number or null; default: the run's"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {k: v for k, v in vars(options).items() if k not in ("run", "out", "components")}
    run = FinishedRun(options.run, **given)
    replay = run.weighed(run.prepared.training, run.config)
    actor = run.train(replay, run.config, actor_components=options.components)
    made = run.with_actor(actor, actor_components=options.components)
    again = {"actor_again": {"versions": versions()}, "train": asdict(run.config)} | episodes_of(
        run.prepared
    )
    files.save(replace(made, provenance={**made.provenance, **again}), options.out)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
