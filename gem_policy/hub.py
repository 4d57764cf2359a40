"""Fetching a policy from the Hugging Face hub; the only module that can use the network."""

from __future__ import annotations

from pathlib import Path

from gem_policy.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from gem_policy.errors import CheckpointError, DependencyError


def download(address: str) -> Path:
    """The local folder of ``hf://org/repo`` or ``hf://org/repo@revision``, fetched if needed.

    Raises:
        DependencyError: huggingface_hub is not installed.
        CheckpointError: The address is malformed, or the repository cannot be reached.
    """
    repository, _, revision = address.removeprefix("hf://").partition("@")
    if repository.count("/") != 1 or repository.startswith("/") or repository.endswith("/"):
        raise CheckpointError(f"A hub address is hf://org/repo or hf://org/repo@rev: {address!r}.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise DependencyError(
            f"{address} needs huggingface_hub: pip install 'gem-policy[hub]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[WEIGHTS_FILE, CONFIG_FILE, "README.md"],
        )
    except Exception as error:  # the hub raises many kinds, requests' and its own
        raise CheckpointError(
            f"Could not fetch {address}: {error}. Check the name and the network, or download "
            f"{WEIGHTS_FILE} by hand and load the file."
        ) from error
    return Path(folder)
