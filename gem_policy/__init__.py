"""Deploy offline-RL policies: propose candidate actions, score them, take the best."""

from gem_policy._version import __version__

__all__ = ["__version__"]
