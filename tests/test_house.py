"""The rules of the house: what ships, who imports whom, what package code never does.

Each rule is a function from sources to a list of complaints. It is run on the package, where it
must find nothing, and on a planted violation, which it must find.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from layout import FOLDERS, ROOT, module_files, packages_on_disk

# A module may import from its own level and from lower ones. A name covers what lies below it in
# the package, unless that has a line of its own. A new module needs a line here.
LEVELS = {
    "_version": 0,
    "config": 0,
    "cuda_graph": 0,
    "devices": 0,
    "errors": 0,
    "formats": 0,
    "mixture": 0,
    "normalize": 0,
    "pretrained": 0,
    "spaces": 0,
    "env_specs": 0,
    "networks": 1,
    "critics": 2,
    "behavior": 2,
    "candidates": 2,
    "predictor": 2,
    "scoring": 2,
    "selection": 2,
    "ahead_of_time": 3,
    "assessment": 3,
    "checkpoint": 3,
    "compiled": 3,
    "explanation": 3,
    "hub": 4,
    "names": 4,
    "policy": 4,
    "training": 4,
    "training.columns": 4,
    "training.dataset": 4,
    "training.fitted_q_learner": 4,
    "training.location": 4,
    "training.losses": 4,
    "training.recipes": 4,
    "environments": 5,
    "evaluate": 5,
    "make_library": 5,
    "mixture_predictor": 5,
    "ranking": 5,
    "report": 5,
    "rollouts": 5,
    "sb3": 5,
    "simulators": 5,
    "training.fitted_q": 5,
    "training.run": 5,
    "training.seeds": 5,
    "training.trainer": 5,
    "wrappers": 5,
    "": 5,  # the package itself: the public names
    "cli": 6,
    "__main__": 6,
}
# Pairs that the levels alone would allow.
FORBIDDEN_EDGES = {("scoring", "networks")}  # a rule sees numbers, never a network

EXTRAS = {"gymnasium_robotics", "minari", "mujoco", "stable_baselines3"}
OPTIONAL = EXTRAS | {"h5py", "huggingface_hub", "matplotlib", "pyarrow", "scipy", "tensorboard"}
LAZY = {
    "cli",
    "environments",
    "evaluate",
    "sb3",
    "simulators",
}  # may import EXTRAS, inside functions
VAGUE = {"base", "common", "helpers", "misc", "utils"}
# Decodes other people's pickles with every global replaced: it can build nothing but arrays.
RESTRICTED_READER = ("training.unpickling", "pickle")
CODE_CARRIERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def short(module: str) -> str:
    """`gem_policy.training.losses` -> `training.losses`; the package itself -> ``."""
    return module.removeprefix("gem_policy").removeprefix(".")


def level(module: str) -> int | None:
    """The level of a module or of something defined in it; None if neither is known."""
    name = short(module)
    while name and name not in LEVELS:
        name = name.rpartition(".")[0]
    return LEVELS[name] if name or not short(module) else None


def under(module: str, part: str) -> bool:
    """Whether `module` is `part` of the package, or lies below it."""
    return short(module) == part or short(module).startswith(part + ".")


def imports(tree: ast.Module) -> Iterator[tuple[str, bool, bool]]:
    """(what, inside a function, for the type checker only) for every import in the source.

    `from a import b` gives `a.b`: whether b is a module or a name in one, `level` finds a.
    """

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                dots = "." * child.level
                for alias in child.names:
                    yield f"{dots}{child.module or ''}.{alias.name}", lazy, typing
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(ast.Module(child.body, []), lazy, True)
                yield from walk(ast.Module(child.orelse, []), lazy, typing)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or function, typing)

    return walk(tree, False, False)


def import_complaints(module: str, source: str) -> list[str]:
    """Imports that point upwards, out of deployment, at a second copy, or at an extra."""
    found = []
    own = level(module)
    if own is None:
        return [f"{module}: has no level: give it a line in LEVELS"]
    training = under(module, "training")
    for what, lazy, typing in imports(ast.parse(source)):
        top = what.split(".")[0]
        if what.startswith("."):
            found.append(f"{module}: relative import {what}")
        elif top in ("wrappers", "pretrained"):
            found.append(f"{module}: `{what}` is a second copy of gem_policy.{what}")
        elif top == "gem_policy":
            if typing and short(module) and under(what, short(module)):
                continue  # a package's public names, which load on first use
            # `from gem_policy import X` needs the package itself, unless X is a module.
            target = level(what)
            if target is None:
                target = LEVELS[""]
            if target > own:
                found.append(f"{module} (level {own}): imports {what} (level {target})")
            if any(under(module, a) and under(what, b) for a, b in FORBIDDEN_EDGES):
                found.append(f"{module}: must not know {what}")
            if under(module, "pretrained"):
                found.append(f"{module}: data only, must not know {what}")
            if under(what, "training") and not training and not (under(module, "cli") and lazy):
                found.append(f"{module}: deployment imports {what}")
        elif typing or training:
            continue
        elif top in OPTIONAL and not lazy:
            if not (short(module) == "sb3" and top == "stable_baselines3"):
                found.append(f"{module}: imports {what}, an extra, at module level")
        elif top in EXTRAS and short(module) not in LAZY:
            found.append(f"{module}: imports {what}, an extra")
    return found


def unsafe_complaints(module: str, source: str) -> list[str]:
    """Ways by which a file could run code: pickle and its kin, eval, exec."""
    tree = ast.parse(source)
    found = []
    for what, _, _ in imports(tree):
        if (short(module), what) == RESTRICTED_READER:
            continue
        if what.split(".")[0] in CODE_CARRIERS or what in ("torch.load", "torch.save"):
            found.append(f"{module}: imports {what}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            found.append(f"{module}:{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "__import__"):
                found.append(f"{module}:{node.lineno}: {node.func.id}()")
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    found.append(f"{module}:{node.lineno}: allow_pickle")
    return found


def docstring_complaints(module: str, source: str) -> list[str]:
    """Modules, and public functions, classes and methods, that say nothing of themselves."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) or not tree.body else [f"{module}: no docstring"]
    if short(module) == "_version":
        return []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
            if node.name.startswith("_") or "overload" in marks or ".setter" in marks:
                continue
            if not ast.get_docstring(node):
                found.append(f"{prefix}{node.name}:{node.lineno}: no docstring")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, f"{module}.")
    return found


