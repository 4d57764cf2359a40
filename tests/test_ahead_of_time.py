"""Decisions as libraries: what they are made of, when they are made, and found again.

That what is made decides as the policy does is tested in test_compiled.py (slow), by a program.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import GOAL, tiny_checkpoint, tiny_policy
from torch import Tensor

from gem_policy import ahead_of_time
from gem_policy.ahead_of_time import (
    KEPT,
    AheadOfTime,
    decision_of,
    digest,
    exported,
    is_available,
    machine_code,
    tensors_of,
)
from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy

# Of torch itself, when its compiler is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.skipif(
        not is_available(), reason="this torch makes no libraries: 2.6 and later do"
    ),
]
Program = torch.export.ExportedProgram


def networks_of(policy: GEMPolicy) -> tuple[torch.nn.Module, ...]:
    return policy.actor, policy.behavior, policy.critics


def as_traced(program: Program) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """In place of a library: the operations that it would be made of, by torch."""
    module = program.module()
    return lambda given: module(*given)


def test_a_decision_is_the_tensors_that_it_is_made_of() -> None:
    decision = tiny_policy().decide(torch.randn(2, 3))
    again = decision_of(tensors_of(decision))
    for found, expected in zip(tensors_of(again), tensors_of(decision), strict=True):
        assert found is expected
    assert again == decision


@pytest.mark.parametrize(
    ("shape", "lookahead"), [((1,), False), ((1,), True), ((), False), ((2, 2), True)]
)
def test_what_is_traced_is_the_ordinary_decision(shape: tuple[int, ...], lookahead: bool) -> None:
    checkpoint = tiny_checkpoint(GOAL, network={"critic_lookahead": lookahead})
    policy = GEMPolicy(checkpoint, torch.device("cpu"))
    decide = AheadOfTime(policy._deterministic, networks_of(policy), as_traced)
    for turn in range(2):  # the second time with other settings, of all rules
        rows = torch.randn(*shape, policy.config.network.observation_size)
        for found, expected in zip(
            tensors_of(decide(rows, policy._chosen)), tensors_of(policy.decide(rows)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        policy.selection = policy.selection.replace(
            candidates=20 + turn, all_modes=True, gain_per_nat=0.2, deciding_candidates=9
        )


class Builds:
    """In place of tracing and libraries, the decision itself; counts what each of them is asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def exported(self, decide: Any, _: Any, shape: torch.Size, settings: Any) -> Any:
        def run(given: list[Tensor]) -> Sequence[Tensor]:
            (rows,) = given
            assert rows.shape == shape and rows.dtype == torch.float32 and rows.is_contiguous()
            return tensors_of(decide(rows, settings))

        return run

    def machine_code(self, run: Any) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        number = len(self.calls)
        self.calls.append(0)

        def counted(given: list[Tensor]) -> Sequence[Tensor]:
            self.calls[number] += 1
            return run(given)

        return counted


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds()
    monkeypatch.setattr(ahead_of_time, "exported", made.exported)
    monkeypatch.setattr(ahead_of_time, "machine_code", made.machine_code)
    return made


