"""Record a deployed policy with Minari, look at what it did, and train on the recording.

    pip install 'gem-policy[all]' 'minari[create]'
    python examples/record_and_train.py pointmaze-umaze --episodes 50 --out runs/again

The recording is an ordinary Minari dataset; the wrappers' ``info["gem"]`` is in its infos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import minari
import numpy as np

from gem_policy import GEMPolicy, make_env
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import load
from gem_policy.training.trainer import fit
from gem_policy.wrappers import SupportMonitor


def record(policy: GEMPolicy, dataset_id: str, episodes: int, seed: int) -> None:
    """Play episodes with fresh candidates, so that the recording has some variety."""
    env = SupportMonitor(make_env(policy), policy)
    collector = minari.DataCollector(env, record_infos=True)
    policy.set_random_seed(seed)
    for number in range(episodes):
        observation, _ = collector.reset(seed=seed + number)
        over = False
        while not over:
            action, _ = policy.predict(observation, deterministic=False)
            observation, _, terminated, truncated, _ = collector.step(action)
            over = terminated or truncated
    collector.create_dataset(dataset_id, num_episodes_average_score=1)
    collector.close()


def support(dataset_id: str) -> np.ndarray:
    """The support percentile of every recorded action; resets have none."""
    episodes = minari.load_dataset(dataset_id).iterate_episodes()
    found = np.concatenate([episode.infos["gem"]["percentile"] for episode in episodes])
    return found[~np.isnan(found)]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Record, report, train; the path of the new checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("--dataset", default="recorded/deployed-v0")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/again"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    policy = GEMPolicy.load(options.policy)
    record(policy, options.dataset, options.episodes, options.seed)
    percentile = support(options.dataset)
    print(
        f"{len(percentile)} actions recorded; {np.mean(percentile < 1):.1%} of them are less "
        "likely than 99 % of the training data's own"
    )
    updates = options.updates
    settings = TrainConfig(
        seed=options.seed,
        behavior_updates=updates,
        value_updates=updates,
        critic_updates=updates,
        actor_updates=updates,
        holdout=0.1,
    )
    path = fit(load(options.dataset), options.out, settings)
    print(f"{GEMPolicy.load(path)} is in {path}")
    return path


if __name__ == "__main__":
    main()
