"""GEMPolicy: a loaded checkpoint that acts.

Source of the rule: GEM (arXiv 2603.23232, abstract): draw N candidates from the actor, score each
with the critics' lower confidence bound plus the weighted, standardized log-density of the behavior
model, take the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy import checkpoint as files
from gem_policy.ahead_of_time import AheadOfTime, Run, is_available, library_of
from gem_policy.assessment import Assessment
from gem_policy.candidates import CandidateSet, propose
from gem_policy.checkpoint import Checkpoint, PolicyConfig
from gem_policy.compiled import Compiled
from gem_policy.config import MAX_CANDIDATES, SelectionConfig, require_count
from gem_policy.critics import Critics, build_critics
from gem_policy.cuda_graph import RecordedAct, is_current_cuda
from gem_policy.devices import choose_device
from gem_policy.errors import ConfigError, SpaceError
from gem_policy.explanation import Explanation
from gem_policy.mixture import GaussianMixture
from gem_policy.names import resolve
from gem_policy.networks import build_actor, build_behavior
from gem_policy.normalize import ActionScaler, ObservationNormalizer
from gem_policy.predictor import Predictor, full_precision, refuse_overflow
from gem_policy.scoring import ScoringRule, rule_of
from gem_policy.selection import Decision, select, usable_scores


def _refuse_complex(numbers: Tensor, caller: str) -> None:
    """Raise a `SpaceError` for numbers whose imaginary part would be dropped."""
    if numbers.is_complex():
        raise SpaceError(f"`{caller}` takes real numbers, got {numbers.dtype}.")


@dataclass(frozen=True)
class _Chosen:
    """Selection settings and the rules that they make, which belong together."""

    selection: SelectionConfig
    rule: ScoringRule
    rule_of_draws: ScoringRule


class GEMPolicy(Predictor):
    """A policy ready to act: networks, spaces, units and the selection settings.

    Made by `load`; `selection` may be changed at any time. See `predict` (numpy, SB3's contract),
    `decide` (tensors), `assess` (other agents' actions) and `explain`.

    Attributes:
        source: What `load` was given; None for a policy made otherwise. Wrappers record it.

    Args:
        checkpoint: The policy as data.
        device: Where to compute.
        selection: Selection settings; None for the checkpoint's own.
        seed: Seed of the generator behind ``deterministic=False``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        selection: SelectionConfig | None = None,
        seed: int = 0,
    ) -> None:
        config = checkpoint.config
        super().__init__(config.observation_space, config.action_space, device, seed)
        self.source: str | None = None
        self._recorded: RecordedAct | None = None
        self._compiled: AheadOfTime[_Chosen] | Compiled[Decision] | None = None
        self.config: PolicyConfig = config
        self.provenance: Mapping[str, Any] = checkpoint.provenance
        # Copied, because tensors of a file may lie at addresses for which kernels round otherwise.
        # Fit for gradients (of `mixture`), wherever the policy is loaded.
        with torch.inference_mode(False):
            self._tensors = {k: v.to(device, copy=True) for k, v in checkpoint.tensors.items()}
        with torch.device("meta"):
            self.actor = build_actor(config.network)
            self.behavior = build_behavior(config.network)
            self.critics: Critics = build_critics(config.network)
        for name in ("actor", "behavior", "critic"):
            module = self.critics if name == "critic" else getattr(self, name)
            own = {
                k.removeprefix(f"{name}."): v
                for k, v in self._tensors.items()
                if k.startswith(f"{name}.")
            }
            module.load_state_dict(own, strict=True, assign=True)
            module.requires_grad_(False).eval()
        self.normalizer = ObservationNormalizer(
            self._tensors["observation.mean"], self._tensors["observation.std"]
        )
        self.scaler = ActionScaler(self._tensors["action.low"], self._tensors["action.high"])
        self.calibration = self._tensors["calibration.log_behavior"]
        self.selection = config.selection if selection is None else selection

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
        cuda_graph: bool = False,
        compiled: bool = False,
        **selection: Any,
    ) -> GEMPolicy:
        """Load a policy by shipped name, file, folder or ``hf://org/repo``.

        Args:
            source: What to load.
            device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
            seed: Seed of the generator behind ``deterministic=False``.
            cuda_graph: See `cuda_graph`.
            compiled: See `compiled`.
            **selection: Changes to the stored selection settings, such as ``candidates=128``;
                the names are `SelectionConfig`'s.

        Raises:
            CheckpointError: Nothing there, or it is damaged or of a newer format.
            ConfigError: A selection setting is unknown or out of range, or no such device, or a
                graph was asked for without CUDA.
        """
        where = choose_device(device)
        checkpoint = files.load(resolve(source))
        policy = cls(checkpoint, where, checkpoint.config.selection.replace(**selection), seed)
        policy.source = str(source)
        policy.compiled = compiled
        policy.cuda_graph = cuda_graph
        return policy

    def save(self, path: str | Path) -> Path:
        """Write the policy with its present selection settings; load gives the same decisions.

        A path that ends in ``.safetensors`` becomes one file, any other a folder in the Hugging
        Face layout.

        Raises:
            CheckpointError: The file cannot be written; what was there before is untouched.
        """
        path = Path(path)
        checkpoint = self.to_checkpoint()
        if path.suffix == ".safetensors":
            files.save(checkpoint, path)
        else:
            files.save_folder(checkpoint, path)
        return path

    def to_checkpoint(self) -> Checkpoint:
        """The policy as data, with its present selection settings as the default ones."""
        config = replace(self.config, selection=self.selection)
        return Checkpoint(config, self._tensors, self.provenance)

    @property
    def cuda_graph(self) -> bool:
        """Whether `predict` launches its deterministic decisions as one CUDA graph each.

        A graph is recorded when a batch size or selection settings are first met, which takes a
        fraction of a second, and the last few are kept. Actions are the same to rounding. May be
        set at any time; a policy's weights must not be replaced while it is on, and it is to be
        used by one thread. A copy records its own. Off unless asked for.

        Raises:
            ConfigError: On setting it where the device is not the current CUDA device.
        """
        return self._recorded is not None

    @cuda_graph.setter
    def cuda_graph(self, wanted: bool) -> None:
        if wanted and not is_current_cuda(self.device):
            raise ConfigError(
                f"CUDA graphs need the current CUDA device, this policy is on {self.device}. Leave "
                "out cuda_graph, or load it with device='cuda' (torch.cuda.set_device chooses one)."
            )
        self._recorded = RecordedAct(self._best, self.device) if wanted else None

    @property
    def compiled(self) -> bool:
        """Whether deterministic decisions are those of code that torch's compiler makes of them.

        It is made when a shape or selection settings are first met, which takes seconds to minutes,
        and needs a C++ compiler (on a CPU) or Triton (on a GPU). Eight are kept, and whatever comes
        after runs as without. Actions are the same to rounding, by which a near tie may fall the
        other way. A policy's weights must not be changed while it is on. A copy makes its own. Off
        unless asked for; `predict`, with more than one candidate, and `decide`, without a count,
        obey it, and raise a `ConfigError` where nothing can be compiled.

        On a CPU, with torch 2.6 and later, another process makes a library of the decisions, which
        is kept for later ones, in GEM_POLICY_CACHE or where caches are kept (~/.cache/gem_policy),
        some megabytes each. Otherwise it is `torch.compile` that makes them, in this process; with
        `cuda_graph` a graph of them is recorded. On a CPU that others use too, leave it one thread
        (`torch.set_num_threads`): its loops wait for their slowest part.
        """
        return self._compiled is not None

    @compiled.setter
    def compiled(self, wanted: bool) -> None:
        if wanted != self.compiled:
            self._compiled = self._compile() if wanted else None
            self.cuda_graph = self.cuda_graph  # what was recorded is another decision's

    def _compile(self) -> AheadOfTime[_Chosen] | Compiled[Decision]:
        if self.device.type == "cpu" and is_available():
            return AheadOfTime(self._deterministic, self._library)
        return Compiled(self._deterministic)

    def _library(self, shape: torch.Size, chosen: _Chosen) -> Run:
        config = replace(self.config, selection=chosen.selection)
        return library_of(Checkpoint(config, self._tensors), shape)

    def traceable(self, observations: Float[Tensor, "*batch obs"]) -> Decision:
        """`decide` for torch's compiler: without checks, and in whatever mode the caller is."""
        return self._deterministic(observations, self._chosen)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what was recorded and compiled is of this very policy."""
        made = {"_recorded": None, "_compiled": None}
        return {**super().__getstate__(), **made, "made": (self.compiled, self.cuda_graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """To record and compile anew, if the other did."""
        compiled, cuda_graph = state.pop("made")
        super().__setstate__(state)
        self.compiled, self.cuda_graph = compiled, cuda_graph

    def _deterministic(
        self, observations: Float[Tensor, "*batch obs"], chosen: _Chosen
    ) -> Decision:
        return self._decide(observations, None, None, chosen)

    def _best(self, rows: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch action"]:
        chosen = self._chosen
        if self._compiled is None or chosen.selection.candidates == 1:
            return self.act(rows, None)
        return self._compiled(rows, chosen).action

    def _answer(
        self, rows: Float[Tensor, "batch obs"], deterministic: bool
    ) -> Float[Tensor, "batch action"]:
        if deterministic and self._recorded is not None:
            return self._recorded(rows, self.selection)
        return super()._answer(rows, deterministic)

    if not TYPE_CHECKING:  # with it, type checkers would let every attribute be assigned

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuse selection settings, which would change nothing here.

            Raises:
                ConfigError: The attribute is one of them.
            """
            if name in SelectionConfig.__dataclass_fields__:
                raise ConfigError(
                    f"{name!r} is a selection setting, no attribute of the policy. Write "
                    f"policy.selection = policy.selection.replace({name}={value!r})."
                )
            super().__setattr__(name, value)

    @property
    def selection(self) -> SelectionConfig:
        """How actions are selected; assign a changed copy at any time, from any thread.

        Every decision is by the settings of one moment; of a batch that is decided row by row
        (``row_by_row``), every row's. With `cuda_graph` one thread does both.
        """
        return self._chosen.selection

    @selection.setter
    def selection(self, settings: SelectionConfig) -> None:
        if not isinstance(settings, SelectionConfig):
            raise ConfigError(
                f"`selection` must be a SelectionConfig, got {type(settings).__name__}. "
                "Write policy.selection = policy.selection.replace(candidates=16)."
            )
        self._chosen = _Chosen(
            settings,
            rule_of(settings, self.config.gain_unit),
            # Among fresh draws candidate 0 is one of them, no mode that would have to be kept.
            rule_of(settings.replace(gain_kappa=None), 0.0),
        )

    def candidates(
        self,
        normalized: Float[Tensor, "*batch obs"],
        count: int,
        generator: torch.Generator | None = None,
    ) -> CandidateSet:
        """N candidates with their values and densities, for normalized observations."""
        return self._candidates(normalized, count, generator, self.selection)

    def _candidates(
        self,
        normalized: Float[Tensor, "*batch obs"],
        count: int,
        generator: torch.Generator | None,
        settings: SelectionConfig,
    ) -> CandidateSet:
        actions, component = propose(
            self.actor(normalized), count, generator, settings.proposal_scale, settings.all_modes
        )
        return self.evaluate(normalized, actions, component)

    def evaluate(
        self,
        normalized: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
        component: Tensor,
    ) -> CandidateSet:
        """Values and densities of given actions, all in normalized units."""
        q = self.critics(normalized, actions)
        log_behavior = self.behavior(normalized).log_prob(actions)
        return CandidateSet(actions, component, q, log_behavior)

    @torch.inference_mode()
    def decide(
        self,
        observations: Float[Tensor, "*batch obs"],
        generator: torch.Generator | None = None,
        count: int | None = None,
    ) -> Decision:
        """Choose actions: tensors in, tensors out, on the policy's device.

        Args:
            observations: Flattened observations in environment units, any batch axes.
            generator: On the policy's device: fresh candidates, and at a temperature above 0 a
                draw among them. None: the deterministic candidate set and its best.
            count: N of this call, which is then not compiled; None for that of `selection`.

        Returns:
            The decision with everything it was made from. Rows of a batch agree with single
            calls up to float rounding; `predict` makes that exact on the CPU. Of observations
            that are not finite, or overflow the networks, it is NaN, and not ``supported``.

        Raises:
            SpaceError: No tensor, or the last axis is not the observation's length.
            ConfigError: `count` is below 1; or the policy is `compiled`, and torch cannot.
        """
        self._check_rows(observations, "decide")
        with full_precision(self.device):
            if generator is None and count is None and self._compiled is not None:
                return self._compiled(observations, self._chosen)
            return self._decide(observations, generator, count, self._chosen)

    def _decide(
        self,
        observations: Float[Tensor, "*batch obs"],
        generator: torch.Generator | None,
        count: int | None,
        chosen: _Chosen,
    ) -> Decision:
        """`decide` for callers that are in inference mode, or must not be."""
        normalized, settings = self._normalize(observations), chosen.selection
        if count is None:
            count = settings.candidates
        require_count("count", count, high=MAX_CANDIDATES)
        candidates = self._candidates(normalized, count, generator, settings)
        rule = chosen.rule if generator is None else chosen.rule_of_draws
        scores = usable_scores(candidates, rule(candidates))
        temperature = 0.0 if generator is None else settings.temperature
        index = select(scores, temperature, generator)
        wide = index[..., None, None].expand(*index.shape, 1, candidates.actions.shape[-1])
        action = torch.gather(candidates.actions, -2, wide).squeeze(-2)
        supported = scores.amax(-1) != -torch.inf
        return Decision(self.scaler.invert(action), index, scores, supported, candidates)

    @torch.inference_mode()
    def assess(
        self,
        observations: Float[Tensor, "*batch obs"],
        actions: Float[Tensor, "*batch candidates action"],
    ) -> Assessment:
        """What data and critics say about actions that anybody chose.

        Args:
            observations: Flattened observations in environment units, any batch axes.
            actions: One or more actions for each of them, in environment units; they may lie
                outside of the action space, where the density goes on falling.

        Returns:
            NaN, and component -1, wherever an observation or action is not finite.

        Raises:
            SpaceError: No tensors, or their last axes are not those of observation and action.
        """
        self._check_rows(observations, "assess")
        if not isinstance(actions, Tensor):
            raise SpaceError(f"`assess` takes a tensor of actions, got {type(actions).__name__}.")
        size, batch = self.config.network.action_size, tuple(observations.shape[:-1])
        if actions.ndim != len(batch) + 2 or (*actions.shape[:-2], actions.shape[-1]) != (
            *batch,
            size,
        ):
            expected = ", ".join(map(str, (*batch, "candidates", size)))
            raise SpaceError(
                f"`assess` takes actions of shape ({expected}), got {tuple(actions.shape)}."
            )
        _refuse_complex(actions, "assess")
        given = self.scaler.apply(actions.to(self.device, torch.float32))
        with full_precision(self.device):
            normalized = self._normalize(observations)
            shares = self.actor(normalized).responsibilities(given)
            candidates = self.evaluate(normalized, given, shares.argmax(-1))
        percentile = self.support_percentile(candidates.log_behavior)
        return Assessment.of(candidates, percentile, self.selection.kappa)

    def _check_rows(self, observations: object, caller: str) -> None:
        """Raise a `SpaceError` unless it is a tensor of flattened observations."""
        size = self.config.network.observation_size
        if not isinstance(observations, Tensor) or observations.shape[-1:] != (size,):
            got = getattr(observations, "shape", "no shape")
            raise SpaceError(
                f"`{caller}` takes a tensor of flattened observations, of shape (*batch, {size}), "
                f"got a {type(observations).__name__} of {got}. `predict` takes what environments "
                "return."
            )
        _refuse_complex(observations, caller)

    def _normalize(self, observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        """Rows as the networks see them."""
        return self.normalizer.apply(observations.to(self.device, torch.float32))

    def act(
        self, rows: Float[Tensor, "batch obs"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch action"]:
        """The action of `decide`."""
        chosen = self._chosen
        if chosen.selection.candidates == 1 and generator is None:
            # One candidate, the actor's mode, needs no score.
            return self.scaler.invert(self.mixture(rows).mode())
        return self._decide(rows, generator, None, chosen).action

    def explain(self, observation: Any) -> Explanation:
        """Every candidate for one observation, best first: where it came from and why it ranks so.

        Raises:
            SpaceError: A batch was given, or the observation is not one of the space, or
                overflows the networks.
        """
        array, batched = self._reader.read(observation)
        if batched and array.shape[0] != 1:
            raise SpaceError(f"`explain` takes one observation, got a batch of {array.shape[0]}.")
        observation, chosen = torch.from_numpy(array[0]).to(self.device), self._chosen
        with torch.inference_mode(), full_precision(self.device):
            decision = self._decide(observation, None, None, chosen)
        refuse_overflow(array, decision.action.cpu().numpy()[None])
        actions = self.scaler.invert(decision.candidates.actions)
        percentile = self.support_percentile(decision.candidates.log_behavior)
        unit = self.config.gain_unit
        return Explanation.of(decision, actions, percentile, chosen.selection, unit)

    def support_percentile(self, log_behavior: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Share of the dataset's own (held-out) actions that are less likely, in percent.

        3 means: 97 % of the data's actions have a higher density in their state than this one.
        NaN stays NaN.
        """
        points = self.calibration
        place = torch.searchsorted(points, log_behavior.contiguous(), right=True)
        share = place.to(torch.float32) * (100.0 / points.shape[0])
        return torch.where(log_behavior.isnan(), torch.nan, share)

    def mixture(self, observations: Float[Tensor, "*batch obs"]) -> GaussianMixture:
        """The actor's mixture for observations in environment units (normalized actions).

        Raises:
            SpaceError: No tensor, or the last axis is not the observation's length.
        """
        self._check_rows(observations, "mixture")
        mixture: GaussianMixture = self.actor(self.normalizer.apply(observations))
        return mixture

    def behavior_mixture(self, observations: Float[Tensor, "*batch obs"]) -> GaussianMixture:
        """The behavior model's mixture for observations in environment units; as `mixture`."""
        self._check_rows(observations, "behavior_mixture")
        mixture: GaussianMixture = self.behavior(self.normalizer.apply(observations))
        return mixture

    def __repr__(self) -> str:
        """One line: what it was trained on, where it computes and how it selects."""
        data = self.provenance.get("dataset_id", "unknown data")
        return f"GEMPolicy({data}, device={self.device}, {self.selection})"