def name_complaints(module: str, source: str) -> list[str]:
    """Modules named after nothing in particular."""
    del source
    return [f"{module}: says nothing"] if module.rpartition(".")[2] in VAGUE else []


def package_complaints(declared: list[str], folders: dict[str, Path]) -> list[str]:
    """Packages that would silently stay out of the wheel, or that are not there."""
    on_disk = packages_on_disk(folders)
    files = module_files(folders).values()
    inits = {file.parent for file in files if file.name == "__init__.py"}
    found = [f"{name}: not in pyproject.toml" for name in sorted(on_disk - set(declared))]
    found += [f"{name}: not on disk" for name in sorted(set(declared) - on_disk)]
    bare = {file.parent for file in files} - inits
    return found + [f"{folder.name}/: no __init__.py" for folder in sorted(bare)]


def twin_complaints(files: list[Path]) -> list[str]:
    """Test files of one name in two folders: checkers take them for one module."""
    names = [file.name for file in files]
    return [f"{name}: in two folders" for name in sorted(set(names)) if names.count(name) > 1]


SOURCE_RULES = [import_complaints, unsafe_complaints, docstring_complaints, name_complaints]


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
    modules = module_files()
    assert {"gem_policy", "gem_policy.wrappers", "gem_policy.pretrained"} <= set(modules)
    complaints = [
        complaint for name, file in modules.items() for complaint in rule(name, file.read_text())
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mixture", "from gem_policy.networks import MLP"),
        ("mixture", "from gem_policy import networks"),
        ("mixture", "import gem_policy.networks"),
        ("mixture", "def f():\n    from gem_policy.policy import GEMPolicy"),
        ("policy", "from gem_policy import GEMPolicy"),
        ("policy", "from gem_policy.evaluate import evaluate"),
        ("policy", "from . import config"),
        ("policy", "from gem_policy.training.losses import expectile"),
        ("evaluate", "def f():\n    from gem_policy.training import trainer"),
        ("cli", "from gem_policy.training import trainer"),
        ("scoring", "from gem_policy.networks import CriticEnsemble"),
        ("pretrained", "from gem_policy.errors import GEMError"),
        ("wrappers.history", "import wrappers"),
        ("training.trainer", "from pretrained import names"),
        ("training", "from gem_policy.training.trainer import fit"),
        (
            "training.config",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from gem_policy.training.trainer import fit",
        ),
        ("policy", "import stable_baselines3"),
        ("policy", "def f():\n    import mujoco"),
        ("wrappers.history", "from minari import load_dataset"),
        ("evaluate", "try:\n    import gymnasium_robotics\nexcept ImportError:\n    pass"),
        ("sb3", "import minari"),
        ("checkpoint", "from huggingface_hub import hf_hub_download"),
        ("novelty", "import torch"),
    ],
)
def test_planted_import_is_found(module, source):
    assert len(import_complaints(f"gem_policy.{module}", source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("networks", "from gem_policy.mixture import GaussianMixture"),
        ("selection", "from gem_policy.candidates import CandidateSet"),
        ("policy", "from gem_policy.pretrained import names\nfrom gem_policy import config"),
        ("policy", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import minari"),
        ("checkpoint", "def f():\n    import huggingface_hub"),
        ("evaluate", "def f():\n    import gymnasium_robotics"),
        ("sb3", "from stable_baselines3.common.policies import BasePolicy"),
        ("cli", "def f():\n    from gem_policy.training.trainer import fit"),
        ("training.dataset", "import minari"),
        (
            "training",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from gem_policy.training.trainer import fit",
        ),
        ("training.recipes.pointmaze", "import mujoco\nfrom gem_policy.training import dataset"),
        ("wrappers.history", "from gem_policy.policy import GEMPolicy"),
    ],
)
def test_allowed_import_is_left_alone(module, source):
    assert import_complaints(f"gem_policy.{module}", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import torch\ntorch.load(f)",
        "from torch import save",
        "eval('1')",
        "exec('1')",
        "numpy.load(f, allow_pickle=True)",
    ],
)
def test_planted_unsafe_code_is_found(source):
    assert len(unsafe_complaints("gem_policy.checkpoint", source)) == 1


