"""Files of every past format stay loadable, and decide as they did.

`golden/format_1.safetensors` was written by the release that introduced format version 1, and
`golden/format_1.json` holds what it decided for fixed observations.

If a test here fails and nobody meant to change what a checkpoint means: the change is wrong.
If it is meant:

1. raise `FORMAT_VERSION` in `gem_policy/formats.py` and give `MIGRATIONS` the step from the
   version before, so that the old golden file still loads and still decides the same;
2. run `python tests/test_golden.py`, which writes the golden files of the new version and leaves
   the old ones alone;
3. say in CHANGELOG.md what changed for users.

Numbers are compared with a tolerance, because processors round differently; the chosen candidate
only where its score stands apart from the next.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import tiny_checkpoint

from gem_policy.checkpoint import load, save
from gem_policy.config import SelectionConfig
from gem_policy.formats import FORMAT_VERSION
from gem_policy.policy import GEMPolicy

GOLDEN = Path(__file__).parent / "golden"
MARGIN = 1e-3  # of the best score over the next, from which the choice is certain
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "raw": {"value_scale": "raw", "kappa": 2.0, "support_weight": 0.3},
    "paired": {"bound": "paired", "candidates": 30},
    "values alone": {"support_weight": 0.0, "kappa": 0.0, "candidates": 5},
}


def decisions(policy: GEMPolicy, observations: torch.Tensor) -> dict[str, Any]:
    """What the policy decides under every rule, as plain numbers."""
    out: dict[str, Any] = {}
    own = policy.selection
    for name, changes in RULES.items():
        policy.selection = own.replace(**changes)
        made = policy.decide(observations)
        out[name] = {
            "action": made.action.tolist(),
            "index": made.index.tolist(),
            "scores": made.scores.tolist(),
        }
    policy.selection = own
    return out


def write() -> None:
    """Write the golden files of the present format version, if there are none yet."""
    path = GOLDEN / f"format_{FORMAT_VERSION}.safetensors"
    if path.exists():
        raise SystemExit(f"{path.name} is there already: a golden file is never rewritten.")
    space = gym.spaces.Dict(
        {
            "observation": gym.spaces.Box(-np.inf, np.inf, (3,), np.float64),
            "desired_goal": gym.spaces.Box(-5, 5, (2,), np.float32),
        }
    )
    chosen = SelectionConfig(
        candidates=12, kappa=0.7, support_weight=1.5, bound="lower", deciding_candidates=5
    )
    provenance = {"dataset_id": "test/golden-v0", "versions": {"gem-policy": "0.1.0"}}
    network = {"critic_lookahead": True, "step_hidden": (6,), "critic_frequencies": 2}
    save(tiny_checkpoint(space, selection=chosen, provenance=provenance, network=network), path)
    observations = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    policy = GEMPolicy(load(path), torch.device("cpu"))
    recorded = {
        "observations": observations.tolist(),
        "decisions": decisions(policy, observations),
        "selection": vars(chosen),
        "provenance": provenance,
    }
    path.with_suffix(".json").write_text(json.dumps(recorded) + "\n")


VERSIONS = list(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_every_format_decides_as_it_did(version: int) -> None:
    path = GOLDEN / f"format_{version}.safetensors"
    recorded = json.loads(path.with_suffix(".json").read_text())
    policy = GEMPolicy(load(path), torch.device("cpu"))
    assert vars(policy.selection).items() >= recorded["selection"].items()
    if version < 5:  # nobody had measured the unit: any gain counts, whatever is asked for
        assert policy.selection.least_gain == policy.config.gain_unit == 0
    if version < 6:
        assert policy.selection.gain_per_nat == 0
    if version < 7:
        assert policy.selection.deciding_candidates is None
    assert policy.provenance == recorded["provenance"]
    got = decisions(policy, torch.tensor(recorded["observations"]))
    certain = 0
    for name, expected in recorded["decisions"].items():
        np.testing.assert_allclose(got[name]["scores"], expected["scores"], rtol=1e-3, atol=1e-3)
        for i, scores in enumerate(expected["scores"]):
            best, second = sorted(scores, reverse=True)[:2]
            if best - second > MARGIN:
                certain += 1
                assert got[name]["index"][i] == expected["index"][i], (name, i)
                np.testing.assert_allclose(
                    got[name]["action"][i], expected["action"][i], rtol=1e-4, atol=1e-5
                )
    assert certain >= 0.8 * 6 * len(RULES), "too few decisions are certain to test anything"


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_are_small(version: int) -> None:
    for suffix in (".safetensors", ".json"):
        assert (GOLDEN / f"format_{version}{suffix}").stat().st_size < 60_000


def test_the_present_format_is_written_as_it_was(tmp_path: Path) -> None:
    path = GOLDEN / f"format_{FORMAT_VERSION}.safetensors"
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


if __name__ == "__main__":
    write()
