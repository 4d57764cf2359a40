"""The checkpoint file: strict in, atomic out, nothing lost, nothing trusted."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import CPU, SPACES, sample, tiny_checkpoint, tiny_policy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from strategies import observation_spaces, selections

from gem_policy import checkpoint as module
from gem_policy.checkpoint import (
    CONFIG_FILE,
    METADATA_KEY,
    WEIGHTS_FILE,
    Checkpoint,
    check_tensors,
    expected_shapes,
    load,
    save,
    save_folder,
    to_document,
    write_atomically,
)
from gem_policy.config import SelectionConfig
from gem_policy.errors import CheckpointError, GEMWarning
from gem_policy.formats import FORMAT_VERSION, MIGRATIONS
from gem_policy.policy import GEMPolicy

Document = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good checkpoint on disk."""
    path = tmp_path / WEIGHTS_FILE
    save(tiny_checkpoint(), path)
    return path


def read_document(path: Path) -> Document:
    with safe_open(str(path), framework="pt") as opened:
        document: Document = json.loads(opened.metadata()[METADATA_KEY])
    return document


def rewrite(
    path: Path,
    tensors: Callable[[dict[str, torch.Tensor]], None] = lambda _: None,
    document: Callable[[Document], Any] = lambda d: d,
) -> None:
    """Change a checkpoint file as a careless or hostile hand would."""
    held, told = load_file(path), read_document(path)
    tensors(held)
    changed = document(told)
    text = json.dumps(told if changed is None else changed)
    save_file(held, path, metadata={METADATA_KEY: text})


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    assert first.config == second.config
    assert first.provenance == second.provenance
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


# -- what goes in comes out ----------------------------------------------------------------------


@given(observation_spaces(), selections, st.integers(0, 99))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_saved_is_loaded(
    tmp_path: Path, space: gym.Space[Any], selection: SelectionConfig, seed: int
) -> None:
    provenance = {"text": "é\n\"'", "deep": {"list": [1, 2.5, None, True]}}
    made = tiny_checkpoint(space, seed=seed, selection=selection, provenance=provenance)
    save(made, tmp_path / "any.safetensors")
    assert_same(load(tmp_path / "any.safetensors"), made)
    save_folder(made, tmp_path / "folder")
    assert_same(load(tmp_path / "folder"), made)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_saved_and_loaded_it_decides_the_same_to_the_bit(
    space: gym.Space[Any], name: str, tmp_path: Path
) -> None:
    policy = tiny_policy(space, seed=3)
    policy.selection = policy.selection.replace(candidates=7, kappa=0.3, bound="paired")
    again = GEMPolicy.load(policy.save(tmp_path / name), device="cpu")
    assert again.selection == policy.selection
    batch = sample(space, np.random.default_rng(0), (16,))
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            policy.predict(batch, deterministic=deterministic)[0],
            again.predict(batch, deterministic=deterministic)[0],
        )
    rows = torch.randn(16, policy.config.network.observation_size)
    first, second = policy.decide(rows), again.decide(rows)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.action, second.action)


