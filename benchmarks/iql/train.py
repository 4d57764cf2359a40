"""d3rlpy's IQL with its default settings, on the arrays that `export.py` wrote.

    python benchmarks/iql/train.py DATA.npz OUT [--updates 20000 100000]
    python benchmarks/iql/train.py --speed-only --json FILE [--sizes 11,3 8,2] [--threads 1 2]

Needs the environment of `requirements.txt`, not that of this package. The first form trains and
writes OUT/iql-UPDATES.npz, the actor as plain arrays, for every number of updates given; stopped
and started again it goes on from the last thousands of updates. The second measures updates/s on
random transitions, sampling included, as d3rlpy's own loop does them, without its logging.

The dataset is d3rlpy's `MDPDataset`, of arrays: its reader of Minari files takes T observations an
episode for T + 1 and misaligns the rest.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import structlog
import torch
from d3rlpy.algos import IQL, IQLConfig
from d3rlpy.dataset import MDPDataset

BLOCK = 1000  # updates between two readings of the clock
SAVE_BLOCKS = 5


def mdp_dataset(data: Any) -> MDPDataset:
    """d3rlpy's dataset of exactly the given transitions.

    It keeps one observation a step, and so no transition for the last step of an episode that was
    cut: such an episode gets one more row, its last observation, which starts no transition. A
    return that ends within an episode ends the episode there; the next one starts with the row
    after it.
    """
    episode, terminal = data["episode"], data["terminated"].astype(bool)
    last = np.append(episode[1:] != episode[:-1], True)
    cut = np.flatnonzero(last & ~terminal)
    places = cut + 1  # the extra rows go behind the last step
    columns = {
        "observations": np.insert(data["observations"], places, data["next_observations"][cut], 0),
        "actions": np.insert(data["actions"], places, 0.0, 0),
        "rewards": np.insert(data["rewards"], places, 0.0),
        "terminals": np.insert(terminal, places, False).astype(np.float32),
        "timeouts": np.insert(np.zeros(len(last), np.float32), places, 1.0),
    }
    made = MDPDataset(**columns, action_space=d3rlpy.ActionSpace.CONTINUOUS)
    check(made, data, terminal)
    return made


def check(made: MDPDataset, data: Any, terminal: Any, samples: int = 1000) -> None:
    """Raise unless d3rlpy draws the given transitions, looking at a sample of them."""
    count = len(terminal)
    if made.transition_count != count:
        raise ValueError(f"{made.transition_count} transitions of {count} arrived in d3rlpy.")
    for number in np.random.default_rng(0).integers(count, size=samples):
        got = made.transition_picker(*made.buffer[number])
        pairs = [
            (got.observation, data["observations"][number]),
            (got.action, data["actions"][number]),
            (got.reward[0], data["rewards"][number]),
            (got.terminal, float(terminal[number])),
        ]
        if not terminal[number]:  # what follows an end is never looked at
            pairs.append((got.next_observation, data["next_observations"][number]))
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise ValueError(f"Transition {number} is another one in d3rlpy: {pairs}.")


def actor_arrays(algorithm: IQL) -> dict[str, Any]:
    """Weights (out, in) and biases of the actor's layers, ReLU between them, tanh at the end.

    Raises:
        ValueError: A plain network of these does not compute what d3rlpy's ``predict`` does.
    """
    policy = algorithm.impl.policy
    layers = [m for m in policy._encoder.modules() if isinstance(m, torch.nn.Linear)]
    layers.append(policy._mu)
    arrays = {}
    for number, layer in enumerate(layers):
        arrays[f"weight_{number}"] = layer.weight.detach().numpy().copy()
        arrays[f"bias_{number}"] = layer.bias.detach().numpy().copy()
    rows = np.random.default_rng(0).normal(size=(100, arrays["weight_0"].shape[1]))
    rows = rows.astype(np.float32)
    x = rows
    for number in range(len(layers)):
        x = x @ arrays[f"weight_{number}"].T + arrays[f"bias_{number}"]
        x = np.maximum(x, 0) if number < len(layers) - 1 else np.tanh(x)
    expected = algorithm.predict(rows)
    if not np.allclose(x, expected, atol=1e-5) or float(np.ptp(expected)) == 0:
        raise ValueError(
            f"The exported actor differs from d3rlpy's predict by {np.abs(x - expected).max()}."
        )
    return arrays


def train(options: argparse.Namespace) -> None:
    """Train, writing the actor at every number of updates asked for."""
    with np.load(options.data) as file:
        data = {name: file[name] for name in file.files}
    about = json.loads(str(data.pop("about")))
    dataset = mdp_dataset(data)
    config = IQLConfig()
    algorithm = config.create(device=False)
    algorithm.build_with_dataset(dataset)
    options.out.mkdir(parents=True, exist_ok=True)
    state, progress = options.out / "state.pt", options.out / "progress.json"
    done, seconds = 0, []
    if progress.is_file() and state.is_file():
        before = json.loads(progress.read_text())
        if (before["about"], before["seed"]) != (about, options.seed):
            raise SystemExit(f"{options.out} holds another run: {before['about']}.")
        algorithm.load_model(str(state))
        done, seconds = before["done"], before["seconds"]
    # A resumed run draws other batches than one in one go: d3rlpy's are from numpy's global state.
    d3rlpy.seed(options.seed + done)
    for goal in sorted(options.updates):
        while done < goal:
            start = time.perf_counter()
            for _ in range(min(BLOCK, goal - done)):
                losses = algorithm.update(dataset.sample_transition_batch(config.batch_size))
            block = min(BLOCK, goal - done)
            seconds.append((time.perf_counter() - start) / block)
            done += block
            told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            print(f"{done}: {1 / seconds[-1]:.1f} updates/s; {told}", flush=True)
            if len(seconds) % SAVE_BLOCKS == 0 or done == goal:
                algorithm.save_model(str(state))
                document = {"about": about, "seed": options.seed, "done": done, "seconds": seconds}
                progress.write_text(json.dumps(document))
            if not all(np.isfinite(value) for value in losses.values()):
                raise SystemExit(f"A loss became NaN or infinite by update {done}: {told}")
        out = options.out / f"iql-{goal}.npz"
        if out.is_file():
            continue  # from before
        document = {
            **about,
            "algorithm": "d3rlpy IQL, default settings",
            "d3rlpy": metadata.version("d3rlpy"),
            "config": json.loads(config.serialize()),
            "updates": goal,
            "seed": options.seed,
            "threads": torch.get_num_threads(),
            "updates_per_second": 1 / float(np.median(seconds)),
        }
        np.savez(out, about=json.dumps(document), **actor_arrays(algorithm))
        print(f"Wrote {out}", flush=True)


def random_dataset(observations: int, actions: int, episodes: int = 100) -> MDPDataset:
    """Random transitions, 1000 steps an episode."""
    rng = np.random.default_rng(0)
    steps = 1000 * episodes
    rows = rng.normal(size=(steps, observations)).astype(np.float32)
    return mdp_dataset(
        {
            "observations": rows,
            "next_observations": np.roll(rows, -1, axis=0),
            "actions": rng.uniform(-1, 1, (steps, actions)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "terminated": np.zeros(steps, bool),
            "episode": np.repeat(np.arange(episodes), 1000),
        }
    )


def measure_speed(options: argparse.Namespace) -> None:
    """Updates/s for each size and number of threads, and the matrix rate of the same minutes."""
    rows = []
    for size in options.sizes:
        observations, actions = (int(n) for n in size.split(","))
        dataset = random_dataset(observations, actions, episodes=options.episodes)
        config = IQLConfig()
        algorithm = config.create(device=False)
        algorithm.build_with_dataset(dataset)
        for threads in options.threads:
            torch.set_num_threads(threads)
            row: dict[str, Any] = {"observations": observations, "actions": actions}
            row |= {"threads": threads, "batch_size": config.batch_size}
            for name in ("warm", "", "_without_sampling"):
                count = 20 if name == "warm" else options.measured
                batch = dataset.sample_transition_batch(config.batch_size)
                start, cpu = time.perf_counter(), time.process_time()
                for _ in range(count):
                    if name != "_without_sampling":
                        batch = dataset.sample_transition_batch(config.batch_size)
                    algorithm.update(batch)
                elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
                if name != "warm":
                    row[f"updates_per_second{name}"] = count / elapsed
                    row[f"updates_per_cpu_second{name}"] = count / cpu
            rows.append(row)
            print(row, flush=True)
    document = {
        "d3rlpy": metadata.version("d3rlpy"),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Train, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--updates", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--sizes", nargs="+", default=["11,3", "8,2"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measured", type=int, default=200, help="updates of one measurement")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    torch.set_num_threads(1)
    if options.speed_only:
        measure_speed(options)
    elif options.data is None or options.out is None:
        parser.error("name the data and the folder of the run, or --speed-only")
    else:
        d3rlpy.seed(options.seed)
        train(options)


if __name__ == "__main__":
    main()
