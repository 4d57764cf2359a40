"""Load and use every shipped policy from an installed wheel: `python -I wheel_smoke.py [NAME ...]`.

Not a test module: `.ci/run` starts it from an empty folder, in an environment that holds the wheel
and what the wheel requires, nothing else. The names are those that the wheel must ship.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from gymnasium import spaces

EXTRAS = ("stable_baselines3", "minari", "mujoco", "gymnasium_robotics")


def zero(space: spaces.Space) -> object:
    """The all-zero element of a Box or of a Dict of them."""
    if isinstance(space, spaces.Dict):
        return {key: zero(part) for key, part in space.spaces.items()}
    return np.zeros(space.shape, space.dtype)


def main(expected: list[str]) -> None:
    """Raise at the first thing that is wrong."""
    present = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not present, f"not the wheel alone: {present} are installed"

    import gem_policy
    from gem_policy.pretrained import names, path

    folder = Path(gem_policy.__file__).parent
    assert "site-packages" in folder.parts, f"not an installed package: {folder}"
    assert list(names()) == sorted(expected), f"ships {names()}, expected {sorted(expected)}"

    for name in names():
        begin = time.perf_counter()
        policy = gem_policy.GEMPolicy.load(name)
        loaded = time.perf_counter()
        action, state = policy.predict(zero(policy.observation_space), deterministic=True)
        done = time.perf_counter()
        assert policy.action_space.contains(action), f"{name}: {action!r} is not an action"
        assert state is None
        size = path(name).stat().st_size
        print(
            f"{name}: {size / 1e6:.1f} MB, loaded in {loaded - begin:.2f} s, "
            f"first action in {1e3 * (done - loaded):.1f} ms: {action}"
        )

    brought = [name for name in EXTRAS if name in sys.modules]
    assert not brought, f"deployment imported {brought}"
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.suffix != ".pyc")
    print(
        f"gem-policy {gem_policy.__version__}: {len(names())} policies, "
        f"{total / 1e6:.2f} MB installed, 0 failed"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
