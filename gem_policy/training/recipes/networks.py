"""The small networks of other people's policies, run with numpy from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from gem_policy.errors import DatasetError

Array = NDArray[Any]
LAYERS = ("W0", "b0", "W1", "b1", "W2", "b2")
LOG_STD_RANGE = (-20.0, 2.0)


class Perceptron:
    """Two hidden layers and a linear output.

    Args:
        arrays: `W0 b0 W1 b1 W2 b2`, weights of shape (out, in).
        activation: `tanh` or `relu`.

    Raises:
        DatasetError: if an array is missing or the shapes do not follow from each other.
    """

    def __init__(self, arrays: Mapping[str, Array], activation: str) -> None:
        missing = [name for name in LAYERS if name not in arrays]
        if missing or activation not in ("tanh", "relu"):
            raise DatasetError(
                f"A policy needs the arrays {', '.join(LAYERS)} and tanh or relu; missing: "
                f"{', '.join(missing) or 'none'}, activation: {activation}. Convert it again."
            )
        # float64 like the observations: numpy would convert every weight at every step.
        self._weights = [np.asarray(arrays[f"W{i}"], dtype=np.float64) for i in range(3)]
        self._biases = [np.asarray(arrays[f"b{i}"]) for i in range(3)]
        widths = [weight.shape for weight in self._weights]
        if any(widths[i][0] != widths[i + 1][1] for i in range(2)):
            raise DatasetError(f"Layers do not fit together: weights of shapes {widths}.")
        self._tanh = activation == "tanh"

    @property
    def inputs(self) -> int:
        """Numbers that go in."""
        return int(self._weights[0].shape[1])

    def features(self, x: Float[Array, " inputs"]) -> Float[Array, " hidden"]:
        """Output of the last hidden layer."""
        for weight, bias in zip(self._weights[:2], self._biases[:2], strict=True):
            x = weight @ x + bias
            x = np.tanh(x) if self._tanh else np.maximum(x, 0.0)
        return x

    def head(self, features: Float[Array, " hidden"]) -> Float[Array, " outputs"]:
        """The linear layer on top."""
        return np.asarray(self._weights[2] @ features + self._biases[2])


class Agent:
    """A policy trained with Stable-Baselines3 or by D4RL's authors for their ant.

    Args:
        arrays: The layers, and `log_std_W log_std_b` or `log_std`; optionally `activation`,
            `squash`, and `obs_mean obs_var clip_obs epsilon` where observations were normalized.

    Raises:
        DatasetError: if arrays are missing or do not fit.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._net = Perceptron(arrays, str(arrays.get("activation", "relu")))
        self._squash = bool(arrays.get("squash", True))
        self._arrays = dict(arrays)
        if "log_std_W" not in arrays and "log_std" not in arrays:
            raise DatasetError("A policy needs `log_std_W` and `log_std_b`, or `log_std`.")

    def act(
        self, observation: Float[Array, " obs"], step: int, rng: np.random.Generator | None
    ) -> Float[Array, " action"]:
        """An action in [-1, 1].

        Args:
            observation: Raw, as the environment gives it.
            step: Number of steps since the reset; some agents were told the time left of 1000.
            rng: Draws the action; None takes the mean.
        """
        given, x = self._arrays, observation
        if self._net.inputs == observation.size + 1:
            x = np.append(x, 1.0 - step / 1000.0)
        if "obs_mean" in given:
            x = (x - given["obs_mean"]) / np.sqrt(given["obs_var"] + given["epsilon"])
            x = np.clip(x, -given["clip_obs"], given["clip_obs"])
        features = self._net.features(x)
        mean = self._net.head(features)
        if rng is not None:
            if "log_std_W" in given:
                log_std = given["log_std_W"] @ features + given["log_std_b"]
                log_std = np.clip(log_std, *LOG_STD_RANGE)
            else:
                log_std = given["log_std"]
            mean = mean + np.exp(log_std) * rng.standard_normal(mean.shape)
        return np.asarray(np.tanh(mean) if self._squash else np.clip(mean, -1.0, 1.0))


class HandExpert:
    """A policy of the hand demonstrations (natural policy gradient with demonstrations).

    Args:
        arrays: The layers, `log_std`, and shifts and scales of input and output.

    Raises:
        DatasetError: if arrays are missing or do not fit.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._net = Perceptron(arrays, "tanh")
        try:
            self._in_shift, self._in_scale = arrays["in_shift"], arrays["in_scale"] + 1e-8
            self._out_shift, self._out_scale = arrays["out_shift"], arrays["out_scale"]
            self._std = np.exp(arrays["log_std"])
        except KeyError as error:
            raise DatasetError(f"The expert has no array {error}; convert it again.") from error

    def act(
        self, observation: Float[Array, " obs"], rng: np.random.Generator | None
    ) -> Float[Array, " action"]:
        """An action in [-1, 1]; `rng` draws it, None takes the mean."""
        x = (observation - self._in_shift) / self._in_scale
        mean = self._net.head(self._net.features(x)) * self._out_scale + self._out_shift
        if rng is not None:
            mean = mean + self._std * rng.standard_normal(mean.shape)
        return np.asarray(np.clip(mean, -1.0, 1.0))