def test_the_same_policy_is_the_same_bytes_in_every_process(tmp_path: Path, file: Path) -> None:
    again = tmp_path / "again.safetensors"
    save(load(file), again)
    assert again.read_bytes() == file.read_bytes()
    code = (
        "import sys; from pathlib import Path; from gem_policy.checkpoint import load, save\n"
        "save(load(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    other = tmp_path / "other.safetensors"
    command = [sys.executable, "-c", code, str(file), str(other)]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run(command, check=True, timeout=120, env=environment)
    assert other.read_bytes() == file.read_bytes()


def test_the_order_of_the_tensors_does_not_change_the_bytes(tmp_path: Path, file: Path) -> None:
    made = load(file)
    turned = dict(sorted(made.tensors.items(), reverse=True))
    save(replace(made, tensors=turned), tmp_path / "turned.safetensors")
    assert (tmp_path / "turned.safetensors").read_bytes() == file.read_bytes()


def test_the_file_names_no_place(tmp_path: Path, file: Path) -> None:
    import getpass
    import socket

    content = file.read_bytes()
    for private in (str(tmp_path), str(Path.cwd()), socket.gethostname(), "cpu", "cuda"):
        assert private.encode() not in content, private
    assert f"/{getpass.getuser()}".encode() not in content
    with safe_open(str(file), framework="pt") as opened:
        assert set(opened.metadata()) == {METADATA_KEY}


def test_the_document_tells_versions_settings_spaces_and_provenance(file: Path) -> None:
    document = read_document(file)
    assert set(document) == {
        *("format_version", "network", "selection"),
        *("observation_space", "action_space", "gain_unit", "provenance"),
    }
    assert document["format_version"] == FORMAT_VERSION
    assert document == json.loads(json.dumps(to_document(load(file))))


# -- strict --------------------------------------------------------------------------------------


def test_everything_wrong_with_the_tensors_is_in_one_error(file: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["actor.weights.0"]
        tensors["surplus"] = torch.zeros(1)
        tensors["actor.biases.0"] = torch.zeros(3)
        tensors["critic.biases.0"][0] = float("nan")
        tensors["behavior.biases.0"] = tensors["behavior.biases.0"].double()
        tensors["observation.std"][1] = 0.0
        tensors["observation.mean"][0] = float("inf")

    rewrite(file, spoil)
    with pytest.raises(CheckpointError) as caught:
        load(file)
    message = str(caught.value)
    for part in (
        "missing: actor.weights.0",
        "not expected: surplus",
        "actor.biases.0: shape (3,), expected (8,)",
        "critic.biases.0: has NaN or infinite values",
        "behavior.biases.0: dtype torch.float64, expected torch.float32",
        "observation.std: must be positive",
        "observation.mean: has NaN or infinite values",
        "Get the file again",
    ):
        assert part in message


@given(st.data())
@settings(max_examples=40)
def test_no_tensor_can_be_absent_misshapen_or_broken(data: st.DataObject) -> None:
    made = tiny_checkpoint()
    name = data.draw(st.sampled_from(sorted(made.tensors)))
    how = data.draw(st.sampled_from(["absent", "shape", "nan", "dtype"]))
    tensors = dict(made.tensors)
    tensor = tensors.pop(name)
    if how == "shape":
        tensors[name] = torch.cat((tensor, tensor[:1]))
    elif how == "nan":
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = torch.nan
    elif how == "dtype":
        tensors[name] = tensor.half()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        check_tensors(made.config, tensors, "it")


def test_bounds_that_contradict_the_action_space_are_refused(file: Path) -> None:
    rewrite(file, lambda tensors: tensors["action.high"].mul_(2))
    with pytest.raises(CheckpointError, match="differ from the action space"):
        load(file)


def test_a_calibration_that_falls_is_refused(file: Path) -> None:
    rewrite(file, lambda tensors: tensors["calibration.log_behavior"].neg_())
    with pytest.raises(CheckpointError, match="must not fall"):
        load(file)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    made = tiny_checkpoint()
    broken = {**made.tensors, "actor.biases.0": torch.full((8,), torch.nan)}
    with pytest.raises(CheckpointError, match="The policy to save"):
        save(replace(made, tensors=broken), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_transposed_tensors_are_saved_in_order(tmp_path: Path, file: Path) -> None:
    made = load(file)
    twisted = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in made.tensors.items()}
    assert not all(v.is_contiguous() for v in twisted.values())
    save(replace(made, tensors=twisted), tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_bytes() == file.read_bytes()


def test_a_file_of_every_network_size_has_the_tensors_that_are_expected() -> None:
    sizes = {"critics": 2, "critic_hidden": (3, 4, 5), "actor_hidden": (2,)}
    made = tiny_checkpoint(network=sizes)
    shapes = expected_shapes(made.config)
    assert {k: tuple(v.shape) for k, v in made.tensors.items()} == shapes
    assert shapes["critic.weights.1"] == (2, 3, 4)  # stacked: the member comes first


# -- damaged and hostile -------------------------------------------------------------------------


@given(st.integers(0, 5000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "whole.safetensors"
    if not path.exists():
        save(tiny_checkpoint(), path)
    content = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: length % len(content)])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged"):
        load(cut)


@given(st.binary(max_size=200))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load(path)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_of_the_header_never_escapes_as_another_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "good.safetensors"
    if not path.exists():
        save(tiny_checkpoint(), path)
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    spoilt = tmp_path / "spoilt.safetensors"
    spoilt.write_bytes(content)
    try:
        loaded = load(spoilt)
    except CheckpointError:
        return
    check_tensors(loaded.config, loaded.tensors, "it")  # a harmless change, such as in a text


@pytest.mark.parametrize("length", [2**63, 2**40, 10**9])
def test_a_header_that_claims_to_be_huge_is_refused_at_once(tmp_path: Path, length: int) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load(path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    for path in (tmp_path / "model.safetensors", tmp_path / "folder" / WEIGHTS_FILE):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match="no safetensors file"):
            load(path)
        torch.save({"a": torch.zeros(1)}, path)
        with pytest.raises(CheckpointError, match="no safetensors file"):
            load(path)
    assert not (tmp_path / "exploded").exists()


def set_in(*path: str, value: Any) -> Callable[[Document], None]:
    """Change one entry of the document."""

    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def deep(levels: int) -> Any:
    space: Any = {"type": "Box"}
    for _ in range(levels):
        space = {"type": "Dict", "spaces": {"a": space}, "order": ["a"]}
    return space


HOSTILE: dict[str, Callable[[Document], Any]] = {
    "a list": lambda _: [1, 2],
    "a number": lambda _: 3,
    "empty": lambda _: {},
    "no version": drop("format_version"),
    "version as text": set_in("format_version", value="1"),
    "version as truth": set_in("format_version", value=True),
    "version zero": set_in("format_version", value=0),
    "version below zero": set_in("format_version", value=-5),
    "no network": drop("network"),
    "network as text": set_in("network", value="abc"),
    "network as number": set_in("network", value=5),
    "network as list": set_in("network", value=[1]),
    "unknown network setting": set_in("network", "surplus", value=1),
    "missing network setting": drop("network", "action_size"),
    "no critics": set_in("network", "critics", value=0),
    "negative width": set_in("network", "actor_hidden", value=[-3]),
    "width as text": set_in("network", "actor_hidden", value=["8"]),
    "no layers": set_in("network", "actor_hidden", value=[]),
    "astronomic width": set_in("network", "actor_hidden", value=[10**30]),
    "astronomic ensemble": set_in("network", "critics", value=2**62),
    "astronomic observation": set_in("network", "observation_size", value=10**15),
    "a million layers": set_in("network", "critic_hidden", value=[1] * 1_000_000),
    "min_std not a number": set_in("network", "min_std", value=float("nan")),
    "kappa infinite": set_in("selection", "kappa", value=float("inf")),
    "kappa as object": set_in("selection", "kappa", value={}),
    "no candidates": set_in("selection", "candidates", value=0),
    "gain unit negative": set_in("gain_unit", value=-1.0),
    "gain unit not a number": set_in("gain_unit", value=float("nan")),
    "gain unit infinite": set_in("gain_unit", value=float("inf")),
    "gain unit as truth": set_in("gain_unit", value=True),
    "gain unit astronomic": set_in("gain_unit", value=10**400),
    "least gain negative": set_in("selection", "least_gain", value=-0.1),
    "least gain not a number": set_in("selection", "least_gain", value=float("nan")),
    "least gain as null": set_in("selection", "least_gain", value=None),
    "gain per nat negative": set_in("selection", "gain_per_nat", value=-0.1),
    "gain per nat not a number": set_in("selection", "gain_per_nat", value=float("nan")),
    "nobody decides": set_in("selection", "deciding_candidates", value=0),
    "gain unit as text": set_in("gain_unit", value="1"),
    "no gain unit": drop("gain_unit"),
    "unknown selection": set_in("selection", "surplus", value=0),
    "unknown value scale": set_in("selection", "value_scale", value="other"),
    "space of other type": set_in("action_space", "type", value="Discrete"),
    "space without type": drop("observation_space", "type"),
    "space as null": set_in("observation_space", value=None),
    "action space is a Dict": set_in(
        "action_space", value={"type": "Dict", "spaces": {}, "order": []}
    ),
    "space order names nobody": set_in(
        "observation_space", value={"type": "Dict", "spaces": {}, "order": ["a"]}
    ),
    "space deep": set_in("observation_space", value=deep(50)),
    "space too deep": set_in("observation_space", value=deep(400)),
    "shape negative": set_in("observation_space", "shape", value=[-3]),
    "shape as text": set_in("observation_space", "shape", value="abc"),
    "shape astronomic": set_in("observation_space", "shape", value=[10**13]),
    "many spaces, each allowed": set_in(
        "observation_space",
        value={
            "type": "Dict",
            "spaces": {
                "a": {"type": "Box", "shape": [2**18], "dtype": "uint8", "low": 0, "high": 1}
            },
            "order": ["a"] * 50,
        },
    ),
    "astronomic candidates": set_in("selection", "candidates", value=10**12),
    "sizes whose product is no number of bytes": lambda document: document["network"].update(
        critic_hidden=[2**20, 2**20], critics=2**20
    ),
    "shape overflows": set_in("observation_space", "shape", value=[2**40, 2**40]),
    "dtype unknown": set_in("observation_space", "dtype", value="float33"),
    "dtype object": set_in("observation_space", "dtype", value="object"),
    "dtype text": set_in("observation_space", "dtype", value="U9"),
    "bounds not numbers": set_in("observation_space", "low", value="abc"),
    "bounds not a number": set_in("action_space", "low", value="nan"),
    "bounds of another length": set_in("action_space", "low", value=[0.0] * 7),
    "bounds crossed": set_in("action_space", "low", value=9.0),
    "actions in two dimensions": set_in("action_space", "shape", value=[1, 2]),
    "actions unbounded": set_in("action_space", "high", value="inf"),
    "sizes contradict": set_in("observation_space", "shape", value=[4]),
    "no provenance": drop("provenance"),
    "provenance as list": set_in("provenance", value=[1]),
}


@pytest.mark.parametrize("how", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_description_is_refused(file: Path, how: Callable[[Document], Any]) -> None:
    rewrite(file, document=how)
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
        load(file)


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 100_000, "\x00", "9" * 5000])
def test_a_description_that_is_no_json_is_refused(file: Path, text: str) -> None:
    save_file(load_file(file), file, metadata={METADATA_KEY: text})
    with pytest.raises(CheckpointError, match="no JSON"):
        load(file)


def test_what_the_description_says_besides_is_told(file: Path) -> None:
    rewrite(file, document=lambda document: {**document, "surplus": 1})
    with pytest.warns(GEMWarning, match=r"\['surplus'\]"):
        load(file)


def test_somebody_elses_safetensors_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="no gem-policy checkpoint: it has no 'gem_policy'"):
        load(path)


def test_a_newer_format_asks_for_an_upgrade(file: Path) -> None:
    rewrite(file, document=set_in("format_version", value=FORMAT_VERSION + 1))
    told = rf"format version {FORMAT_VERSION + 1}, this .* up to {FORMAT_VERSION}.*pip install"
    with pytest.raises(CheckpointError, match=told):
        load(file)


def test_an_older_format_is_migrated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def migrate(document: Document) -> Document:
        document["selection"]["candidates"] = document["selection"].pop("budget")
        return {**document, "format_version": 1}

    def make_old(document: Document) -> None:
        document["format_version"] = 0
        document["selection"]["budget"] = document["selection"].pop("candidates")

    expected = load(file)
    rewrite(file, document=make_old)
    with pytest.raises(CheckpointError, match="unknown format version 0"):
        load(file)
    monkeypatch.setitem(MIGRATIONS, 0, migrate)
    assert_same(load(file), expected)


@pytest.mark.parametrize("where", ["file", "folder", "empty folder"])
def test_where_nothing_is_the_message_says_what_could_be(tmp_path: Path, where: str) -> None:
    path = tmp_path if where == "empty folder" else tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*gem-policy list"):
        load(path)


# -- folders -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tiny_checkpoint(), tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_has_the_hub_layout(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert json.loads((folder / CONFIG_FILE).read_text()) == read_document(folder / WEIGHTS_FILE)


def test_a_folder_without_config_is_enough(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    assert_same(load(folder), tiny_checkpoint())


def test_a_file_that_lost_its_description_is_read_with_the_config_beside_it(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    assert_same(load(folder), tiny_checkpoint())
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"there is no {CONFIG_FILE} beside it"):
        load(folder)


def test_a_config_that_disagrees_with_the_file_is_refused(folder: Path) -> None:
    document = json.loads((folder / CONFIG_FILE).read_text())
    document["selection"]["kappa"] += 1
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"disagree. Delete {CONFIG_FILE}"):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b""])
def test_a_config_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{CONFIG_FILE} is no JSON"):
        load(folder)


