"""Other people's policies and demonstrations: where they are, and how to read them.

They are not part of this package. `SOURCES` says what to download, under which license, and what
the file's checksum must be; `convert` turns the downloaded originals into `.npz` files of plain
arrays, which the recipes read. Pickles are decoded by a reader that can build nothing but arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError
from gem_policy.training.atomic import write_atomically
from gem_policy.training.unpickling import named_arrays, read_pickle

Array = NDArray[Any]
Arrays = dict[str, Array]

HINT = "`gem-policy datasets sources` says what to download and converts it."


@dataclass(frozen=True)
class Original:
    """One public file.

    Attributes:
        path: Inside of its repository.
        sha256: Of its content.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """What one file of arrays is made from.

    Attributes:
        target: Where the arrays go, relative to the folder of sources.
        repository: Owner and name on GitHub.
        commit: At which the originals have these checksums.
        license: Of the originals.
        originals: One file or two.
        reader: From the contents of the originals to the arrays.
    """

    target: str
    repository: str
    commit: str
    license: str
    originals: tuple[Original, ...]
    reader: Callable[..., Arrays]

    def urls(self) -> tuple[str, ...]:
        """Where to download the originals."""
        base = f"https://github.com/{self.repository}/raw/{self.commit}"
        return tuple(f"{base}/{original.path}" for original in self.originals)


