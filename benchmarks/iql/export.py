"""The transitions that a training run sees, as plain arrays for another library.

    python benchmarks/iql/export.py DATASET OUT.npz [--terminal-reward R] [--seed 0]

DATASET is a Minari id or folder. The arrays are those of `gem-policy train` with the same seed and
holdout: the same episodes, the same flattened observations (in the environment's units), actions
in the box [-1, 1], rewards as they are, and a return that ends where ours does. OUT belongs outside
of the repository.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.preparation import prepare, split


def arrays(data: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Step by step: observation, action, reward, next observation, end of the return, episode.

    ``terminated`` says that nothing follows to bootstrap from; `TrainConfig.terminal_reward`'s
    rule is applied. ``episode`` counts 0, 0, ..., 1, 1, ...: where it changes, or ends, without
    ``terminated``, the episode was cut for another reason.
    """
    steps = split(data, config.holdout, config.seed)[0].transitions
    replay = prepare(data, config, torch.device("cpu")).training
    batch = steps.all()
    return {
        "observations": batch.observations.numpy(),
        "actions": replay.actions.clamp(-1, 1).numpy(),  # rounding of the box's map
        "rewards": batch.rewards.numpy(),
        "next_observations": batch.next_observations.numpy(),
        "terminated": replay.continues.numpy() == 0,
        "episode": steps.episode.numpy(),
    }


def main() -> None:
    """Load, split, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--terminal-reward", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holdout", type=float, default=TrainConfig.holdout)
    options = parser.parse_args()
    config = TrainConfig(
        seed=options.seed, holdout=options.holdout, terminal_reward=options.terminal_reward
    )
    data = load(options.dataset)
    made = arrays(data, config)
    about = {
        "dataset": data.id,
        "split_seed": config.seed,
        "holdout": config.holdout,
        "terminal_reward": config.terminal_reward,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.out, about=json.dumps(about), **made)
    print(
        f"{options.out}: {len(made['rewards'])} steps, {made['episode'][-1] + 1} episodes, "
        f"{int(made['terminated'].sum())} ends"
    )


if __name__ == "__main__":
    main()
