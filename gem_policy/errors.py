"""Every error that a user can cause: what was got, what was expected, what to do."""

from __future__ import annotations


class GEMError(Exception):
    """Base of all errors that gem-policy raises on purpose; catch it to catch them all."""


class ConfigError(GEMError, ValueError):
    """A setting has a value, or a combination of values, that makes no sense."""


class CheckpointError(GEMError):
    """A checkpoint cannot be found, read, trusted or written."""


class SpaceError(GEMError, ValueError):
    """An observation, action or space is not what the policy was made for."""


class SupportError(GEMError):
    """An action has less support in the dataset than was asked for."""


class DatasetError(GEMError):
    """A dataset cannot be found, read or trained on."""


class TrainingError(GEMError):
    """A training run cannot start, go on or be resumed."""


class DependencyError(GEMError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class SimulatorError(GEMError):
    """The state of an environment's simulator cannot be saved or put back."""


class GEMWarning(UserWarning):
    """Base of all warnings that gem-policy gives; filter it to silence them all."""


class TrainingWarning(GEMWarning):
    """A run goes on, but something about what it learned asks for a look."""
