"""The state of a run on disk: tensors in safetensors, the rest as JSON, replaced atomically.

Apart from the deployed model, so that what resumes a run can change without breaking a policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from gem_policy.checkpoint import write_atomically
from gem_policy.errors import TrainingError

STATE_FILE = "trainer_state.safetensors"
_KEY = "gem_policy_training"


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        run: What the run is, as a JSON object; a run is only resumed as what it was.
        phase: Name of the phase under way.
        step: Updates done in it.
        tensors: Of the finished phases and of this one, by name.
    """

    run: Mapping[str, Any]
    phase: str
    step: int
    tensors: Mapping[str, Tensor]

    def own(self, phase: str) -> dict[str, Tensor]:
        """The tensors of one phase, under the names that its learner knows them by."""
        prefix = f"{phase}/"
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@runtime_checkable
class Saveable(Protocol):
    """What a phase trains, one seed or several."""

    step: int

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training on needs."""


def save_learners(
    run: Mapping[str, Any],
    phase: str,
    learners: Mapping[str, Saveable],
    folder: Path,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a run in its ``phase``: finished learners, the one at work and ``more``, if all sound.

    Raises:
        TrainingError: A weight is NaN or infinite; the state before it is untouched. The losses
            are those before the last step: what it did to the weights shows in them alone.
        CheckpointError: The file cannot be written; the state before it is untouched.
    """
    tensors = {
        f"{name}/{key}": value
        for name, learner in learners.items()
        for key, value in learner.tensors().items()
    } | dict(more or {})
    step = learners[phase].step
    broken = {k: math.nan for k, v in tensors.items() if not bool(torch.isfinite(v).all())}
    stop_if_broken(broken, phase, step, folder)
    save_state(TrainState(run, phase, step, tensors), folder)


def stop_if_broken(numbers: Mapping[str, float], phase: str, step: int, folder: Path) -> None:
    """Raise if one of the numbers is NaN or infinite.

    Raises:
        TrainingError: Some are. It names the first eight, whose names tell the seed where there
            are several.
    """
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"{broken[:8]} became NaN or infinite by update {step} of the {phase} phase. "
            f"{last_good_state(folder)} Start again in another --out with a lower learning rate or "
            "reward scale, look for extreme values in the data with `gem-policy doctor`, or leave "
            "out the seed that is named, if one is."
        )


def last_good_state(folder: Path) -> str:
    """A sentence that says where the last state of a run is; states are saved if they are good."""
    if not (folder / STATE_FILE).is_file():
        return "No state had been saved yet."
    return f"The last good state is in {folder / STATE_FILE}."


def save_state(state: TrainState, folder: Path) -> None:
    """Replace the saved state of a run, atomically.

    Raises:
        CheckpointError: The file cannot be written; the state before it is untouched.
    """
    document = {"run": state.run, "phase": state.phase, "step": state.step}
    text = json.dumps(document, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    write_atomically(folder / STATE_FILE, serialize(tensors, metadata={_KEY: text}))


def load_state(
    folder: Path, run: Mapping[str, Any], updates: Mapping[str, int]
) -> TrainState | None:
    """The saved state of the run, or None if there is none.

    Args:
        folder: Of the run.
        run: What the run is.
        updates: Of each phase.

    Raises:
        TrainingError: The state is damaged, or is that of a run with other settings or data.
    """
    if not (folder / STATE_FILE).is_file():
        return None
    state = read_state(folder)
    then, now = _flat(state.run), _flat(run)
    different = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if different:
        told = "; ".join(f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in different)
        raise TrainingError(
            f"{folder} holds a run with other settings or data ({told}). Resume with the old ones, "
            "or give another --out."
        )
    if not 0 <= state.step <= updates.get(state.phase, -1):
        raise _damaged(folder, f"update {state.step} of the phase {state.phase!r} is none")
    return state


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, each setting of its groups under a name of its own."""
    found: dict[str, Any] = {}
    for key, value in run.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            found[key] = value
    return found


def read_state(folder: Path) -> TrainState:
    """The saved state in a folder, whatever run it is of.

    Raises:
        TrainingError: It is not there or damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"There is no {STATE_FILE} in {folder}: it is no folder of a run.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as opened:
            document = json.loads((opened.metadata() or {})[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        told = {name: document[name] for name in ("run", "phase", "step")}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error
    for name, kind in {"run": dict, "phase": str, "step": int}.items():
        if type(told[name]) is not kind:
            raise _damaged(folder, f"its {name} is {told[name]!r}")
    return TrainState(**told, tensors=tensors)


def _damaged(folder: Path, why: object) -> TrainingError:
    """What is raised for a state that is none."""
    return TrainingError(
        f"{folder / STATE_FILE} is damaged ({why}). Delete it to start again from the beginning."
    )
