"""Why an action was chosen: one row per candidate, printable and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gem_policy.config import SelectionConfig
from gem_policy.scoring import PairedBound, asked_gains, lower_bound, standardize
from gem_policy.selection import Decision

_COLUMNS = (
    "rank",
    "candidate",
    "component",
    "q_mean",
    "q_std",
    "lcb",
    "gain",
    "log_beta",
    "z",
    "score",
)


@dataclass(frozen=True)
class CandidateRow:
    """One candidate of an `Explanation`.

    Attributes:
        rank: 1 is the chosen one.
        candidate: Its place in the candidate set; 0 is the actor's mode.
        component: Mixture component it came from.
        q_mean: Mean of the critics, in scaled reward.
        q_std: Their (population) standard deviation.
        lcb: ``q_mean - kappa * q_std``.
        gain: Lower bound of what it gains over candidate 0. With ``gain_kappa``: those whose gain
            is not above 0, or whose mean gain is not above what `Explanation` says, rank behind
            candidate 0; all do where there are more than ``deciding_candidates`` and none of the
            first so many is better. With ``kappa`` where that is None.
        log_beta: Log density under the behavior model, in nats.
        z: ``log_beta`` standardized within the candidates.
        score: What they were ranked by; -inf for a candidate with a non-finite number.
        support_percentile: Percent of the data's own actions that are less likely.
        action: In environment units.
    """

    rank: int
    candidate: int
    component: int
    q_mean: float
    q_std: float
    lcb: float
    gain: float
    log_beta: float
    z: float
    score: float
    support_percentile: float
    action: tuple[float, ...]


@dataclass(frozen=True)
class Explanation:
    """All candidates of one decision, best first, and the settings they were ranked by.

    Attributes:
        rows: The candidates.
        selection: The settings.
        supported: False where no candidate had finite numbers.
        least_gain: ``selection.least_gain`` in the unit of ``q_mean``, that of the critics.
        gain_per_nat: ``selection.gain_per_nat`` in that unit, times ``support_weight``: asked for
            besides, for every nat that a candidate's ``log_beta`` is below that of candidate 0.
    """

    rows: tuple[CandidateRow, ...]
    selection: SelectionConfig
    supported: bool
    least_gain: float
    gain_per_nat: float

    @classmethod
    def of(
        cls,
        decision: Decision,
        actions: Float[Tensor, "candidates action"],
        percentile: Float[Tensor, " candidates"],
        selection: SelectionConfig,
        gain_unit: float,
    ) -> Explanation:
        """The explanation of an unbatched decision."""
        candidates, kappa = decision.candidates, selection.kappa
        z = standardize(candidates.log_behavior)
        std = candidates.q.std(0, correction=0)
        bound = lower_bound(candidates.q, kappa)
        gain = PairedBound(kappa if selection.gain_kappa is None else selection.gain_kappa)
        order = decision.scores.argsort(descending=True, stable=True).tolist()
        table: list[tuple[Any, ...]] = list(
            zip(
                candidates.component.tolist(),
                candidates.q.mean(0).tolist(),
                std.tolist(),
                bound.tolist(),
                gain(candidates).tolist(),
                candidates.log_behavior.tolist(),
                z.tolist(),
                decision.scores.tolist(),
                percentile.tolist(),
                actions.tolist(),
                strict=True,
            )
        )
        rows = tuple(
            CandidateRow(*(rank, i, *table[i][:9], tuple(table[i][9])))
            for rank, i in enumerate(order, start=1)
        )
        return cls(rows, selection, bool(decision.supported), *asked_gains(selection, gain_unit))

    @property
    def chosen(self) -> CandidateRow:
        """The candidate that `predict` takes."""
        return self.rows[0]

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries, for a table or a log."""
        return [dict(vars(row)) for row in self.rows]

    def __str__(self) -> str:
        """A table of all candidates, best first."""
        s = self.selection
        lines = [
            f"{len(self.rows)} candidates, kappa={s.kappa:g}, support_weight={s.support_weight:g}, "
            f"value_scale={s.value_scale}, bound={s.bound}, gain_kappa={s.gain_kappa}, "
            f"least_gain={s.least_gain:g} (here {self.least_gain:.3g}), "
            f"gain_per_nat={s.gain_per_nat:g} (here {self.gain_per_nat:.3g}), "
            f"deciding_candidates={s.deciding_candidates}",
            " ".join(f"{c:>9}" for c in (*_COLUMNS, "support%")) + "  action",
        ]
        for row in self.rows:
            cells = [f"{getattr(row, c):>9.4g}" for c in _COLUMNS]
            action = ", ".join(f"{a:+.3f}" for a in row.action)
            lines.append(" ".join([*cells, f"{row.support_percentile:>9.3g}"]) + f"  [{action}]")
        if not self.supported:
            lines.append("No candidate had finite numbers: the actor's mode was returned.")
        return "\n".join(lines)
