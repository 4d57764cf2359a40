"""Every verb of the command line, on real files; what a user can mend is one message and exit 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import tiny_checkpoint
from small_datasets import random_episode, write_dataset

from gem_policy import __version__, pretrained
from gem_policy.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load, save_folder
from gem_policy.cli import main, require_comparable
from gem_policy.policy import GEMPolicy

ENV = "InvertedPendulum-v5"
STATE = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One shipped policy for a real environment, as if this were the wheel."""
    env = gym.make(ENV, max_episode_steps=6)
    assert env.spec is not None and isinstance(env.action_space, gym.spaces.Box)
    told = {"dataset_id": "test/pole-v0", "eval_env_spec": json.loads(env.spec.to_json())}
    made = tiny_checkpoint(env.observation_space, env.action_space, provenance=told)
    env.close()
    save_folder(made, tmp_path / "pole")
    monkeypatch.setattr(pretrained, "names", lambda: ("pole",))
    monkeypatch.setattr(pretrained, "path", lambda name: tmp_path / name)
    return tmp_path / "pole"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["gem-policy", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["evaluate", "--help"], ["train", "--help"], ["list"]]
)
def test_help_is_fast_because_it_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from gem_policy.cli import main\n"
        f"sys.argv = ['gem-policy', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as left:\n    assert not left.code, left.code\n"
        "heavy = {'torch', 'gymnasium', 'numpy', 'minari', 'stable_baselines3', 'scipy'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120)
    assert "LOADED []" in told


def test_the_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == f"gem-policy {__version__}"


