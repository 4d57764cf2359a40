"""How well the models do on episodes that they do not learn from; no random number is drawn."""

from __future__ import annotations

import torch

from gem_policy.training.learners import ActorLearner, BehaviorLearner, Learner
from gem_policy.training.life_signs import component_distance
from gem_policy.training.replay import Batch, Replay, evenly_spaced_numbers

HELD_OUT_ROWS = 2048  # a reading costs about as much as three updates


def evenly_spaced(replay: Replay, rows: int) -> Batch:
    """At most ``rows`` transitions, evenly spaced over the data; always the same ones."""
    return replay.batch(evenly_spaced_numbers(len(replay), rows, replay.device))


def held_out_batch(held_out: Replay) -> Batch:
    """What readings are taken on: of the held-out transitions `HELD_OUT_ROWS`, or all."""
    return evenly_spaced(held_out, HELD_OUT_ROWS)


@torch.no_grad()
def held_out_metrics(phase: str, learner: Learner, batch: Batch) -> dict[str, float]:
    """Metrics of a learner on held-out transitions.

    For the mixtures ``held_out_log_prob``: mean log-likelihood of the actions in nats, for the
    actor weighted by the advantages and divided by the sum of the weights; and with two components
    or more their ``component_distance``. For values and critics ``held_out_loss``: the loss that
    they are trained with.
    """
    if isinstance(learner, BehaviorLearner | ActorLearner):
        mixture = learner.model(batch.observations)
        log_prob = mixture.log_prob(batch.actions.unsqueeze(-2)).squeeze(-1)
        weighted = (batch.weights * log_prob).sum() / batch.weights.sum()
        found = {f"{phase}/held_out_log_prob": float(weighted)}
        if learner.model.components > 1:
            found[f"{phase}/component_distance"] = float(component_distance(mixture))
        return found
    loss, _ = learner.loss(batch)
    return {f"{phase}/held_out_loss": float(loss)}
