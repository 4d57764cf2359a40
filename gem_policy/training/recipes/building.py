"""From a recipe to a Minari dataset: in shards, by several processes, all or nothing.

Shards are kept in a hidden folder beside the datasets; a run that is interrupted finds them again.
The dataset is written there too and gets its place by one rename, when nothing is missing.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

from gem_policy._version import __version__
from gem_policy.errors import DatasetError
from gem_policy.training.atomic import write_atomically
from gem_policy.training.minari_root import datasets_in, datasets_root, describe_namespaces
from gem_policy.training.recipes.episodes import Episodes, concatenate
from gem_policy.training.recipes.recipe import Recipe, References, Shard

Progress = Callable[[int, int], None]

SCORES = "references.json"
_LIBRARIES = ("gymnasium", "gymnasium-robotics", "minari", "mujoco", "numpy")


def build(
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    root: Path | None,
    sources: Path | None,
    workers: int,
    progress: Progress | None,
) -> str:
    """Make the dataset of `recipe` unless it is there already.

    Args:
        recipe: What to make.
        steps: Number of steps, at least 1.
        seed: Everything random follows from it; the number of workers changes nothing.
        root: Folder of all Minari datasets; Minari's own choice when None.
        sources: Other people's policies, for recipes that need them.
        workers: Processes that simulate at the same time, at least 1.
        progress: Called with (steps done, steps in all) after each shard.

    Returns:
        The dataset's id.

    Raises:
        DatasetError: if a dataset made otherwise has that id, a setting makes no sense, or the
            folder cannot be written to.
        DependencyError: if Minari is missing.
    """
    if steps < 1 or workers < 1:
        raise DatasetError(f"`steps` and `workers` must be >= 1, got {steps} and {workers}.")
    root = datasets_root() if root is None else root.expanduser()
    target = root / recipe.name
    settings = {"name": recipe.name, "steps": steps, "seed": seed}
    if target.exists():
        _check_same(target, settings)
        if progress is not None:
            progress(steps, steps)
        return recipe.name
    scratch = root / f".{recipe.name.replace('/', '_')}.steps-{steps}.seed-{seed}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"Cannot write datasets into {root}: {error}. Set MINARI_DATASETS_PATH to a folder of "
            "yours."
        ) from error
    shards = recipe.shards(steps, seed, sources)
    _do_all(recipe, shards, scratch, workers, progress)
    _publish(recipe, settings, shards, root, scratch)
    return recipe.name


def _do_all(
    recipe: Recipe,
    shards: tuple[Shard, ...],
    scratch: Path,
    workers: int,
    progress: Progress | None,
) -> None:
    total = sum(shard.steps for shard in shards)
    missing = [shard for shard in shards if not _shard_path(scratch, shard).exists()]
    done = total - sum(shard.steps for shard in missing)

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    report(0)
    if workers == 1:
        for shard in missing:
            _simulate_one(recipe, shard, scratch)
            report(shard.steps)
        _score(recipe, shards[0], scratch)
        return
    # Fresh processes: a fork would inherit whatever threads the caller runs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing) + 1), mp_context=context) as pool:
        running = {pool.submit(_score, recipe, shards[0], scratch): 0}
        for shard in missing:
            running[pool.submit(_simulate_one, recipe, shard, scratch)] = shard.steps
        try:
            for finished in as_completed(running):
                finished.result()
                report(running[finished])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _simulate_one(recipe: Recipe, shard: Shard, scratch: Path) -> None:
    recipe.simulate(shard).save(_shard_path(scratch, shard))


def _shard_path(scratch: Path, shard: Shard) -> Path:
    return scratch / f"shard-{shard.index:05d}.npz"


def _score(recipe: Recipe, shard: Shard, scratch: Path) -> None:
    path = scratch / SCORES
    if not path.exists():
        scores = vars(recipe.references(shard.seed, shard.sources))
        with write_atomically(path) as file:
            file.write(json.dumps(scores).encode())


def _publish(
    recipe: Recipe, settings: dict[str, Any], shards: tuple[Shard, ...], root: Path, scratch: Path
) -> None:
    stage = scratch / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    references = References(**json.loads((scratch / SCORES).read_text()))
    episodes = concatenate([Episodes.load(_shard_path(scratch, shard)) for shard in shards])
    _write(recipe, settings, references, episodes, stage)
    target = root / recipe.name
    target.parent.mkdir(parents=True, exist_ok=True)
    describe_namespaces(recipe.name, root)
    try:
        (stage / recipe.name).rename(target)
    except OSError as error:
        raise DatasetError(
            f"The finished dataset could not be put in its place, {target} ({error}). Its parts "
            f"are kept in {scratch}; free the place and run again."
        ) from error
    shutil.rmtree(scratch, ignore_errors=True)


def _write(
    recipe: Recipe,
    settings: dict[str, Any],
    references: References,
    episodes: Episodes,
    stage: Path,
) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    with datasets_in(stage), warnings.catch_warnings():
        # Minari advises to name an e-mail address and a link; neither is ours to give.
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        dataset = minari.create_dataset_from_buffers(
            dataset_id=recipe.name,
            buffer=[EpisodeBuffer(**episode) for episode in episodes.split()],
            env=recipe.env_spec(),
            eval_env=recipe.eval_env_spec(),
            algorithm_name=recipe.algorithm,
            author="gem-policy",
            description=recipe.description,
            ref_min_score=references.minimum,
            ref_max_score=references.maximum,
            num_episodes_average_score=references.episodes,
            requirements=list(recipe.requirements),
        )
    dataset.storage.update_metadata(
        {
            "license": recipe.license,
            "credits": recipe.credits,
            "recipe": {**settings, "made_with": {"gem-policy": __version__, **_versions()}},
        }
    )


def _check_same(target: Path, settings: dict[str, Any]) -> None:
    try:
        made = json.loads((target / "data" / "metadata.json").read_text())["recipe"]
    except (OSError, ValueError, KeyError):
        made = {}
    if any(made.get(key) != value for key, value in settings.items()):
        was = {key: made.get(key) for key in settings}
        raise DatasetError(
            f"{target} exists and was made with {was}, not with {settings}. Delete that folder, "
            "or point MINARI_DATASETS_PATH at another place, to make it anew."
        )


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
