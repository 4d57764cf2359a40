"""One safetensors file with everything that deployment needs, read strictly and written atomically.

The file holds the tensors of actor, behavior model and critics, the observation statistics, the
action bounds and the calibration of the behavior density, and one metadata key, ``gem_policy``,
with a JSON document: format version, settings, spaces and provenance. One key only, because
safetensors orders several differently from process to process and equal checkpoints should be
equal files. No pickle is read or written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gem_policy import spaces as space_json
from gem_policy.config import (
    NetworkConfig,
    SelectionConfig,
    from_mapping,
    make_plain,
    require_number,
)
from gem_policy.critics import build_critics
from gem_policy.errors import CheckpointError, GEMError, GEMWarning
from gem_policy.formats import FORMAT_VERSION, migrated, require_known_version
from gem_policy.networks import build_actor, build_behavior

METADATA_KEY = "gem_policy"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CALIBRATION_POINTS = 1001
DOCUMENT_KEYS = {
    "format_version",
    "network",
    "selection",
    "observation_space",
    "action_space",
    "gain_unit",
    "provenance",
}
POSITIVE = ("observation.std", "critic.units.advantage")  # what is divided by


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is: its networks, its spaces and how it selects actions by default.

    Attributes:
        network: The networks' sizes.
        selection: Default settings of selection.
        observation_space: In environment units.
        action_space: In environment units.
        gain_unit: What ``least_gain`` and ``gain_per_nat`` of `SelectionConfig` count in, in the
            critics' units: a typical difference between the values of the data's actions. The
            trainer measures it; see `gem_policy.training.gain_unit`. 0: not known, as in files of
            format 4 and before.
    """

    network: NetworkConfig
    selection: SelectionConfig
    observation_space: spaces.Space[Any]
    action_space: spaces.Box
    gain_unit: float = 0.0

    def __post_init__(self) -> None:
        make_plain(self)
        require_number("gain_unit", self.gain_unit, "a finite number >= 0", 0, math.inf)