def test_one_is_made_for_every_shape_settings_and_number_of_threads(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    policy.compiled = True
    rows, before = torch.randn(2, 3), policy.selection
    policy.decide(rows)
    policy.decide(rows + 1)
    assert builds.calls == [2]
    policy.decide(rows[:1])
    policy.selection = before.replace(candidates=5)
    assert policy.decide(rows).scores.shape == (2, 5)
    policy.selection = before.replace()  # equal, not the same
    policy.decide(rows)
    assert builds.calls == [3, 1, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    policy.decide(rows)
    assert builds.calls == [3, 1, 1, 1]


def test_rows_of_another_type_or_order_are_taken(builds: Builds) -> None:
    policy = tiny_policy()
    rows = torch.randn(3, 4, dtype=torch.float64).T
    expected = policy.decide(rows)
    policy.compiled = True
    torch.testing.assert_close(policy.decide(rows).scores, expected.scores, rtol=1e-4, atol=1e-4)
    assert policy.decide(rows[:0]).action.shape == (0, policy.config.network.action_size)
    assert builds.calls == [1], "nothing is made for no rows"


def test_beyond_so_many_decisions_are_the_ordinary_ones(builds: Builds) -> None:
    policy = tiny_policy()
    policy.compiled = True
    for count in range(1, KEPT + 3):
        assert policy.decide(torch.randn(count, 3)).index.shape == (count,)
    policy.decide(torch.randn(1, 3))
    assert builds.calls == [2, *[1] * (KEPT - 1)]


def test_what_is_made_is_what_decides(builds: Builds) -> None:
    policy, rows = tiny_policy(), torch.randn(2, 3)
    policy.decide(rows)
    policy.compiled = True
    policy.predict(rows.numpy(), deterministic=True)
    assert builds.calls == [2], "row by row"
    policy.decide(rows)
    assert builds.calls == [2, 1]
    policy.predict(rows.numpy(), deterministic=False)
    policy.decide(rows, torch.Generator().manual_seed(0))
    policy.decide(rows, count=3)
    policy.explain(rows[0].numpy())
    policy.selection = policy.selection.replace(candidates=1)
    policy.predict(rows.numpy(), deterministic=True)
    assert builds.calls == [2, 1], "draws, other counts and the mode alone are not"


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))]
)
def test_a_copy_has_its_own(again: Any, builds: Builds) -> None:
    policy, rows = tiny_policy(), torch.randn(2, 3)
    policy.compiled = True
    policy.decide(rows)
    other = again(policy)
    assert other.compiled
    other.decide(rows)
    policy.compiled = True
    policy.decide(rows)
    assert builds.calls == [2, 1]


def test_threads_that_ask_at_once_have_one_made(builds: Builds) -> None:
    policy, rows, found = tiny_policy(), torch.randn(2, 3), []
    policy.compiled = True
    threads = [threading.Thread(target=lambda: found.append(policy.decide(rows))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds.calls == [8] and len(found) == 8


@pytest.mark.parametrize("error", [RuntimeError("no compiler here"), OSError("no compiler here")])
def test_what_torch_cannot_make_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Program) -> Any:
        raise error

    monkeypatch.setattr(ahead_of_time, "machine_code", refuse)
    policy = tiny_policy()
    policy.compiled = True
    with pytest.raises(ConfigError, match="no compiler here.*leave out `compiled`"):
        policy.decide(torch.randn(2, 3))


def program_of(policy: GEMPolicy) -> Program:
    shape = torch.Size([1, 3])
    return exported(policy._deterministic, networks_of(policy), shape, policy._chosen)


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(tiny_policy())


def test_a_program_is_known_by_its_weights_settings_and_threads(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, policy = digest(program), tiny_policy()
    assert digest(program_of(policy)) == name
    policy.selection = policy.selection.replace(kappa=0.125)
    other = digest(program_of(policy))
    changed = tiny_policy()
    changed.critics.biases[0][0, 0, 0] += 1
    assert len({name, other, digest(program_of(changed))}) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert digest(program) != name


class Shop:
    """In place of torch's compiler and loader: files that say which program they are of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.made = folder, 0
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", self.compile)
        monkeypatch.setattr(torch._inductor, "aoti_load_package", self.load)

    def compile(self, program: Program, *, package_path: str) -> str:
        Path(package_path).write_text("a library")
        self.made += 1
        return package_path

    def load(self, path: str) -> Any:
        if Path(path).read_text() != "a library":
            raise RuntimeError("no library")

        class Package:
            class loader:
                run = staticmethod(lambda given: [Path(path)])

        return Package

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.*"))


def test_a_library_is_made_once_and_found_by_others(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path, monkeypatch)
    (found,) = machine_code(program)([])
    assert shop.files() == [found] and shop.made == 1
    assert machine_code(program)([]) == [found]
    assert shop.made == 1, "the same program again"
    policy = tiny_policy()
    policy.selection = policy.selection.replace(kappa=0.125)
    (other,) = machine_code(program_of(policy))([])
    assert shop.made == 2 and set(shop.files()) == {found, other}


def test_a_damaged_library_is_made_again(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path, monkeypatch)
    (found,) = machine_code(program)([])
    found.write_text("half of it")  # type: ignore[attr-defined]
    assert machine_code(program)([]) == [found]
    assert shop.made == 2 and shop.files() == [found]


def test_of_a_compilation_that_fails_nothing_is_left(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path, monkeypatch)

    def cut_off(program: Program, *, package_path: str) -> str:
        Path(package_path).write_text("half of it")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", cut_off)
    with pytest.raises(RuntimeError, match="disk is full"):
        machine_code(program)
    assert shop.files() == []
