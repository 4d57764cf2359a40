"""Hypothesis strategies: batch shapes, mixtures, candidate sets, settings, spaces, observations.

Numbers come as numpy arrays, drawn from named regimes; a regime is drawn first, so that ordinary
values, ties, huge values, denormals and non-finite ones all turn up often.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gem_policy.candidates import CandidateSet
from gem_policy.config import BOUNDS, VALUE_SCALES, SelectionConfig
from gem_policy.mixture import GaussianMixture

MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)  # the smallest that is no denormal

batches = st.sampled_from([(), (3,), (3, 2), (0,)])
filled_batches = st.sampled_from([(), (1,), (3,), (3, 2)])
seeds = st.integers(0, 2**31 - 1)
kappas = st.floats(0, 10)


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32)


REGIMES: dict[str, st.SearchStrategy[float]] = {
    "ordinary": _floats(-100, 100),
    "ties": st.sampled_from([-1.0, 0.0, 0.0, 2.0]),
    "constant": st.just(3.25),
    "huge": st.one_of(_floats(1e30, MAX), _floats(-MAX, -1e30), _floats(-1, 1)),
    "denormal": _floats(-TINY, TINY),
    "broken": st.sampled_from([math.nan, math.inf, -math.inf, -2.0, 0.5, 1.0]),
}
FINITE = tuple(name for name in REGIMES if name != "broken")
MODERATE = ("ordinary", "ties", "constant")


def arrays(
    shape: Sequence[int], regimes: Sequence[str] = FINITE
) -> st.SearchStrategy[np.ndarray[Any, np.dtype[np.float32]]]:
    """float32 arrays of a shape, every element of one regime."""
    return st.sampled_from(list(regimes)).flatmap(
        lambda regime: hnp.arrays(np.float32, tuple(shape), elements=REGIMES[regime])
    )


@st.composite
def mixtures(
    draw: st.DrawFn,
    batch: st.SearchStrategy[tuple[int, ...]] = filled_batches,
    components: st.SearchStrategy[int] = st.integers(1, 4),  # noqa: B008
    actions: st.SearchStrategy[int] = st.integers(1, 3),  # noqa: B008
) -> GaussianMixture:
    """Mixtures with means in the box: also one component, weights of zero, tiny deviations."""
    shape, k, a = draw(batch), draw(components), draw(actions)
    logits = draw(hnp.arrays(np.float32, (*shape, k), elements=_floats(-6, 6)))
    dead = draw(hnp.arrays(np.bool_, (*shape, k), elements=st.booleans()))
    if k > 1 and draw(st.booleans()):
        dead[..., 0] = False
        logits = np.where(dead, np.float32(-1e30), logits)
    mean = draw(hnp.arrays(np.float32, (*shape, k, a), elements=_floats(-1, 1)))
    low = draw(st.sampled_from([math.log(0.05), math.log(1e-4)]))
    log_std = draw(hnp.arrays(np.float32, (*shape, k, a), elements=_floats(low, 0.5)))
    return GaussianMixture(*(torch.from_numpy(x.copy()) for x in (logits, mean, log_std)))


@st.composite
def candidate_sets(
    draw: st.DrawFn,
    batch: st.SearchStrategy[tuple[int, ...]] = filled_batches,
    regimes: Sequence[str] = tuple(REGIMES),
    members: st.SearchStrategy[int] = st.integers(1, 5),  # noqa: B008
    candidates: st.SearchStrategy[int] = st.integers(1, 9),  # noqa: B008
) -> CandidateSet:
    """Candidate sets with values and densities of any regime: E and N from 1 up."""
    shape, e, n = draw(batch), draw(members), draw(candidates)
    q = draw(arrays((e, *shape, n), regimes))
    density = draw(arrays((*shape, n), regimes))
    return candidate_set(q, density)


def candidate_set(q: Any, log_behavior: Any, action_size: int = 2) -> CandidateSet:
    """A candidate set with the given numbers; its actions are distinct and in the box."""
    density = torch.as_tensor(log_behavior, dtype=torch.float32)
    count = density.shape[-1]
    actions = torch.linspace(-1, 1, count * action_size).reshape(count, action_size)
    return CandidateSet(
        actions.expand(*density.shape, action_size),
        torch.arange(count).expand(density.shape),
        torch.as_tensor(q, dtype=torch.float32),
        density,
    )


selections = st.builds(
    SelectionConfig,
    candidates=st.integers(1, 40),
    kappa=kappas,
    support_weight=st.one_of(st.just(0.0), st.floats(0, 20)),
    value_scale=st.sampled_from(VALUE_SCALES),
    temperature=st.one_of(st.just(0.0), st.floats(1e-3, 10)),
    bound=st.sampled_from(BOUNDS),
    gain_kappa=st.one_of(st.none(), kappas),
    least_gain=st.one_of(st.sampled_from([0.0, 0.06]), st.floats(0, 10)),
    gain_per_nat=st.one_of(st.sampled_from([0.0, 0.06]), st.floats(0, 10)),
    deciding_candidates=st.one_of(st.none(), st.integers(1, 40)),
    proposal_scale=st.floats(0, 2),
)


@st.composite
def boxes(draw: st.DrawFn, shapes: Any = None) -> gym.spaces.Box:
    """Boxes of any shape up to two axes, dtype and bounds, among them infinite ones."""
    shape = draw(st.sampled_from([(1,), (3,), (2, 2), ()]) if shapes is None else shapes)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int64]))
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        low = draw(hnp.arrays(dtype, shape, elements=st.integers(int(info.min), 3)))
        high = draw(hnp.arrays(dtype, shape, elements=st.integers(4, int(info.max))))
        return gym.spaces.Box(low, high, shape, dtype)
    ends = st.floats(-1e6, 1e6, width=32 if dtype is np.float32 else 64)
    low = draw(hnp.arrays(dtype, shape, elements=ends))
    width = draw(hnp.arrays(dtype, shape, elements=st.sampled_from([0.1, 1.0, 3.0])))
    open_low, open_high = draw(st.booleans()), draw(st.booleans())
    return gym.spaces.Box(
        np.full(shape, -np.inf, dtype) if open_low else low,
        np.full(shape, np.inf, dtype) if open_high else low + width,
        shape,
        dtype,
    )


@st.composite
def observation_spaces(draw: st.DrawFn, depth: int = 2) -> gym.spaces.Space[Any]:
    """A Box, or a Dict of such spaces, whose keys may be in any order."""
    if depth == 0 or draw(st.booleans()):
        return draw(boxes())
    keys = draw(st.lists(st.sampled_from("zebra apple m B é".split()), min_size=1, unique=True))
    entries = [(key, draw(observation_spaces(depth=depth - 1))) for key in keys]
    if draw(st.booleans()):
        return gym.spaces.Dict(dict(entries))  # Gymnasium sorts these keys
    return gym.spaces.Dict(collections.OrderedDict(entries))
