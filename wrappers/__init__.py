"""Environment wrappers that act with, watch, or prepare observations for, a policy.

Watching and guarding, whatever agent acts:
    SupportMonitor: how well the data supports each action, in ``info["gem"]``; changes nothing.
    SupportShield: unsupported actions are replaced or refused.

Learning on top of a policy:
    CandidateChoice: the action becomes the rank of one of the policy's candidates.

Fitting an environment to a policy, or to Stable-Baselines3:
    MatchSpaces: key order, dtype and flattening, or an error that says what differs.
    SuccessInfo: ``success`` becomes the ``is_success`` that SB3's callbacks look for.

Each has a twin of the same name for vector environments in `gem_policy.wrappers.vector`.

A policy is given by name, path or ``hf://`` address, and recorded as such, so that
``gym.make(EnvSpec.from_json(env.spec.to_json()))`` makes the wrapped environment again; it is never
copied. A `GEMPolicy` is taken as well, and recorded by what it was loaded from and its selection
settings; around one that was not loaded from anywhere, ``env.spec`` is None.

A policy normalizes observations itself: around an environment in a
`gymnasium.wrappers.NormalizeObservation`, the wrappers with a policy give a `GEMWarning`.

The wrappers add to ``info["gem"]``, each its own entries, so that they can be stacked. What they
add has the same structure at ``reset``, with NaN for numbers and -1 for components, as Minari's
`DataCollector` asks.
"""

from gem_policy.wrappers.candidate_choice import CandidateChoice
from gem_policy.wrappers.match_spaces import MatchSpaces
from gem_policy.wrappers.success_info import SuccessInfo
from gem_policy.wrappers.support_monitor import SupportMonitor
from gem_policy.wrappers.support_shield import SupportShield

__all__ = ["CandidateChoice", "MatchSpaces", "SuccessInfo", "SupportMonitor", "SupportShield"]
