"""Every check in one command: `python tests/check.py [--fix] [--no-tests]`.

Format, lint, strict types, tests: each is run even if one before it failed. Not a test module.

The type checker does not see that `wrappers/` and `pretrained/` are `gem_policy.wrappers` and
`gem_policy.pretrained`, and would call a package that it never opened correct. So it reads
`build/typecheck/gem_policy`, a folder of links in the shape that is shipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link_tree() -> None:
    """Make `build/typecheck/gem_policy` anew: one link for each part of the shipped package."""
    tree = ROOT / "build" / "typecheck" / "gem_policy"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    parts = [part for part in (ROOT / "gem_policy").iterdir() if part.name != "__pycache__"]
    for part in [*parts, ROOT / "wrappers", ROOT / "pretrained"]:
        (tree / part.name).symlink_to(part)


def main(argv: list[str]) -> int:
    """Run the steps; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="format, and mend what lint can mend")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    options = parser.parse_args(argv)

    tools = ["ruff", "mypy"] + ([] if options.no_tests else ["pytest"])
    missing = [tool for tool in tools if importlib.util.find_spec(tool) is None]
    if missing:
        print(f"{', '.join(missing)} not installed here: `make check` sets everything up.")
        return 2

    steps = {
        "format": ["ruff", "format", *([] if options.fix else ["--check"]), "."],
        "lint": ["ruff", "check", *(["--fix"] if options.fix else []), "."],
        "types": ["mypy"],
        "tests": ["pytest", "-q", "--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"],
    }
    if options.no_tests:
        del steps["tests"]

    link_tree()
    # Without the safe path, `-m` puts the root first and `gem_policy/` there hides an installed
    # copy; PYTHONPATH could do the same.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)
    results: dict[str, tuple[int, float]] = {}
    for name, command in steps.items():
        print(f"-- {name}: {' '.join(command)}", flush=True)
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment)
        results[name] = (done.returncode, time.monotonic() - begin)

    print()
    for name, (code, seconds) in results.items():
        print(f"{name:8}{'FAILED' if code else 'passed'}{seconds:8.1f} s")
    failed = sum(code != 0 for code, _ in results.values())
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