def test_safe_look_alikes_are_left_alone():
    source = "net.eval()\nsafetensors.torch.load(f)\nnumpy.load(f, allow_pickle=False)"
    assert unsafe_complaints("gem_policy.checkpoint", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "X = 1",
        "'''Doc.'''\ndef f():\n    return 1",
        "'''Doc.'''\nclass C:\n    x = 1",
        "'''Doc.'''\nclass C:\n    '''Doc.'''\n    def f(self):\n        return 1",
    ],
)
def test_planted_missing_docstring_is_found(source):
    assert len(docstring_complaints("gem_policy.mixture", source)) == 1


@pytest.mark.parametrize("name", ["utils", "training.common", "base"])
def test_planted_vague_name_is_found(name):
    assert name_complaints(f"gem_policy.{name}", "")


def test_every_package_on_disk_ships():
    tomllib = pytest.importorskip("tomllib")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert package_complaints(tool["packages"], FOLDERS) == []
    mapped = {name: ROOT / folder for name, folder in tool["package-dir"].items()}
    assert mapped == FOLDERS


def test_planted_package_is_found(tmp_path):
    for file in ("__init__.py", "inner/__init__.py", "bare/module.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    complaints = package_complaints(["p", "p.bare", "p.gone"], {"p": tmp_path})
    assert complaints == [
        "p.inner: not in pyproject.toml",
        "p.gone: not on disk",
        "bare/: no __init__.py",
    ]


def test_test_file_names_are_unique():
    assert twin_complaints(list((ROOT / "tests").rglob("*.py"))) == []


def test_planted_twin_is_found():
    assert twin_complaints([Path("a/test_x.py"), Path("b/test_x.py"), Path("test_y.py")])


def test_tests_are_no_package():
    # With an `__init__.py`, `tests` would be imported from the root, and `gem_policy/` there with
    # it, hiding an installed copy.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def imported_extras(statement: str, folder: Path) -> list[str]:
    """The extras in `sys.modules` after `statement` in a new interpreter started in `folder`."""
    code = f"import sys; {statement}; print(*sorted({OPTIONAL!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, cwd=folder, text=True, timeout=120).split()


def test_import_brings_no_extra(tmp_path):
    assert imported_extras("import gem_policy", tmp_path) == []


def test_planted_extra_is_found(tmp_path):
    (tmp_path / "minari.py").touch()
    assert imported_extras("import minari", tmp_path) == ["minari"]
