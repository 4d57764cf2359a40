"""How each published dataset is made again, one module a family.

    names()          every dataset that can be made
    describe(name)   its recipe, with summary and description
    make(name)       make it; a second call finds it made

Simulators are real and every number follows from a seed. Made sets live in the namespace `gem/`,
never under a published id.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from gem_policy.errors import DatasetError
from gem_policy.training.recipes.recipe import Recipe


def names() -> tuple[str, ...]:
    """Ids of all datasets that can be made."""
    return tuple(_recipes())


def describe(name: str) -> Recipe:
    """The recipe of a dataset.

    Args:
        name: The id; `gem/` and the version may be left out, and `-` may stand for `/`.

    Raises:
        DatasetError: if no recipe has that name; the message names the closest.
    """
    recipes = _recipes()
    short = {_short(known): known for known in recipes}
    found = recipes.get(name) or recipes.get(short.get(_short(name), ""))
    if found is None:
        close = difflib.get_close_matches(_short(name), short, n=1, cutoff=0.0)
        hint = f" Did you mean `{short[close[0]]}`?" if close else ""
        raise DatasetError(
            f"No recipe makes `{name}`.{hint} `gem-policy datasets list` shows all {len(recipes)}."
        )
    return found


def make(
    name: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    root: Path | None = None,
    sources: Path | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Make a dataset, or find it made with the same settings.

    Safe to interrupt at any moment: finished parts are found again by the next call with the same
    settings, and the dataset appears in its place only when it is complete.

    Args:
        name: As for `describe`.
        steps: Number of steps instead of the full size.
        seed: Everything random follows from it.
        root: Folder of all datasets; by default where Minari keeps them
            (`MINARI_DATASETS_PATH`, or `~/.minari/datasets`).
        sources: Folder with other people's policies; `GEM_POLICY_SOURCES` by default.
        workers: Processes to simulate with; the result does not depend on it.
        progress: Called with (steps done, steps in all).

    Returns:
        The dataset's id, for `minari.load_dataset` and for training.

    Raises:
        DatasetError: for an unknown name, missing sources, or when another dataset has the id.
        DependencyError: if a package that the recipe needs is not installed.
    """
    recipe = describe(name)
    if sources is None and os.environ.get("GEM_POLICY_SOURCES"):
        sources = Path(os.environ["GEM_POLICY_SOURCES"])
    if recipe.needs_sources and (sources is None or not sources.is_dir()):
        raise DatasetError(
            f"`{recipe.name}` is made from other people's policies, which are not part of this "
            f"package; got sources = {sources}. `gem-policy datasets sources` says what to "
            "download; then pass --sources DIR or set GEM_POLICY_SOURCES."
        )
    from gem_policy.training.recipes.building import build

    return build(
        recipe,
        steps=recipe.steps if steps is None else steps,
        seed=seed,
        root=root,
        sources=sources,
        workers=workers,
        progress=progress,
    )


def _recipes() -> dict[str, Recipe]:
    from gem_policy.training.recipes import adroit, antmaze, mujoco, pointmaze

    families = (pointmaze, antmaze, adroit, mujoco)
    return {recipe.name: recipe for family in families for recipe in family.RECIPES}


def _short(name: str) -> str:
    return name.strip().lower().removeprefix("gem/").removesuffix("-v0").replace("/", "-")
