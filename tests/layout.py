"""Where the package's modules lie: the folder mapping of pyproject.toml, read from disk."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "gem_policy": ROOT / "gem_policy",
    "gem_policy.wrappers": ROOT / "wrappers",
    "gem_policy.pretrained": ROOT / "pretrained",
}


def module_files(folders: dict[str, Path] = FOLDERS) -> dict[str, Path]:
    """Dotted name of every module of the package -> its file."""
    found = {}
    for package, folder in folders.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def packages_on_disk(folders: dict[str, Path] = FOLDERS) -> set[str]:
    """Dotted name of every folder that holds a module, with or without an `__init__.py`."""
    found = set()
    for package, folder in folders.items():
        for file in folder.rglob("*.py"):
            found.add(".".join([package, *file.relative_to(folder).parent.parts]))
    return found
