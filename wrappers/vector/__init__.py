"""The wrappers of `gem_policy.wrappers` for Gymnasium's vector environments, by the same names.

    SupportMonitor: how well the data supports each action, in ``infos["gem"]``.
    SupportShield: unsupported actions are replaced or refused.
    CandidateChoice: actions become ranks of the policy's candidates.
    MatchSpaces: key order, dtype and flattening, or an error that says what differs.
    SuccessInfo: ``success`` becomes ``is_success``.

What lands in ``infos["gem"]`` has the structure that the single wrapper draws, with an array with
one row per environment for each entry, and ``infos["_gem"]``, a bool array, says in which
environments an action was judged. All autoreset modes of Gymnasium are understood:

- NEXT_STEP: in the step after the end of an episode the action is ignored by the environment. It
  is not judged, replaced, refused or counted, and the environment's row is blank.
- SAME_STEP: the row belongs to the action just sent, also where it ended the episode, whose own
  info is under ``final_info``.
- DISABLED: a reset with ``options={"reset_mask": ...}`` begins new episodes where it says.
"""

from gem_policy.wrappers.vector.candidate_choice import CandidateChoice
from gem_policy.wrappers.vector.match_spaces import MatchSpaces
from gem_policy.wrappers.vector.success_info import SuccessInfo
from gem_policy.wrappers.vector.support_monitor import SupportMonitor
from gem_policy.wrappers.vector.support_shield import SupportShield

__all__ = ["CandidateChoice", "MatchSpaces", "SuccessInfo", "SupportMonitor", "SupportShield"]