def test_list_names_what_is_shipped(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list") == 0
    assert capsys.readouterr().out == "pole\n"
    assert call(monkeypatch, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ["pole"]


def test_info_tells_what_the_checkpoint_says(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "info", "pole") == 0
    text = capsys.readouterr().out
    for part in ("test/pole-v0", ENV, "actor_components", "kappa", "gain_unit"):
        assert part in text
    assert call(monkeypatch, "info", shipped / WEIGHTS_FILE, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((shipped / CONFIG_FILE).read_text())


def test_evaluate_plays_every_row_and_writes_every_episode(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "deep" / "report.json"
    arguments = ["--episodes", 3, "--envs", 2, "--candidates", "1,4", "--support-weight", "0,1"]
    arguments += ["--baselines", "--compare", f"again={shipped}", "--seed", 5, "--json", out]
    assert call(monkeypatch, "evaluate", "pole", *arguments) == 0
    text = capsys.readouterr().out
    assert f"pole in {ENV}, 3 episodes per row, seed 5" in text
    document = json.loads(out.read_text())
    labels = [row["label"] for row in document["rows"]]
    assert labels[4:] == [
        "again",
        *("GEM N=1 lambda=0", "GEM N=4 lambda=0", "GEM N=1 lambda=1", "GEM N=4 lambda=1"),
    ]
    for row in document["rows"]:
        assert row["label"] in text
        assert len(row["episodes"]["return"]) == 3
        summary = row["summary"]["return"]
        assert summary["low"] <= summary["mean"] <= summary["high"]
    assert document["environment"]["id"] == ENV


def test_evaluate_compiles_the_decisions_of_every_row_if_asked(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def compile_(self: GEMPolicy) -> Any:
        """In place of torch's compiler, the ordinary decision."""
        made.append(0)
        number = len(made) - 1

        def decide(rows: Any, chosen: Any) -> Any:
            made[number] += 1
            return self._deterministic(rows, chosen)

        return decide

    monkeypatch.setattr(GEMPolicy, "_compile", compile_)
    plain, out = tmp_path / "plain.json", tmp_path / "compiled.json"
    short = ("evaluate", "pole", "--episodes", 2, "--candidates", "1,4,6", "--json")
    assert call(monkeypatch, *short, plain) == 0
    assert made == []
    assert call(monkeypatch, *short, out, "--compiled") == 0
    assert len(made) == 4 and made[:2] == [0, 0] and min(made[2:]) > 12, "each row has its own"
    found, expected = (json.loads(path.read_text()) for path in (out, plain))
    assert found["compiled"] is True and expected["compiled"] is False
    assert [r["episodes"] for r in found["rows"]] == [r["episodes"] for r in expected["rows"]]
    assert call(monkeypatch, *short, out, "--append") == 2, "rows of another rounding"


@pytest.mark.parametrize("command", ["evaluate", "estimate"])
@pytest.mark.parametrize("where", ["", "file/report.json", "/proc/nowhere/report.json"])
def test_what_cannot_be_written_is_told_before_the_work(
    where: str,
    command: str,
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    told = ["pole"] if command == "evaluate" else ["pole", "no/such-v0"]
    assert call(monkeypatch, command, *told, "--json", tmp_path / where) == 2
    out, err = capsys.readouterr()
    assert "Cannot write" in err and not out
    assert (tmp_path / "file").read_text() == "mine"


def test_a_report_can_go_to_a_stream(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert call(monkeypatch, "evaluate", "pole", "--episodes", 1, "--json", tmp_path / "pipe") == 0
    reader.join(60)
    assert len(json.loads(read[0])["rows"]) == 1
    assert (tmp_path / "pipe").is_fifo()


def test_rows_join_those_that_were_played_likewise(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "report.json"
    short = ["--episodes", 1, "--json", out]
    assert call(monkeypatch, "evaluate", "pole", *short, "--candidates", 1) == 0
    assert call(monkeypatch, "evaluate", "pole", *short, "--candidates", 2, "--append") == 0
    document = json.loads(out.read_text())
    assert [row["settings"]["candidates"] for row in document["rows"]] == [1, 2]
    made = load(shipped)
    other = {**made.provenance, "train": {"seed": 1}}
    save_folder(replace(made, provenance=other), tmp_path / "other")
    capsys.readouterr()
    for name, options, expected in (
        ("pole", ["--seed", 1], "seed"),
        (tmp_path / "other", [], "train"),
    ):
        assert call(monkeypatch, "evaluate", name, *short, *options, "--append") == 2
        told, err = capsys.readouterr()
        assert f"has rows with other ['{expected}']" in err and not told
    assert json.loads(out.read_text()) == document
    del document["starts"]  # as reports of before
    out.write_text(json.dumps(document))
    assert call(monkeypatch, "evaluate", "pole", *short, "--append") == 2
    assert "has rows with other ['starts']" in capsys.readouterr().err


def test_what_registers_an_environment_is_imported_by_the_user(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "their_envs.py").write_text(
        "import gymnasium\n"
        "def make():\n"
        f"    return gymnasium.make({ENV!r}, max_episode_steps=6)\n"
        "gymnasium.register('theirs/Pole-v0', 'their_envs:make')\n"
    )
    made = load(shipped)
    spec = {**made.provenance["eval_env_spec"], "id": "theirs/Pole-v0"}
    save_folder(replace(made, provenance={"eval_env_spec": spec}), tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    short = ["evaluate", tmp_path / "theirs", "--episodes", 1]
    assert call(monkeypatch, *short) == 2
    assert "--import MODULE" in capsys.readouterr().err
    assert call(monkeypatch, *short, "--import", "no_such_module") == 2
    assert "--import no_such_module: No module named" in capsys.readouterr().err
    for path in ("./their_envs", "", "a..b"):
        assert call(monkeypatch, *short, "--import", path) == 2
        assert f"such as my_envs, got {path!r}" in capsys.readouterr().err
    assert call(monkeypatch, *short, "--import", "their_envs") == 0
    del gym.registry["theirs/Pole-v0"], sys.modules["their_envs"]


def test_wide_bounds_are_no_reason_not_to_compare() -> None:
    wide = gym.spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (4,))
    policy, other = (
        GEMPolicy(tiny_checkpoint(space), torch.device("cpu")) for space in (wide, STATE)
    )
    require_comparable(policy, "same", other)


@pytest.mark.parametrize(
    ("spaces", "told"),
    [
        ({"observation_space": gym.spaces.Dict({"a": STATE})}, "other obs"),
        (
            {"observation_space": STATE, "action_space": gym.spaces.Box(-1, 1, (2,))},
            r"shape \(2,\)",
        ),
    ],
)
def test_a_policy_of_other_spaces_is_not_played_beside(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spaces: dict[str, Any],
    told: str,
) -> None:
    save_folder(tiny_checkpoint(**spaces), tmp_path / "other")
    arguments = ["evaluate", "pole", "--episodes", 1, "--baselines"]
    assert call(monkeypatch, *arguments, "--compare", f"odd={tmp_path / 'other'}") == 2
    text = capsys.readouterr()
    assert re.search(f"--compare odd: .*{told}", " ".join(text.err.split()))
    assert "cloning" not in text.out  # nothing was played


@pytest.mark.parametrize(
    "description", ["x", {"id": 1}, [1], 5, {"id": "A-v0", "kwargs": {"steps": 3}}]
)
def test_info_prints_whatever_a_file_says_of_its_environment(
    description: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_folder(tiny_checkpoint(provenance={"eval_env_spec": description}), tmp_path / "odd")
    assert call(monkeypatch, "info", tmp_path / "odd") == 0
    assert "eval_env_spec" in capsys.readouterr().out


def test_the_same_evaluation_gives_the_same_returns(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("a", "b"):
        out = tmp_path / name
        arguments = ("evaluate", "pole", "--episodes", 2, "--baselines", "--json", out)
        assert call(monkeypatch, *arguments) == 0
        rows = json.loads(out.read_text())["rows"]
        seen.append([row["episodes"]["return"] for row in rows])
    assert seen[0] == seen[1]


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # four updates a phase
def test_evaluate_asks_for_the_gain_that_it_is_told(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "report.json"
    short = ["--episodes", 1, "--envs", 1, "--candidates", 4, "--json", out]
    for text, expected in (("null", None), ("0.5", 0.5)):
        assert call(monkeypatch, "evaluate", "pole", *short, "--set", f"gain_kappa={text}") == 0
        (row,) = json.loads(out.read_text())["rows"]
        assert row["settings"]["gain_kappa"] == expected
    asked = {"least_gain": 0.5, "gain_per_nat": 0.25, "deciding_candidates": 2, "bound": "lower"}
    options = [part for k, v in asked.items() for part in ("--set", f"{k}={v}")]
    assert call(monkeypatch, "evaluate", "pole", *short, *options) == 0
    document = json.loads(out.read_text())
    assert document["rows"][0]["settings"].items() >= asked.items() and document["gain_unit"] > 0
    for setting in ("least_gain", "gain_per_nat", "deciding_candidates"):
        both = ["--set", "gain_kappa=null", "--set", f"{setting}=1"]
        assert call(monkeypatch, "evaluate", "pole", *short, *both) != 0
        said = " ".join(capsys.readouterr().err.split())
        assert f"{setting} has no effect on pole where gain_kappa is None" in said
    made = load(shipped)
    save_folder(replace(made, config=replace(made.config, gain_unit=0.0)), tmp_path / "unknown")
    unknown = ["evaluate", tmp_path / "unknown", *short, "--set"]
    assert call(monkeypatch, *unknown, "least_gain=0.5") != 0
    assert "does not know its unit" in capsys.readouterr().err
    assert call(monkeypatch, *unknown, "deciding_candidates=2") == 0
    for wrong, words in (
        ("gain_kappa=-1", "`gain_kappa` must be a finite number >= 0, or None"),
        ("gain_kappa", "--set takes NAME=VALUE, got 'gain_kappa'"),
        ("kapa=1", "Unknown selection settings ['kapa']"),
        ("support_weight=2", "Give --support-weight 2 instead of --set support_weight=2"),
        ("temperature=2", "temperature has no effect"),
        ("deciding_candidates=0", "must be an integer >= 1, or None (null), got 0"),
    ):
        assert call(monkeypatch, "evaluate", "pole", *short, "--set", wrong) != 0
        assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # four updates a phase
def test_train_makes_a_policy_and_evaluate_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    write_dataset("test/cli-v0", [random_episode(8, rng) for _ in range(5)])
    settings = tmp_path / "settings.json"
    phases = ("behavior", "value", "critic", "actor")
    short = {**{f"{phase}_updates": 4 for phase in phases}, "batch_size": 8}
    settings.write_text(json.dumps({**short, "critic_hidden": [8], "candidates": 9}))
    out = tmp_path / "run"
    arguments: list[Any] = ["train", "test/cli-v0", "--out", out, "--config", settings]
    arguments += ["--set", "kappa=0.25", "--set", "actor_hidden=[8]", "--set", "bound=paired"]
    for option, told in (
        (["--evaluate-every", 2], "names no environment"),
        (["--wandb", "gem"], "pip install wandb"),
        (["--max-steps", 9], "has 1 episode(s) within max_steps=9"),
    ):
        monkeypatch.setitem(sys.modules, "wandb", None)
        assert call(monkeypatch, *arguments, *option) == 2
        assert told in capsys.readouterr().err
    assert not (out / WEIGHTS_FILE).exists()
    logged: dict[str, Any] = {}

    def init(config: dict[str, Any], **kwargs: Any) -> Any:
        logged.update(config)
        return SimpleNamespace(
            id="it", log=lambda metrics, step: None, finish=lambda exit_code: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    arguments += ["--wandb", "gem", "--seed", 3, "--max-steps", 33]
    assert call(monkeypatch, *arguments) == 0
    assert f"Wrote {out / WEIGHTS_FILE}" in capsys.readouterr().out
    made = load(out)
    assert made.config.selection.candidates == 9
    assert (made.config.selection.kappa, made.config.selection.bound) == (0.25, "paired")
    assert made.config.network.actor_hidden == (8,)
    assert made.provenance["train"]["seed"] == 3
    # What was left to the trainer is told to W&B as well.
    assert {name: logged[name] for name in made.provenance["train"]} == made.provenance["train"]
    assert logged["candidates"] == 9 and logged["kappa"] == 0.25
    assert logged["actor_hidden"] == (8,) and logged["behavior_hidden"] == (512, 512)
    assert made.provenance["dataset_steps"] == 32
    assert any((out / "tensorboard").iterdir())
    assert call(monkeypatch, "evaluate", out, "--episodes", 1) == 2
    assert "names no environment" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # two updates a phase
def test_train_makes_a_policy_of_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    write_dataset("test/cli-v0", [random_episode(8, rng) for _ in range(5)])
    out = tmp_path / "run"
    arguments: list[Any] = ["train", "test/cli-v0", "--out", out, "--seed", 3, "--seeds", 2]
    for phase in ("behavior", "value", "critic", "actor"):
        arguments += ["--set", f"{phase}_updates=2"]
    assert call(monkeypatch, *arguments) == 0
    told = capsys.readouterr().out
    for seed in (3, 4):
        assert f"Wrote {out / f'seed-{seed}' / WEIGHTS_FILE}" in told
        assert load(out / f"seed-{seed}").provenance["train"]["seed"] == seed
        assert any((out / f"seed-{seed}" / "tensorboard").iterdir())
    assert not (out / WEIGHTS_FILE).exists() and not (out / "tensorboard").exists()


def test_datasets_are_listed_and_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    name = "gem/pointmaze/umaze-v0"
    assert call(monkeypatch, "datasets", "list", "--json") == 0
    assert {"name": name, "here": False} in json.loads(capsys.readouterr().out)
    assert call(monkeypatch, "datasets", "make", name, "--steps", 600) == 0
    assert f"Made {name}" in capsys.readouterr().out
    assert call(monkeypatch, "datasets", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(name)] == [[name, "here"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["info", "poel"], "Did you mean 'pole'?"),
        (["info", "nowhere/at/all"], "There is no file or folder"),
        (["evaluate", "pole", "--candidates", "1,x"], "--candidates takes numbers separated by"),
        (["evaluate", "pole", "--candidates", "0"], "`candidates` must be an integer >= 1"),
        (["evaluate", "pole", "--kappa", "-1"], "`kappa` must be a finite number >= 0"),
        (["evaluate", "pole", "--compare", "x"], "--compare takes LABEL=SOURCE"),
        (["evaluate", "pole", "--episodes", "0"], "`episodes` must be an integer >= 1"),
        (["evaluate", "pole", "--envs", "0"], "`envs` must be an integer >= 1"),
        (["evaluate", "pole", "--seed", "-1"], "`seed` must be an integer >= 0"),
        (["evaluate", "pole", "--append"], "--append needs --json FILE"),
        (["datasets", "sources", "--convert", "OUT", "--to", "OUT"], "none of the originals"),
        (["evaluate", "pole", "--device", "nonsense"], "Device 'nonsense' cannot be used"),
        (["train", "test/absent-v0", "--out", "OUT"], "test/absent-v0"),
        (["train", "test/absent-v0", "--out", "OUT", "--set", "lam"], "--set takes NAME=VALUE"),
        (["train", "x", "--out", "OUT", "--set", "lam=1"], "There is no setting 'lam'"),
        (["train", "x", "--out", "OUT", "--set", "kappa=-1"], "`kappa` must be"),
        (["train", "x", "--out", "OUT", "--config", "absent.json"], "no JSON file of settings"),
        (["train", "x", "--out", "OUT", "--set", "observation_size=3"], "There is no setting"),
        (["train", "x", "--out", "OUT", "--seeds", "0"], "`seeds` must be an integer >= 1"),
        (["datasets", "make", "gem/pointmaze/umazy-v0"], "Did you mean"),
    ],
)
def test_what_a_user_can_mend_is_one_message(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *[tmp_path / "out" if a == "OUT" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("gem-policy: ")
    assert "Traceback" not in error


def test_a_setting_of_the_wrong_type_is_one_message(tmp_path: Path) -> None:
    # In a process of its own: here the tests' type checker would speak up first.
    command = [sys.executable, "-m", "gem_policy", "train", "x", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--set", "kappa=abc"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gem-policy: `kappa` must be")
    assert "'abc'" in done.stderr


def test_an_unknown_verb_or_option_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "fly") == 2
    assert "No such command 'fly'" in capsys.readouterr().err
    assert call(monkeypatch, "list", "--wings") == 2
    assert "No such option" in capsys.readouterr().err


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "gem_policy", "--version"]
    told = subprocess.check_output(command, text=True, timeout=120, cwd="/")
    assert told.strip() == f"gem-policy {__version__}"
