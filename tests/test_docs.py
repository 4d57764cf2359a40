"""What the documentation shows is run: python blocks, doctests, make targets."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
from layout import ROOT, module_files

CARDS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("pretrained/*/README.md"))
EXTRAS = ("gymnasium_robotics", "huggingface_hub", "minari", "mujoco", "stable_baselines3")


def blocks(text: str) -> list[tuple[int, str]]:
    """(number of its first line, source) of every block fenced as python."""
    pattern = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start()) + 2, m[1]) for m in pattern.finditer(text)]


def skipped(source: str) -> bool:
    """Whether the block begins with `# not run: REASON`; without a reason it is an error."""
    first = source.partition("\n")[0]
    if not first.startswith("# not run"):
        return False
    assert re.fullmatch(r"# not run: \S.{9,}", first), f"say why: {first!r}"
    return True


def run_page(text: str, name: str) -> int:
    """Run the blocks in order, in one namespace; how many there were."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for line, source in blocks(text):
        if not skipped(source):
            # The empty lines make a traceback name the line of the page.
            exec(compile("\n" * (line - 1) + source, name, "exec"), namespace)
            count += 1
    return count


def run_doctests(module: str) -> doctest.TestResults:
    """Run the examples in a module's docstrings, found by import: never a second copy of it."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.testmod(importlib.import_module(module), optionflags=flags)


@pytest.mark.parametrize("page", ["README.md", *CARDS])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_page((ROOT / page).read_text(), page) >= 1


@pytest.mark.parametrize("module", [name for name in module_files() if "__main__" not in name])
def test_doctests_pass(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert run_doctests(module).failed == 0
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands_are_targets(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^ {4}|^\$ |^|`)make ([\w-]+)", (ROOT / page).read_text(), re.MULTILINE)
    assert named, f"{page} names no make target"
    assert set(named) <= targets


def test_blocks_share_a_namespace_and_run_in_order():
    assert run_page("```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n", "page") == 2


def test_failing_block_names_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("title\n\n```python\nx = 1\n1 / 0\n```\n", "page")
    assert caught.traceback[-1].lineno + 1 == 5


def test_block_is_left_out_only_for_a_reason():
    assert run_page("```python\n# not run: needs a download\n1 / 0\n```\n", "page") == 0
    with pytest.raises(AssertionError, match="say why"):
        run_page("```python\n# not run\n1 / 0\n```\n", "page")


def test_failing_doctest_is_found(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "planted_example.py").write_text('"""Wrong.\n\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert run_doctests("planted_example").failed == 1
