"""The ablation K = 1: an actor with one component, trained on the critics of a finished run.

    python benchmarks/single_component.py RUN OUT

RUN is the folder of a finished `gem-policy train`. Everything but the actor's number of components
is taken from it: data, split, critics, weights of the transitions, updates, seed.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from gem_policy import checkpoint as files
from gem_policy.config import from_mapping
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import load
from gem_policy.training.learners import ActorLearner, CriticLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Sampler
from gem_policy.training.state import read_state
from gem_policy.training.trainer import PHASES, weigh


def main() -> None:
    """Train the actor and write a checkpoint that differs in nothing else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    finished = files.load(options.run)
    state = read_state(options.run)
    config = from_mapping(TrainConfig, finished.provenance["train"], "train")
    device = torch.device("cpu")
    prepared = prepare(load(finished.provenance["dataset_id"]), config, device)
    generator = torch.Generator().manual_seed(0)
    critic = CriticLearner(finished.config.network, config, generator, device)
    critic.restore(state.own("critic"), config.critic_updates)
    replay = weigh(prepared.training, critic, config)

    network = dataclasses.replace(finished.config.network, actor_components=1)
    number = list(PHASES).index("actor")
    generator = torch.Generator().manual_seed((config.seed << 8) ^ number)
    actor = ActorLearner(network, config, generator, device)
    sampler = Sampler(len(replay), config.batch_size, config.seed, number)
    while actor.step < actor.updates:
        metrics = actor.update(replay.batch(sampler(actor.step)))
        if actor.step % 1000 == 0:
            print(actor.step, f"log_prob {float(metrics['actor/log_prob']):.3f}", flush=True)

    tensors = {k: v for k, v in finished.tensors.items() if not k.startswith("actor.")}
    tensors |= {f"actor.{k}": v.detach() for k, v in actor.model.state_dict().items()}
    changed = dataclasses.replace(finished.config, network=network)
    files.save(files.Checkpoint(changed, tensors, finished.provenance), options.out)
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