def test_a_config_of_other_sizes_is_refused_by_the_tensors(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    document = json.loads((folder / CONFIG_FILE).read_text())
    document["network"]["critics"] = 7
    (folder / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"critic\.biases\.0: shape \(3, 1, 8\), expected"):
        load(folder)


# -- atomic --------------------------------------------------------------------------------------


def fail_with(code: int) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return failing


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen", "chmod"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_disk_leaves_the_old_file_and_no_litter(
    file: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, step, fail_with(code))
        with pytest.raises(CheckpointError, match=r"(?s)Could not write .*Nothing was changed"):
            save(tiny_checkpoint(seed=1), file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_disk_that_fills_up_half_way_leaves_the_old_file(file: Path) -> None:
    """A real limit, of the process, on the size of a file: the write itself comes up short."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from gem_policy.checkpoint import write_atomically\n"
        "from gem_policy.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_atomically(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except CheckpointError as error:\n    print('refused', error)"
    )
    before = file.read_bytes()
    command = [sys.executable, "-c", code, str(file)]
    told = subprocess.check_output(command, text=True, timeout=120)
    assert told.startswith("refused")
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_an_interruption_leaves_the_old_file_and_no_litter(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = file.read_bytes()
    monkeypatch.setattr(module.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_checkpoint(seed=1), file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_content_is_on_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replaced = os.fsync, os.replace
    monkeypatch.setattr(module.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(
        module.os, "replace", lambda a, b: (calls.append("replace"), replaced(a, b))[1]
    )
    write_atomically(tmp_path / "new" / "deep" / "file", b"content")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "new" / "deep" / "file").read_bytes() == b"content"


def test_a_folder_whose_config_cannot_be_written_still_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tiny_checkpoint(seed=1)

    def full(path: Path, content: bytes) -> None:
        if path.name == CONFIG_FILE:
            raise CheckpointError("disk full") from OSError("disk full")
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        with pytest.raises(CheckpointError, match="disk full"):
            save_folder(replace(newer, provenance={"dataset_id": "test/other-v0"}), folder)
    assert torch.equal(load(folder).tensors["actor.biases.0"], newer.tensors["actor.biases.0"])


def test_a_folder_interrupted_between_its_files_is_one_policy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(tiny_checkpoint(seed=1), provenance={"dataset_id": "test/other-v0"})
    for stopped in (WEIGHTS_FILE, CONFIG_FILE):
        older = load(folder)

        def stop(path: Path, content: bytes, where: str = stopped) -> None:
            if path.name == where:
                raise KeyboardInterrupt
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomically", stop)
            with pytest.raises(KeyboardInterrupt):
                save_folder(newer, folder)
        assert_same(load(folder), older if stopped == WEIGHTS_FILE else newer)


def test_an_interruption_leaves_what_describes_the_old_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may say nothing themselves: other tools drop it."""
    older = load(folder)
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)

    def stop(path: Path, content: bytes) -> None:
        if path.name == WEIGHTS_FILE:
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(module, "write_atomically", stop)
    with pytest.raises(KeyboardInterrupt):
        save_folder(tiny_checkpoint(seed=1), folder)
    assert_same(load(folder), older)