@dataclass(frozen=True)
class Checkpoint:
    """A policy as data.

    Attributes:
        config: Networks, default selection settings and spaces.
        tensors: Every tensor, by name; see `expected_shapes`.
        provenance: JSON object: dataset, recipe, environment, training settings, library
            versions, reference scores and measured returns, as far as they are known.
    """

    config: PolicyConfig
    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def expected_shapes(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint with this config must hold.

    Raises:
        CheckpointError: One of them would be larger than any tensor can be.
    """
    try:
        with torch.device("meta"):
            modules = {
                "actor": build_actor(config.network),
                "behavior": build_behavior(config.network),
                "critic": build_critics(config.network),
            }
    except RuntimeError as error:
        raise CheckpointError(f"No machine holds networks of these sizes: {error}.") from error
    shapes = {
        f"{name}.{key}": tuple(value.shape)
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    observation, action = (config.network.observation_size,), (config.network.action_size,)
    shapes |= {"observation.mean": observation, "observation.std": observation}
    shapes |= {"action.low": action, "action.high": action}
    shapes["calibration.log_behavior"] = (CALIBRATION_POINTS,)
    return shapes


def to_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """The JSON document of a checkpoint."""
    config = checkpoint.config
    return {
        "format_version": FORMAT_VERSION,
        "network": dataclasses.asdict(config.network),
        "selection": dataclasses.asdict(config.selection),
        "observation_space": space_json.to_json(config.observation_space),
        "action_space": space_json.to_json(config.action_space),
        "gain_unit": config.gain_unit,
        "provenance": dict(checkpoint.provenance),
    }


def from_document(document: Any, source: str) -> tuple[PolicyConfig, dict[str, Any]]:
    """Config and provenance from a checkpoint's JSON document, of this or an older format.

    Raises:
        CheckpointError: It is no such document, is of a newer format, or is inconsistent.
    """
    require_known_version(document, source)
    try:
        document = migrated(document)
        network = from_mapping(NetworkConfig, document["network"], "network")
        selection = from_mapping(SelectionConfig, document["selection"], "selection")
        observation_space = space_json.from_json(document["observation_space"])
        action_space = space_json.action_box(space_json.from_json(document["action_space"]))
        sizes = (space_json.observation_size(observation_space), action_space.shape[0])
        provenance, gain_unit = document["provenance"], document["gain_unit"]
        config = PolicyConfig(network, selection, observation_space, action_space, gain_unit)
    except (GEMError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} has an unreadable description: {error}") from error
    if sizes != (network.observation_size, network.action_size):
        raise CheckpointError(
            f"{source} contradicts itself: its spaces have (observation, action) sizes {sizes}, "
            f"its networks {(network.observation_size, network.action_size)}."
        )
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{source} has a provenance that is no JSON object.")
    unknown = sorted(set(document) - DOCUMENT_KEYS)
    if unknown:
        warnings.warn(
            f"{source} says {unknown} of which this gem-policy knows nothing; it goes on without.",
            GEMWarning,
            stacklevel=2,
        )
    return config, provenance


def check_tensors(config: PolicyConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise one `CheckpointError` that lists everything wrong with the tensors."""
    expected = expected_shapes(config)
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"not expected: {name}" for name in sorted(tensors) if name not in expected]
    for name in sorted(set(expected) & set(tensors)):
        tensor = tensors[name]
        if tuple(tensor.shape) != expected[name]:
            problems.append(f"{name}: shape {tuple(tensor.shape)}, expected {expected[name]}")
        elif tensor.dtype != torch.float32:
            problems.append(f"{name}: dtype {tensor.dtype}, expected torch.float32")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name}: has NaN or infinite values")
        elif name in POSITIVE and not bool((tensor > 0).all()):
            problems.append(f"{name}: must be positive")
    if not problems:
        low, high = tensors["action.low"].numpy(), tensors["action.high"].numpy()
        box = config.action_space
        if (low != box.low.astype(low.dtype)).any() or (high != box.high.astype(high.dtype)).any():
            problems.append("action.low, action.high: differ from the action space")
        if bool((tensors["calibration.log_behavior"].diff() < 0).any()):
            problems.append("calibration.log_behavior: must not fall")
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{source} does not hold what its settings call for:\n  {listed}\n"
            "Get the file again, or save it again with the gem-policy that made it."
        )


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint as one file, atomically: it is there in whole, or not at all.

    Raises:
        CheckpointError: The tensors do not fit the config, the provenance is no JSON, or the file
            cannot be written.
    """
    write_atomically(path, to_bytes(checkpoint))


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of the file."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    check_tensors(checkpoint.config, tensors, "The policy to save")
    content: bytes = serialize(tensors, metadata={METADATA_KEY: _to_text(checkpoint)})
    return content


def _to_text(checkpoint: Checkpoint, indent: int | None = None) -> str:
    """The description as JSON.

    Raises:
        CheckpointError: It holds what JSON does not know, such as NaN.
    """
    try:
        document = to_document(checkpoint)
        return json.dumps(document, sort_keys=True, indent=indent, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"The settings or the provenance of this policy are no JSON: {error}. NaN, infinite "
            "numbers and Python objects cannot be saved: leave them out, or give their text."
        ) from error


def save_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the Hugging Face layout: ``model.safetensors`` and its description, ``config.json``.

    Whoever reads meanwhile, or after an interruption, finds the old or the new policy.

    Raises:
        CheckpointError: As by `save`.
    """
    content, text = to_bytes(checkpoint), _to_text(checkpoint, indent=1)
    config = folder / CONFIG_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = config.read_bytes() if config.exists() else None
        # Before the weights change: an old description beside new ones is refused, none is not.
        config.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"Could not write {folder}: {error}. Nothing was changed.") from error
    try:
        write_atomically(folder / WEIGHTS_FILE, content)
    except BaseException:  # an interruption, too: the old weights may not describe themselves
        if before is not None:
            with contextlib.suppress(CheckpointError):
                write_atomically(config, before)
        raise
    try:
        write_atomically(config, text.encode())
    except CheckpointError as error:
        raise CheckpointError(
            f"The policy was written to {folder}, but not the {CONFIG_FILE} beside it, which other "
            f"tools read: {error.__cause__}."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write next to the target, flush to disk, then rename.

    Raises:
        CheckpointError: No such folder, no permission, disk full; the old file is untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_unfinished_prefix(path))
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is private; a checkpoint is an ordinary file
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"Could not write {path}: {error}. Nothing was changed.") from error
    finally:  # after an interruption, too
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def remove_unfinished(path: Path) -> None:
    """Remove what `write_atomically` left beside ``path`` when its process was killed.

    Only for who knows that nobody is writing ``path`` now.
    """
    prefix = glob.escape(_unfinished_prefix(path))
    for left in path.parent.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