def read_arrays(folder: Path | None, target: str) -> Arrays:
    """The arrays of a source.

    Args:
        folder: Of sources; they may also lie in its subfolder `raw`.
        target: As in `SOURCES`.

    Raises:
        DatasetError: if the file is not there or not a file of plain arrays.
    """
    if folder is None:
        raise DatasetError(f"`{target}` is needed, and no folder of sources was given. {HINT}")
    for path in (folder / target, folder / "raw" / target):
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return {name: file[name] for name in file.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise DatasetError(f"{path} is not a file of plain arrays ({error}).") from error
    raise DatasetError(f"{folder} has no `{target}`. {HINT}")


def convert(downloads: Path, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turn downloaded originals into files of plain arrays.

    Args:
        downloads: Holds the originals: clones or archives of the repositories, or single files
            at the paths that they have in their repositories.
        folder: Where the arrays go.

    Returns:
        Targets that were written, and targets whose originals are not in `downloads`.

    Raises:
        DatasetError: if an original is damaged or not the one that is described here, or none is
            there.
    """
    written, missing = [], []
    for source in SOURCES:
        found = [_find(downloads, source, original) for original in source.originals]
        contents = [path.read_bytes() for path in found if path is not None]
        if len(contents) < len(found):
            missing.append(source.target)
            continue
        for original, content in zip(source.originals, contents, strict=True):
            got = hashlib.sha256(content).hexdigest()
            if got != original.sha256:
                raise DatasetError(
                    f"{original.path} has the checksum {got}, expected {original.sha256}: it is "
                    f"damaged or another version. Download it from {source.urls()[0]}."
                )
        arrays = source.reader(*contents)
        path = folder / source.target
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        written.append(source.target)
    if not written:
        raise DatasetError(
            f"{downloads} holds none of the originals. `gem-policy datasets sources` says what to "
            "download."
        )
    return tuple(written), tuple(missing)


def read_hand_policy(pickled: bytes) -> Arrays:
    """A Gaussian policy of `mjrl`: three layers, and shifts and scales around them."""
    arrays = dict(named_arrays(read_pickle(pickled)))
    named = {f"W{i}": f"model.fc_layers.{i}.weight" for i in range(3)}
    named |= {f"b{i}": f"model.fc_layers.{i}.bias" for i in range(3)}
    chosen = _pick(arrays, {**named, "log_std": "log_std", "log_std_val": "log_std_val"})
    for name in ("in_shift", "in_scale", "out_shift", "out_scale"):
        # The first is what the second was before it lost digits.
        stored = arrays.get(f"model.transformations.{name}", arrays.get(f"model.{name}"))
        chosen |= _pick({name: stored} if stored is not None else {}, {name: name})
        chosen[name] = chosen[name].astype(np.float64)
    return chosen


def read_demonstrations(pickled: bytes) -> Arrays:
    """Demonstrations of the door: a list of dicts of arrays, laid end to end."""
    paths = read_pickle(pickled)
    if not isinstance(paths, list) or not all(isinstance(path, dict) for path in paths):
        raise DatasetError("Demonstrations must be a list of dicts; this is another file.")
    arrays = [dict(named_arrays(path)) for path in paths]
    names = {name: name for name in ("observations", "actions", "rewards")}
    chosen = [_pick(path, names) for path in arrays]
    starts = {f"init_{n}": f"init_state_dict.{n}" for n in ("qpos", "qvel", "door_body_pos")}
    begun = [_pick(path, starts) for path in arrays]
    return {
        "episode_lengths": np.array([len(path["rewards"]) for path in chosen], dtype=np.int64),
        **{name: np.concatenate([path[name] for path in chosen]) for name in names},
        **{name: np.stack([path[name] for path in begun]) for name in starts},
    }


def read_ant(saved: bytes) -> Arrays:
    """The goal-reaching ant of D4RL: an `rlkit` policy inside of a training snapshot."""
    arrays = dict(named_arrays(read_pickle(saved)))
    layers = {"0": "fc0", "1": "fc1", "2": "last_fc"}
    named = {}
    for short, long in layers.items():
        named[f"W{short}"] = f"exploration/policy.{long}.weight"
        named[f"b{short}"] = f"exploration/policy.{long}.bias"
    named["log_std_W"] = "exploration/policy.last_fc_log_std.weight"
    named["log_std_b"] = "exploration/policy.last_fc_log_std.bias"
    return _pick(arrays, named)


def read_agent(archive: bytes, normalization: bytes | None = None) -> Arrays:
    """An agent that Stable-Baselines3 saved, and the statistics of its `VecNormalize`."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file:
            about = json.loads(file.read("data"))
            state = dict(named_arrays(read_pickle(file.read("policy.pth"))))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DatasetError(f"This is not an agent of Stable-Baselines3 ({error}).") from error
    squash = "actor.mu.weight" in state
    if squash:
        layers = {"0": "actor.latent_pi.0", "1": "actor.latent_pi.2", "2": "actor.mu"}
        named = {"log_std_W": "actor.log_std.weight", "log_std_b": "actor.log_std.bias"}
    else:
        net = "mlp_extractor.policy_net"
        layers = {"0": f"{net}.0", "1": f"{net}.2", "2": "action_net"}
        named = {"log_std": "log_std"}
    for short, long in layers.items():
        named[f"W{short}"], named[f"b{short}"] = f"{long}.weight", f"{long}.bias"
    arrays = _pick(state, named)
    # Its settings are pickled, but their text beside names the activation where it was chosen.
    chosen = str(about.get("policy_kwargs", {}).get("activation_fn", ""))
    relu = "ReLU" in chosen if chosen else squash
    arrays |= {"activation": np.array("relu" if relu else "tanh"), "squash": np.array(squash)}
    if normalization is not None:
        stored = dict(named_arrays(read_pickle(normalization)))
        arrays |= _pick(
            stored,
            {
                "obs_mean": "obs_rms.mean",
                "obs_var": "obs_rms.var",
                "clip_obs": "clip_obs",
                "epsilon": "epsilon",
            },
        )
    return arrays


def _pick(arrays: Mapping[str, Array], names: Mapping[str, str]) -> Arrays:
    missing = [name for name in names.values() if name not in arrays]
    if missing:
        raise DatasetError(
            f"The file has no {', '.join(missing)}: it is another file than the one described, "
            "or of another version."
        )
    return {short: np.array(arrays[long], order="C") for short, long in names.items()}


def _find(downloads: Path, source: Source, original: Original) -> Path | None:
    name = source.repository.partition("/")[2]
    places = [downloads, *sorted(downloads.glob(f"{name}*"))]
    return next((p / original.path for p in places if (p / original.path).is_file()), None)


_HAND = ("aravindr93/hand_dapg", "9a1de23df6574e1b94e1da742e3326eb1f61c013", "Apache-2.0")
_AGENTS = ("DLR-RM/rl-trained-agents", "cd35bde610f4045bf2e0731c8f4c88d22df8fc85", "MIT")
_ANT = ("swat-lab-optimization/RIGAA_tool", "d8764c33dae4459c7da79446f6de3d87b9cae9d7")
_ANT_LICENSE = "Apache-2.0 (D4RL's code; its data is CC BY 4.0)"

_HAND_POLICIES = {
    "door": "288dd2131b905e40852d9eb032595bb9b3aa90b0502e9341e6b0e128b803478f",
    "pen": "061dba4907a76b83139ae5a8d0809faa9774dd028d12ce869036b620bd728740",
    "hammer": "14c6b603af09acf87247f8b45d58f9671790d8e4ca0c48c8db5e1f7c98126ef4",
}
# Of the archive and, where the agent normalizes its observations, of `vecnormalize.pkl`.
_AGENT_FILES: dict[tuple[str, str], tuple[str, ...]] = {
    ("tqc", "HalfCheetah"): ("836e9f4d641c68c06e6dbe6c06f907eda943627ef1cece324bac4d007a757b9f",),
    ("tqc", "Hopper"): ("ad04cf1b354adb8810cd2a98f45f3c5179bd5c6d9fa83a1a7b8c1157094417e3",),
    ("tqc", "Walker2d"): ("329d4c4e0983a53e67c27cd3f69a2d3a8bb3e93aeb2de639ba68f9b6af5eb7e1",),
    ("sac", "HalfCheetah"): ("63ac27ae0c2ffe0428ded7bf93c6981c2f638352ae9d2770afc55c9ce2fdfba8",),
    ("sac", "Hopper"): ("0825339a734891abbf0d1917f38092729e68cca58b1102de7c520a65648ec1e0",),
    ("sac", "Walker2d"): ("dfaaaeb48b06b70cab6092f8968fcf0966f0e0ca0fd163099b2d6cbb351dbed4",),
    ("ppo", "HalfCheetah"): (
        "9355d4bbf5ec376928a04d932da06ad4d9853e7c6fb31e18cf33402b35b8c928",
        "3cf58648c8d025a8d56142ca9599d95672ae546b3c2b058a2891f36de463652b",
    ),
    ("ppo", "Hopper"): (
        "01de9d810c0e8b885f1e267db3cd9a352d508be63214554a598f4c6b55137e37",
        "c6a5b79a98e2e435e38ec95e03027911cae1680f3b957b29ff563dd7b1b50019",
    ),
    ("ppo", "Walker2d"): (
        "fe779231c562fde585bbe96a56277a08e117e7d5a5afa4bfb289d260fc7299d7",
        "940b7d5eddbe3d0d20cc86434e4bfbe2e142f607a1e5ee98a2491c7d6d371295",
    ),
    ("a2c", "HalfCheetah"): (
        "52f7456ef0bff4da450a651b181c8621f86e133e8160978956d0cbe1d3a4ae29",
        "7e7bec971426bac76b3782557b5f06bbf88da2b43d9f1e3bcee31ac7c264136a",
    ),
    ("a2c", "Hopper"): (
        "0cd185147f6fc7d5594ac94f4c266614a3ac133a02354fba4ed35a8692976039",
        "99995e84a1f0fcc5e6cd0a443ea9354954f9f36303ba5263e28766297ba28d16",
    ),
    ("a2c", "Walker2d"): (
        "e19151d1d20e0bef0c8759612866ff0aa83713f27752ae5175c8adc91827e715",
        "34fb697d2b6635e427d8e3c7f1d0537d87c54d854f26234dde79e0f5b1ff7a1f",
    ),
}


def _agent(algorithm: str, body: str, sums: tuple[str, ...]) -> Source:
    stem = f"{algorithm}/{body}-v3_1/{body}-v3"
    paths = (f"{stem}.zip", f"{stem}/vecnormalize.pkl")
    originals = tuple(Original(path, sha) for path, sha in zip(paths, sums, strict=False))
    return Source(f"sb3_agents/{algorithm}-{body}-v3.npz", *_AGENTS, originals, read_agent)


SOURCES: tuple[Source, ...] = (
    Source(
        "hand_dapg/door_human_demos.npz",
        *_HAND,
        (
            Original(
                "dapg/demonstrations/door-v0_demos.pickle",
                "d6ec9a090261f901e5c9bf10082799e30c8d34c3f28aef4026e492a1aefc96c3",
            ),
        ),
        read_demonstrations,
    ),
    *(
        Source(
            f"hand_dapg/{task}_expert_policy.npz",
            *_HAND,
            (Original(f"dapg/policies/{task}-v0.pickle", sha),),
            read_hand_policy,
        )
        for task, sha in _HAND_POLICIES.items()
    ),
    Source(
        "d4rl_ant_controller/ant_goal_policy.npz",
        *_ANT,
        _ANT_LICENSE,
        (
            Original(
                "d4rl/ant_hierarch_pol.pkl",
                "692d3869a4a213cd1db141fcf147fe2cb0ca1969594bab1cc3f44659789f44aa",
            ),
        ),
        read_ant,
    ),
    *(_agent(algorithm, body, sums) for (algorithm, body), sums in _AGENT_FILES.items()),
)
