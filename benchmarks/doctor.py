"""What the doctor says about good datasets and about every defect that the tests plant.

    python benchmarks/doctor.py [DATASET ...] [--no-planted] [--json FILE]

The planted ones are those of `tests/planted.py`: a small set of the real PointMaze recipe, spoiled
in one way each, below a folder that is removed. Each line says what was planted, whether the
doctor called it by its name, and in which words. FILE keeps what it has of other datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from gem_policy.evaluate import machine
from gem_policy.training.doctor import Report, examine
from gem_policy.training.minari_root import datasets_in

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the planting is shared with the tests

from planted import DATASETS, DEFECTS, healthy_dataset  # noqa: E402
from small_datasets import write_dataset  # noqa: E402


def planted(root: Path) -> Iterator[tuple[str, tuple[str, ...], Report]]:
    """Name, expected codes and report of each planted dataset; a clean one first."""
    buffers, options = healthy_dataset()
    write_dataset("test/good-v0", buffers, **options)
    yield "nothing", (), examine("test/good-v0")
    expected: dict[Any, tuple[str, ...]] = {}
    for plant, code, _ in DEFECTS:
        expected[plant] = (*expected.get(plant, ()), code)
    for plant, codes in expected.items():
        spoiled, said = deepcopy(buffers), deepcopy(options)
        plant(spoiled, said)
        name = f"test/{plant.__name__.replace('_', '-')}-v0"
        write_dataset(name, spoiled, **said)
        yield plant.__name__, codes, examine(name)
    for write, code, _ in DATASETS:
        yield write.__name__, (code,), examine(write(root))


def describe(report: Report, root: Path) -> dict[str, Any]:
    """A report without the folder that it was written in."""
    text = json.dumps(report.to_dict())
    document: dict[str, Any] = json.loads(text.replace(f"{root}{os.sep}", ""))
    return document


def examine_planted(document: dict[str, Any]) -> None:
    """Add what the doctor says about each planted dataset."""
    with tempfile.TemporaryDirectory() as folder, datasets_in(Path(folder)):
        for name, codes, report in planted(Path(folder)):
            said = describe(report, Path(folder))
            found = [f for f in said["findings"] if f["code"] in codes]
            document["planted"][name] = {
                "expected": codes,
                "found": len(found) == len(codes),
                "beside": [c for c in report.codes("error", "warning") if c not in codes],
                **said,
            }
            print(f"{name}: {'found' if len(found) == len(codes) else 'MISSED'}", flush=True)
            for finding in found:
                print(f"    {finding['severity']} {finding['code']}: {finding['text']}")


def main() -> None:
    """Examine, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", help="good ones to examine")
    parser.add_argument("--no-planted", action="store_true", help="only the datasets named")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"good": {}, "planted": {}}
    if options.json and options.json.exists():
        document = json.loads(options.json.read_text())
    document["machine"] = machine()
    for name in options.datasets:
        start = time.perf_counter()
        report = examine(name)
        document["good"][name] = report.to_dict() | {"seconds": time.perf_counter() - start}
        print(report, "", sep="\n", flush=True)
    if not options.no_planted:
        examine_planted(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