def _unfinished_prefix(path: Path) -> str:
    """How the names of the files begin that `write_atomically` makes on its way to ``path``."""
    return f".{path.name}."


def load(path: Path) -> Checkpoint:
    """Read a checkpoint from a file, or from a folder with ``model.safetensors``, to the CPU.

    Raises:
        CheckpointError: Not there, damaged, of a newer format, or not exactly what its settings
            call for; every missing, extra, mis-shaped and non-finite tensor is listed.
    """
    try:
        return _load(path)
    except _Disagreement:  # or it was saved between one read and the other
        return _load(path)


class _Disagreement(CheckpointError):
    """A file and the description beside it say different things."""


def _load(path: Path) -> Checkpoint:
    file, sidecar = path, None
    if path.is_dir():
        file, config = path / WEIGHTS_FILE, path / CONFIG_FILE
        sidecar = _read_json(config)
    if not file.is_file():
        raise CheckpointError(
            f"There is no checkpoint at {file}. Give a .safetensors file, a folder with "
            f"{WEIGHTS_FILE}, or one of the names that `gem-policy list` shows."
        )
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            document = _document(opened.metadata(), sidecar, file)
            config_, provenance = from_document(document, str(file))
            expected = expected_shapes(config_)
            # Shapes come from the header: a hostile file is refused before it costs memory.
            names = set(opened.keys())
            tensors = {
                name: opened.get_tensor(name)
                if tuple(opened.get_slice(name).get_shape()) == expected.get(name)
                else torch.empty(opened.get_slice(name).get_shape(), device="meta")
                for name in names
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or no safetensors file: {error}. Get it again."
        ) from error
    check_tensors(config_, tensors, str(file))
    return Checkpoint(config_, tensors, provenance)


def _document(metadata: Mapping[str, str] | None, sidecar: Any, file: Path) -> Any:
    """The description inside the file, or beside it where other tools dropped the inner one."""
    inner = (metadata or {}).get(METADATA_KEY)
    if inner is None:
        if sidecar is None:
            raise CheckpointError(
                f"{file} is a safetensors file, but no gem-policy checkpoint: it has no "
                f"{METADATA_KEY!r} metadata and there is no {CONFIG_FILE} beside it."
            )
        return sidecar
    try:
        document = json.loads(inner)
    except (ValueError, RecursionError) as error:  # integers too long to read among them
        raise CheckpointError(f"The description inside {file} is no JSON: {error}.") from error
    if sidecar is not None and sidecar != document:
        raise _Disagreement(
            f"{file} and the {CONFIG_FILE} beside it disagree. Delete {CONFIG_FILE} to use what "
            "the file says; settings are changed by arguments of `load`, not by editing it."
        )
    return document


def _read_json(path: Path) -> Any:
    """What a file holds, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}.") from error
