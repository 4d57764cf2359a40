"""Does the shield keep its promise, and does it help an agent that needs help?

    python benchmarks/shield.py POLICY [--dataset ID] [--fresh-seed 1] [--json FILE]

1. How often it would stop the dataset's own actions, for several percentiles: on the held-out
   episodes that the checkpoint was calibrated on, and on a dataset made again by the same recipe
   with another seed, of which neither training nor calibration has seen anything.
2. An SB3 agent that was trained to run away from the goal, in the policy's own environment,
   without the shield and behind it: how often it reaches the goal, from the same starts.

POLICY is a name, path or hf:// address of a policy for a goal environment (PointMaze).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC

from gem_policy import GEMPolicy, make_env
from gem_policy.evaluate import Interval, machine
from gem_policy.training import recipes
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.preparation import split
from gem_policy.wrappers import SupportShield

PERCENTILES = (0.1, 1.0, 5.0)
ROWS = 8192


def percentiles(policy: GEMPolicy, data: Dataset) -> tuple[Any, Any]:
    """Support percentile of every action of a dataset, and its episode."""
    moves = data.transitions
    index = torch.arange(len(moves)) + moves.episode  # T + 1 observations an episode
    found = [
        policy.assess(moves.observations[rows], moves.actions[steps].unsqueeze(1)).percentile
        for steps, rows in zip(
            torch.arange(len(moves)).split(ROWS), torch.split(index, ROWS), strict=True
        )
    ]
    return torch.cat(found)[:, 0].cpu().numpy(), moves.episode.numpy()


def stopped(share: Any, episode: Any, percentile: float) -> dict[str, float]:
    """Percent of the actions below a threshold, and its standard error over episodes."""
    hits = np.bincount(episode, share < percentile)
    sizes = np.bincount(episode)
    rate = hits.sum() / sizes.sum()
    error = np.sqrt(np.square(hits - rate * sizes).sum()) / sizes.sum()
    return {"stopped_percent": 100 * float(rate), "standard_error": 100 * float(error)}


def own_actions(policy: GEMPolicy, data: Dataset) -> dict[str, Any]:
    """How often the dataset's own actions would be stopped."""
    share, episode = percentiles(policy, data)
    rates = {f"{p:g}": stopped(share, episode, p) for p in PERCENTILES}
    return {"actions": len(share), "episodes": int(episode.max()) + 1, "percentiles": rates}


def calibration_part(policy: GEMPolicy, data: Dataset) -> Dataset:
    """The held-out episodes of the training run, from the settings that the checkpoint holds."""
    train = policy.provenance["train"]
    return split(data, train["holdout"], train["seed"])[1]


class Backwards(gym.Wrapper[Any, Any, Any, Any]):
    """Rewards the distance to the goal, in m: who learns well here learns to run away."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step with the wrong reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        gap = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"])
        return observation, float(gap), terminated, truncated, info


def play(
    act: Callable[[Any], Any], env: gym.Env[Any, Any], episodes: int, seed: int
) -> dict[str, Any]:
    """Share of the episodes that reach the goal, steps to it, and interventions."""
    reached, steps, stops, acted = [], [], 0, 0
    for number in range(episodes):
        observation, info = env.reset(seed=seed + number)
        count, over, success = 0, False, False
        while not (over or success):
            observation, _, terminated, truncated, info = env.step(act(observation))
            count, over = count + 1, terminated or truncated
            success = bool(info["success"])
            if "gem" in info:
                stops += info["gem"]["shield"]["intervened"]
        reached.append(float(success))
        steps.append(count)
        acted += count
    row = {"reached": vars(Interval.of(reached)), "steps": vars(Interval.of(steps))}
    return row | {"intervention_percent": 100 * stops / acted}


def agent_rows(policy: GEMPolicy, options: argparse.Namespace) -> dict[str, Any]:
    """The agent without the shield, and behind several."""
    env = make_env(policy)
    learner = SAC(
        "MultiInputPolicy", Backwards(env), learning_starts=200, seed=options.seed, device="cpu"
    ).learn(options.agent_steps)

    def bad(observation: Any) -> Any:
        return learner.predict(observation, deterministic=True)[0]

    def own(observation: Any) -> Any:
        return policy.predict(observation, deterministic=True)[0]

    rows = {"agent, no shield": play(bad, env, options.episodes, options.seed)}
    for mode in ("replace", "nearest"):
        for percentile in options.thresholds:
            shielded = SupportShield(env, policy, percentile, mode)
            name = f"agent, {mode} below {percentile:g} %"
            rows[name] = play(bad, shielded, options.episodes, options.seed)
    rows["the policy itself"] = play(own, env, options.episodes, options.seed)
    env.close()
    return rows


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("--dataset", help="id or folder; the one that the checkpoint names")
    parser.add_argument("--fresh-seed", type=int, default=1)
    parser.add_argument("--fresh-steps", type=int, default=50_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--agent-steps", type=int, default=3000)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[1.0, 5.0, 25.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = GEMPolicy.load(options.policy, device="cpu")
    name = policy.provenance["dataset_id"]

    rates = {}
    data = load(options.dataset or name)
    rates["held out, calibrated on"] = own_actions(policy, calibration_part(policy, data))
    with tempfile.TemporaryDirectory() as folder:
        recipes.make(name, steps=options.fresh_steps, seed=options.fresh_seed, root=Path(folder))
        fresh = load(Path(folder) / name)
        rates["made again, another seed"] = own_actions(policy, fresh)
    for where, row in rates.items():
        print(f"{where}: {row['actions']} actions, {row['episodes']} episodes")
        for percentile, rate in row["percentiles"].items():
            print(
                f"  percentile {percentile:>4}: stops {rate['stopped_percent']:.3f} % "
                f"(standard error {rate['standard_error']:.3f})"
            )

    rows = agent_rows(policy, options)
    for label, row in rows.items():
        reached, steps = row["reached"], row["steps"]
        print(
            f"{label:28} reaches the goal {100 * reached['mean']:5.1f} % "
            f"[{100 * reached['low']:.1f}, {100 * reached['high']:.1f}]   steps "
            f"{steps['mean']:6.1f}   stopped {row['intervention_percent']:5.1f} %"
        )
    if options.json:
        document = {
            "machine": machine(),
            "policy": name,
            "episodes": options.episodes,
            "agent_steps": options.agent_steps,
            "seed": options.seed,
            "own_actions": rates,
            "agent": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
