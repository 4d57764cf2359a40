"""Time and memory from a Minari dataset to training tensors, beside reading the same arrays raw.

    python benchmarks/loading.py [DATASET] [--repeats N] [--minari] [--arrow] [--json FILE]

Every measurement is a process of its own, in turns, with the file in the page cache. `gem` is
`gem_policy.training.dataset.load`; `h5py` reads each of the same arrays with `dataset[()]`, in the
type that the file has, and drops it. `--minari` also goes through Minari's iterator and stacks what
comes out. `--arrow` copies the data into Minari's Arrow format first, in a temporary folder, and
loads that, too. Imports are not timed. Memory is the process's high-water mark (VmHWM, Linux only)
less that of a process that only imports torch and minari; the loader's other imports count as
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

STEP_ARRAYS = ("actions", "rewards", "terminations", "truncations")
LIBRARIES = ("h5py", "minari", "numpy", "pyarrow", "torch")


def prepare_nothing(name: str) -> Callable[[], int]:
    """Hold no data."""
    return lambda: 0


def prepare_raw(name: str) -> Callable[[], int]:
    """Read all arrays that training needs, one by one; their size is that in the file."""
    import h5py

    from gem_policy.training.location import locate, open_source
    from gem_policy.training.storages import leaves

    source = open_source(locate(name))
    paths = ["/".join(("observations", *leaf.path)) for leaf in leaves(source.observation_space)]

    def read() -> int:
        size = 0
        with h5py.File(source.folder / "main_data.hdf5", "r") as file:
            for number in range(source.total_episodes):
                episode = file[f"episode_{number}"]
                size += sum(episode[path][()].nbytes for path in (*paths, *STEP_ARRAYS))
        return size

    return read


def prepare_gem(name: str) -> Callable[[], int]:
    """The loader of this package."""
    import h5py  # noqa: F401  # the loader imports it when it meets such a file

    from gem_policy.training.dataset import load

    return lambda: load(name).transitions.nbytes


def prepare_arrow(name: str) -> Callable[[], int]:
    """The same, with what it needs to read Arrow."""
    import pyarrow.dataset  # noqa: F401

    return prepare_gem(name)


def prepare_imports(name: str) -> Callable[[], int]:
    """All that the loader imports, and no data."""
    prepare_gem(name)
    return lambda: 0


def prepare_minari(name: str) -> Callable[[], int]:
    """Minari's iterator, its arrays joined and turned into tensors."""
    import gymnasium as gym
    import minari
    import torch

    def read() -> int:
        dataset = minari.load_dataset(name)
        episodes = list(dataset.iterate_episodes())
        if isinstance(dataset.observation_space, gym.spaces.Dict):
            keys = list(dataset.observation_space.spaces)
            rows = [np.hstack([e.observations[key] for key in keys]) for e in episodes]
        else:
            rows = [e.observations for e in episodes]
        tensors = [torch.from_numpy(np.concatenate(rows)).float()]
        for field in STEP_ARRAYS:
            column = torch.from_numpy(np.concatenate([getattr(e, field) for e in episodes]))
            tensors.append(column.float() if column.is_floating_point() else column)
        return sum(tensor.nbytes for tensor in tensors)

    return read


# Each prepares a function that reads the dataset and returns the size of what it read in bytes.
READERS: dict[str, Callable[[str], Callable[[], int]]] = {
    "nothing": prepare_nothing,
    "imports": prepare_imports,
    "h5py": prepare_raw,
    "gem": prepare_gem,
    "gem, arrow": prepare_arrow,
    "minari": prepare_minari,
}


def measure_here(reader: str, name: str) -> dict[str, float]:
    """Time and peak memory of one reader in this process."""
    import minari  # noqa: F401
    import torch  # noqa: F401

    read = READERS[reader](name)
    start, cpu = time.perf_counter(), time.process_time()
    size = read()
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": high_water_mark(),
        "size": size,
    }


def high_water_mark() -> int:
    """Largest resident size of this process so far, in bytes."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("No VmHWM in /proc/self/status: memory can be measured on Linux only.")


def measure(reader: str, name: str, root: str | None) -> dict[str, float]:
    """The same in a fresh process."""
    environment = {**os.environ, **({"MINARI_DATASETS_PATH": root} if root else {})}
    command = [sys.executable, __file__, name, "--one", reader]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def copy_as_arrow(name: str, root: Path) -> None:
    """Write the dataset again below `root`, in Arrow's format, without `infos`."""
    import minari
    from minari.data_collector import EpisodeBuffer

    from gem_policy.training.minari_root import datasets_in

    dataset = minari.load_dataset(name)
    buffers = [
        EpisodeBuffer(
            observations=e.observations, **{field: getattr(e, field) for field in STEP_ARRAYS}
        )
        for e in dataset.iterate_episodes()
    ]
    with datasets_in(root):
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            data_format="arrow",
        )


def summarize(results: list[dict[str, float]], floor: float) -> dict[str, Any]:
    """Median and range of the repetitions; memory above `floor`."""
    seconds = [r["seconds"] for r in results]
    peaks = [r["peak"] - floor for r in results]
    return {
        "seconds": float(np.median(seconds)),
        "seconds_range": [min(seconds), max(seconds)],
        "cpu_seconds": float(np.median([r["cpu"] for r in results])),
        "peak_bytes": float(np.median(peaks)),
        "peak_range": [min(peaks), max(peaks)],
        "bytes": results[0]["size"],
    }


def main() -> None:
    """Measure in turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", default="gem/pointmaze/large-v0")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--minari", action="store_true")
    parser.add_argument("--arrow", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one, options.dataset)))
        return
    unwanted = {"minari": not options.minari, "gem, arrow": not options.arrow}
    readers = [reader for reader in READERS if not unwanted.get(reader)]
    results: dict[str, list[dict[str, float]]] = {reader: [] for reader in readers}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        if options.arrow:
            copy_as_arrow(options.dataset, Path(folder))
        for turn in range(options.repeats + 1):
            for reader in readers:
                root = folder if reader == "gem, arrow" else None
                result = measure(reader, options.dataset, root)
                if turn:  # the first brings the files into the page cache
                    results[reader].append(result)
                    print(reader, json.dumps(result), flush=True)
    floor = float(np.median([r["peak"] for r in results["nothing"]]))
    rows = {r: summarize(results[r], floor) for r in readers if r != "nothing"}
    imports = rows.pop("imports")["peak_bytes"]
    tensors = rows["gem"]["bytes"]
    for reader, row in rows.items():
        row["times_h5py"] = row["seconds"] / rows["h5py"]["seconds"]
        row["times_tensors"] = row["peak_bytes"] / tensors
        low, high = row["seconds_range"]
        print(
            f"{reader:12} {row['seconds']:6.2f} s ({low:.2f} to {high:.2f}), CPU "
            f"{row['cpu_seconds']:.2f} s, {row['times_h5py']:.2f} x h5py; peak "
            f"{row['peak_bytes'] / 1e6:.1f} MB, {row['times_tensors']:.2f} x tensors"
        )
    print(
        f"tensors {tensors / 1e6:.1f} MB; torch and minari alone {floor / 1e6:.1f} MB, other "
        f"imports of the loader {imports / 1e6:.1f} MB"
    )
    if options.json:
        from gem_policy.evaluate import machine

        document = {
            "machine": machine(),
            "versions": {library: metadata.version(library) for library in LIBRARIES},
            "dataset": options.dataset,
            "repeats": options.repeats,
            "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
            "floor_bytes": floor,
            "import_bytes": imports,
            "tensor_bytes": tensors,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
