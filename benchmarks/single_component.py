"""The ablation K = 1: an actor with one component, trained on the critics of a finished run.

    python benchmarks/single_component.py RUN OUT

RUN is the folder of a finished `gem-policy train`. Everything but the actor's number of components
is taken from it: data, split, critics, weights of the transitions, updates, seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from actor_phase import FinishedRun

from gem_policy import checkpoint as files


def main() -> None:
    """Train the actor and write a checkpoint that differs in nothing else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = FinishedRun(options.run)
    replay = run.weighed(run.prepared.training, run.config)
    actor = run.train(replay, run.config, actor_components=1)
    files.save(run.with_actor(actor, actor_components=1), options.out)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
