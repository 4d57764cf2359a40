"""The actor's phase of a finished run again, with other settings: what the ablations share.

Data, split, critics and batches are the run's own, so that with the run's own settings the very
same actor comes out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from gem_policy import checkpoint as files
from gem_policy.config import from_mapping
from gem_policy.networks import MixturePolicy
from gem_policy.training.advantages import judge, weigh
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.learners import ActorLearner, CriticLearner, ValueLearner, expect
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay, Sampler
from gem_policy.training.state import read_state
from gem_policy.training.trainer import PHASES, start_learner

NUMBER = list(PHASES).index("actor")
JUDGES = ("value", "critic")
CPU = torch.device("cpu")


class FinishedRun:
    """A run's folder, opened: its data, critics and settings.

    Args:
        folder: Of a finished `gem-policy train`.
        dataset: Its dataset, where it is at hand already.
        changes: Training settings of the actor's phase that are not to be the run's.
    """

    def __init__(self, folder: Path, dataset: Dataset | None = None, **changes: Any) -> None:
        self.checkpoint = files.load(folder)
        self.network = self.checkpoint.config.network
        provenance = self.checkpoint.provenance
        # Runs from before there were weights of episodes had none.
        told = {"episode_temperature": None, **provenance["train"], **changes}
        self.config = from_mapping(TrainConfig, told, "train")
        self.prepared = prepare(dataset or load(provenance["dataset_id"]), self.config, CPU)
        state = read_state(folder)
        started = {name: start_learner(name, self.network, self.config, CPU) for name in JUDGES}
        for name, learner in started.items():
            learner.restore(state.own(name), learner.updates)
        self.value = expect(started["value"], ValueLearner)
        self.critic = expect(started["critic"], CriticLearner)

    def weighed(self, replay: Replay, config: TrainConfig) -> Replay:
        """Transitions with the actor's weights under given settings."""
        if config.weight_source == "data":
            replay = judge(replay, self.value, config)
        return weigh(replay, self.critic, config)

    def train(
        self,
        replay: Replay,
        config: TrainConfig,
        kind: type[ActorLearner] = ActorLearner,
        **network: Any,
    ) -> MixturePolicy:
        """A new actor on weighed transitions; ``network`` changes the run's network settings."""
        sizes = dataclasses.replace(self.network, **network)
        generator = torch.Generator().manual_seed((config.seed << 8) ^ NUMBER)
        actor = kind(sizes, config, generator, CPU)
        sampler = Sampler(len(replay), config.batch_size, config.seed, NUMBER)
        while actor.step < actor.updates:
            actor.update(replay.batch(sampler(actor.step)))
        return actor.model

    def with_actor(self, actor: MixturePolicy, **network: Any) -> files.Checkpoint:
        """The run's checkpoint with another actor; ``network`` as `train` got it."""
        kept = {k: v for k, v in self.checkpoint.tensors.items() if not k.startswith("actor.")}
        own = {f"actor.{k}": v.detach() for k, v in actor.state_dict().items()}
        sizes = dataclasses.replace(self.network, **network)
        config = dataclasses.replace(self.checkpoint.config, network=sizes)
        return files.Checkpoint(config, kept | own, self.checkpoint.provenance)