def test_a_disk_that_is_full_leaves_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(path: Path, content: bytes) -> None:
        if path.name == WEIGHTS_FILE:
            raise CheckpointError("disk full")
        write_atomically(path, content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(CheckpointError, match="disk full"):
        save_folder(replace(tiny_checkpoint(seed=1), provenance={"other": 1}), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_saved_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(tiny_checkpoint(seed=1), provenance={"dataset_id": "test/other-v0"})
    read = module._read_json

    def late(path: Path) -> Any:
        monkeypatch.setattr(module, "_read_json", read)
        found = read(path)
        save_folder(newer, folder)
        return found

    monkeypatch.setattr(module, "_read_json", late)
    assert_same(load(folder), newer)


@pytest.mark.parametrize("where", ["file", "file/inside", "/proc/nowhere/x"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="Could not write"):
        tiny_policy().save(tmp_path / where)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_place_of_the_config_is_told(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    (folder / CONFIG_FILE).mkdir()
    load(folder)
    with pytest.raises(CheckpointError, match="Could not write"):
        save_folder(tiny_checkpoint(), folder)


def test_a_target_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="Could not write"):
        save(tiny_checkpoint(), tmp_path / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_saved_file_can_be_read_by_others(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o644


def test_weights_do_not_change_when_the_file_does(file: Path) -> None:
    policy = GEMPolicy(load(file), CPU)
    batch = sample(SPACES["box"], np.random.default_rng(0), (4,))
    before, _ = policy.predict(batch, deterministic=True)
    save(tiny_checkpoint(seed=9), file)
    np.testing.assert_array_equal(policy.predict(batch, deterministic=True)[0], before)
