from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest
from toy_recipe import RECIPE, simulate

from gem_policy.errors import DatasetError
from gem_policy.training import recipes
from gem_policy.training.dataset import load
from gem_policy.training.recipes.building import build
from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes, concatenate
from gem_policy.training.recipes.recipe import Recipe, Shard

pytestmark = pytest.mark.usefixtures("root")


def make(recipe: Recipe = RECIPE, *, steps: int = 40, seed: int = 0, workers: int = 1) -> list[int]:
    """Build, and return the progress that was reported."""
    seen: list[tuple[int, int]] = []
    name = build(
        recipe,
        steps=steps,
        seed=seed,
        root=None,
        sources=None,
        workers=workers,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert name == recipe.name
    assert {total for _, total in seen} == {steps}
    return [done for done, _ in seen]


def test_a_built_dataset_holds_every_shard_in_order(root: Path) -> None:
    assert make() == [0, 10, 20, 30, 40]
    whole = concatenate([simulate(Shard(index, 10, seed=0)) for index in range(4)])
    dataset = minari.load_dataset(RECIPE.name)
    assert [len(episode) for episode in dataset] == whole.lengths.tolist() == [4, 4, 2] * 4
    np.testing.assert_array_equal(
        np.concatenate([episode.observations for episode in dataset]), whole.observations[""]
    )
    np.testing.assert_array_equal(
        np.concatenate([episode.infos["success"] for episode in dataset]), whole.infos["success"]
    )
    assert all(episode.truncations[-1] for episode in dataset)


def test_a_built_dataset_says_what_it_is() -> None:
    make(seed=5)
    data = load(RECIPE.name)
    assert {k: data.recipe[k] for k in ("name", "steps", "seed")} == {
        "name": RECIPE.name,
        "steps": 40,
        "seed": 5,
    }
    assert (data.ref_min, data.ref_max) == (5.0, 15.0)
    assert data.metadata["num_episodes_average_score"] == 3
    assert data.metadata["license"] == RECIPE.license
    assert data.description == RECIPE.description
    assert "minari" in data.recipe["made_with"]  # type: ignore[operator]
    assert RECIPE.name in minari.list_local_datasets()


def test_the_number_of_processes_changes_nothing(root: Path) -> None:
    make(workers=2)
    many = load(RECIPE.name).transitions
    (root / "gem").rename(root / ".elsewhere")
    make(workers=1)
    one = load(RECIPE.name).transitions
    assert all(tensor.equal(getattr(many, name)) for name, tensor in vars(one).items())


def test_a_run_that_breaks_leaves_no_dataset_and_the_next_goes_on(root: Path) -> None:
    calls = []

    def breaks_at_the_third(shard: Shard) -> Episodes:
        calls.append(shard.index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return simulate(shard)

    recipe = replace(RECIPE, simulate=breaks_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(recipe)
    assert not (root / "gem").exists()
    assert minari.list_local_datasets() == {}
    assert make(recipe) == [20, 30, 40]
    assert calls == [0, 1, 2, 2, 3]
    assert [path.name for path in root.iterdir()] == ["gem"]  # no scrap is left


def test_a_run_that_breaks_while_writing_leaves_no_dataset(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("minari.create_dataset_from_buffers", full)
        with pytest.raises(OSError, match="No space left"):
            make()
    assert not (root / "gem" / "toy").exists()
    assert make() == [40]


def test_what_is_made_is_not_made_again_but_never_taken_for_another(root: Path) -> None:
    make()
    assert make() == [40]
    with pytest.raises(DatasetError, match="made with .*'seed': 0.*Delete that folder"):
        make(seed=1)
    with pytest.raises(DatasetError, match="'steps': 40"):
        make(steps=20)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DatasetError, match="Cannot write datasets into .*MINARI_DATASETS_PATH"):
        build(
            RECIPE,
            steps=40,
            seed=0,
            root=tmp_path / "file",
            sources=None,
            workers=1,
            progress=None,
        )


def test_a_damaged_part_is_named(root: Path) -> None:
    (scratch := root / ".gem_toy_small-v0.steps-40.seed-0").mkdir()
    (scratch / "shard-00001.npz").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="shard-00001.npz is not a complete part.*Delete it"):
        make()


@pytest.mark.parametrize(("steps", "workers"), [(0, 1), (10, 0)])
def test_senseless_numbers_are_refused(steps: int, workers: int) -> None:
    with pytest.raises(DatasetError, match="must be >= 1"):
        make(steps=steps, workers=workers)


def test_a_published_namespace_is_never_taken() -> None:
    with pytest.raises(DatasetError, match="must start with `gem/`"):
        replace(RECIPE, name="D4RL/door/human-v2")


def test_episodes_survive_their_file(tmp_path: Path) -> None:
    episodes = simulate(Shard(0, 10, seed=3))
    episodes.save(tmp_path / "a.npz")
    again = Episodes.load(tmp_path / "a.npz")
    assert again.lengths.tolist() == episodes.lengths.tolist()
    np.testing.assert_array_equal(again.observations[""], episodes.observations[""])
    np.testing.assert_array_equal(again.returns(), [0.0, 0.0, 0.0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_episodes_that_do_not_fit_name_every_wrong_array() -> None:
    good = simulate(Shard(0, 4, seed=0))
    with pytest.raises(DatasetError, match="rewards has 3 rows, expected 4; observations"):
        replace(good, rewards=good.rewards[:3], observations={"": good.observations[""][:4]})


def test_an_open_episode_is_cut_as_truncated_and_cannot_be_begun_again() -> None:
    recorder = EpisodeRecorder()
    recorder.begin({"a": 0.0}, {})
    recorder.step(np.zeros(1), 1.0, False, False, {"a": 1.0}, {})
    with pytest.raises(DatasetError, match="has not been ended"):
        recorder.begin({"a": 0.0}, {})
    episodes = recorder.finish()
    assert episodes.truncations.tolist() == [True]
    assert episodes.observations["a"].tolist() == [0.0, 1.0]


def test_names_are_forgiven_and_unknown_ones_get_a_hint() -> None:
    assert recipes.describe("pointmaze-large").name == "gem/pointmaze/large-v0"
    assert recipes.describe("pointmaze/large-dense").name == "gem/pointmaze/large-dense-v0"
    assert recipes.describe("gem/pointmaze/umaze-v0").name in recipes.names()
    with pytest.raises(DatasetError, match="Did you mean `gem/pointmaze/large-v0`"):
        recipes.make("pointmaze-larg")


def test_all_recipes_have_names_and_words() -> None:
    for name in recipes.names():
        recipe = recipes.describe(name)
        assert recipe.summary and recipe.description and recipe.credits
        json.dumps(recipe.description)
