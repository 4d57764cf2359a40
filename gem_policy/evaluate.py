"""Scoring a policy in its environment, by Stable-Baselines3's own ``evaluate_policy``.

Every row of a report is played on the same starts: each episode is seeded by itself, and every
environment plays the same number of them whatever acts in it. Episodes are told in the order of
their starts, not in that in which they ended, so that two rows can be compared start by start.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from gem_policy._version import __version__
from gem_policy.config import require_count
from gem_policy.errors import DependencyError, SpaceError
from gem_policy.predictor import Predictor, State

CONFIDENCE = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap confidence interval.

    Attributes:
        mean: Sample mean.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Percentile bootstrap of the mean, with a fixed seed; constant samples give a point.

        Raises:
            DependencyError: scipy is not installed.
        """
        sample = np.asarray(values, dtype=np.float64)
        mean = float(sample.mean())
        if sample.size < 2 or np.ptp(sample) == 0:
            return cls(mean, mean, mean)
        try:
            from scipy.stats import bootstrap
        except ImportError as error:
            raise DependencyError(
                "Confidence intervals need scipy: pip install 'gem-policy[sb3]'"
            ) from error
        found = bootstrap(
            (sample,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        return cls(mean, float(found.low), float(found.high))


@dataclass(frozen=True)
class EpisodeRecords:
    """What happened, episode by episode, in the order of their starts.

    First the first episode of every environment, then the second of those that play one.

    Attributes:
        returns: Undiscounted sum of rewards.
        lengths: Steps of the episode.
        successes: Whether the environment ever said ``success``; empty if it never says.
        steps_to_success: Step of the first success; the episode's length where there was none.
        decision_us: Median time of ``predict`` for one observation, in microseconds.
        decision_us_p99: Its 99th percentile.
    """

    returns: list[float]
    lengths: list[int]
    successes: list[bool]
    steps_to_success: list[int]
    decision_us: float
    decision_us_p99: float


@dataclass(frozen=True)
class ReportRow:
    """One line of a report: what acted, with which settings, and how it went."""

    label: str
    settings: Mapping[str, Any]
    records: EpisodeRecords

    def summary(self) -> dict[str, Any]:
        """Means with intervals; success and steps only where the environment reports success."""
        records = self.records
        out: dict[str, Any] = {"return": asdict(Interval.of(records.returns))}
        if records.successes:
            out["success"] = asdict(Interval.of([float(s) for s in records.successes]))
            out["steps"] = asdict(Interval.of([float(s) for s in records.steps_to_success]))
        out["length"] = float(np.mean(records.lengths))
        out["decision_us"] = records.decision_us
        out["decision_us_p99"] = records.decision_us_p99
        return out


def require_playable(observation_space: gym.Space[Any]) -> None:
    """Make sure that Stable-Baselines3's vector environments take such observations.

    Raises:
        SpaceError: They do not: a Dict or Tuple lies within another.
    """
    from stable_baselines3.common.preprocessing import check_for_nested_spaces

    try:
        check_for_nested_spaces(observation_space)
    except NotImplementedError as error:
        raise SpaceError(
            f"Stable-Baselines3 cannot play an environment whose observations are nested, got "
            f"{observation_space}. Call `predict` and `env.step` in a loop of your own, or record "
            "and train without the inner Dict (gymnasium.ObservationWrapper)."
        ) from error


class _OwnStarts(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every episode, ``envs`` after the one before: its start depends on no other episode.

    Left to the environment's own random numbers it would, where steps draw some of them, too.
    """

    def __init__(self, env: gym.Env[Any, Any], envs: int) -> None:
        require_playable(env.observation_space)
        super().__init__(env)
        self._envs = envs
        self._next: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset with the next seed, which a seed given starts anew."""
        used = self._next if seed is None else seed
        self._next = None if used is None else used + self._envs
        # As SB3 does: without options an environment need not know of them.
        return self.env.reset(seed=used, **({"options": options} if options else {}))


class _Watcher:
    """`evaluate_policy`'s callback: notes the first success of every episode, and which it was."""

    def __init__(self, envs: int) -> None:
        self.first: list[int | None] = [None] * envs
        self.told = False
        self.successes: list[bool] = []
        self.steps: list[int] = []
        self._played = [0] * envs
        self._episodes: list[tuple[int, int]] = []  # which of its environment's, and which that is

    def in_order(self, values: Sequence[Any]) -> list[Any]:
        """What was told as episodes ended, in the order of their starts."""
        order = sorted(range(len(values)), key=self._episodes.__getitem__)
        return [values[k] for k in order]

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> None:
        i, info = local["i"], local["info"]
        flag = info.get("success", info.get("is_success"))
        self.told = self.told or flag is not None
        length = int(local["current_lengths"][i])
        if flag and self.first[i] is None:
            self.first[i] = length
        if local["done"]:
            first = self.first[i]
            self.successes.append(first is not None)
            self.steps.append(length if first is None else first)
            self.first[i] = None
            self._episodes.append((self._played[i], i))
            self._played[i] += 1


def rollout(
    predictor: Predictor,
    make: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    envs: int,
    seed: int,
    deterministic: bool = True,
    batched: bool = False,
    progress: Callable[[], None] | None = None,
) -> EpisodeRecords:
    """Play episodes through SB3's ``evaluate_policy``.

    Args:
        predictor: What acts.
        make: Makes one environment.
        episodes: Episodes to play.
        envs: Environments side by side.
        seed: The k-th episode of environment i starts from seed + i + k * envs.
        deterministic: Passed to ``predict``.
        batched: Decide for all environments at once, see `Predictor.row_by_row`.
        progress: Called after every finished episode.

    Raises:
        DependencyError: Stable-Baselines3 is not installed.
        SpaceError: It cannot play the environment, see `require_playable`.
        ConfigError: A count is below 1, or the seed below 0.
    """
    require_count("episodes", episodes)
    require_count("envs", envs)
    require_count("seed", seed, 0)
    envs, seed = int(min(envs, episodes)), int(seed)
    try:
        from stable_baselines3.common.evaluation import evaluate_policy
        from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
    except ImportError as error:
        raise DependencyError(
            "Evaluation needs Stable-Baselines3: pip install 'gem-policy[sb3]'"
        ) from error
    venv = VecMonitor(DummyVecEnv([lambda: _OwnStarts(make(), envs)] * envs))
    try:
        venv.seed(seed)
        watcher = _Watcher(venv.num_envs)

        def callback(local: dict[str, Any], world: dict[str, Any]) -> None:
            watcher(local, world)
            if progress is not None and local["done"]:
                progress()

        with _row_by_row(predictor, not batched):
            returns, lengths = evaluate_policy(
                predictor,
                venv,
                n_eval_episodes=episodes,
                deterministic=deterministic,
                callback=callback,
                return_episode_rewards=True,
            )
        timings = time_decisions(predictor, venv.reset(), deterministic)
    finally:
        venv.close()
    median, high = np.percentile(timings, [50, 99])
    told = watcher.told
    return EpisodeRecords(
        [float(r) for r in watcher.in_order(returns)],  # type: ignore[arg-type]
        [int(n) for n in watcher.in_order(lengths)],  # type: ignore[arg-type]
        watcher.in_order(watcher.successes) if told else [],
        watcher.in_order(watcher.steps) if told else [],
        float(median),
        float(high),
    )


@contextlib.contextmanager
def _row_by_row(predictor: Predictor, wanted: bool) -> Iterator[None]:
    """Have the predictor decide so for a while."""
    before = predictor.row_by_row
    predictor.row_by_row = wanted
    try:
        yield
    finally:
        predictor.row_by_row = before


def time_decisions(
    predictor: Predictor, observations: Any, deterministic: bool = True, repeats: int = 200
) -> NDArray[np.float64]:
    """Microseconds of each of ``repeats`` calls of ``predict`` for one observation."""
    one = (
        {key: value[0] for key, value in observations.items()}
        if isinstance(observations, dict)
        else observations[0]
    )
    state: State = None
    times = np.empty(repeats)
    for k in range(repeats + 20):
        start = time.perf_counter()
        _, state = predictor.predict(one, state, deterministic=deterministic)
        if k >= 20:  # the first calls warm caches
            times[k - 20] = (time.perf_counter() - start) * 1e6
    return times


def machine() -> dict[str, Any]:
    """What a timing depends on; names no host."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "gem-policy": __version__,
    }
