"""The command line: each verb parses its arguments and makes one call; imports wait inside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gem_policy._version import __version__
from gem_policy.errors import ConfigError, DependencyError, GEMError, SpaceError

if TYPE_CHECKING:
    from gem_policy.evaluate import ReportRow
    from gem_policy.policy import GEMPolicy

app = typer.Typer(
    help="Deploy offline-RL policies: candidates ranked by value and support.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
datasets = typer.Typer(help="Datasets that this package can make again.", no_args_is_help=True)
app.add_typer(datasets, name="datasets")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="What registers an environment of your own."),
]


def main() -> None:
    """Run the command line; what a user can mend is one message, not a traceback."""
    try:
        app()
    except GEMError as error:
        print(f"gem-policy: {error}", file=sys.stderr)
        sys.exit(2)


def _version(value: bool | None) -> None:
    if value:
        print(f"gem-policy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit."),
    ] = None,
) -> None:
    pass


@app.command("list")
def list_policies(as_json: Json = False) -> None:
    """The policies that come with the package."""
    from gem_policy import pretrained

    found = pretrained.names()
    print(json.dumps(list(found)) if as_json else "\n".join(found))


@app.command()
def info(name: str, as_json: Json = False) -> None:
    """What a policy is: data, training, settings, measured returns."""
    from gem_policy import checkpoint
    from gem_policy.names import resolve

    document = checkpoint.to_document(checkpoint.load(resolve(name)))
    if as_json:
        print(json.dumps(document, indent=1, sort_keys=True))
        return
    from rich.console import Console
    from rich.table import Table

    provenance = document.pop("provenance")
    table = Table("what", "value", title=name)
    unit = {"gain_unit": document["gain_unit"]}
    flat = {**document["network"], **document["selection"], **unit}
    for part in (provenance, flat):
        for key, value in part.items():
            if key == "evaluation":
                continue
            if key.endswith("_spec") and isinstance(value, dict):
                steps = {"steps": value.get("max_episode_steps")}
                value = {"id": value.get("id"), "arguments": value.get("kwargs"), **steps}
            table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
    for row in provenance.get("evaluation", {}).get("rows", []):
        print(f"{row['label']:28} {_row_text(row['summary'])}")


def import_modules(names: list[str] | None) -> None:
    """Import what the user names, from the working directory too.

    Raises:
        ConfigError: It is no name of a module.
        DependencyError: There is no such module.
    """
    import importlib

    if names:
        sys.path.insert(0, "")
    for name in names or []:
        if "/" in name or not all(name.split(".")):
            raise ConfigError(f"--import takes a module's name such as my_envs, got {name!r}.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise DependencyError(f"--import {name}: {error}.") from error


def numbers(text: str, kind: type[int] | type[float], option: str) -> list[Any]:
    """A comma-separated list of numbers.

    Raises:
        ConfigError: Something in it is no number of that kind.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{option} takes numbers separated by commas, such as 1,4,16; got {text!r}."
        ) from error


SWEPT = ("candidates", "support_weight", "kappa")  # have options: a row for each of their values
GAINS = ("least_gain", "gain_per_nat", "deciding_candidates")


def select_as_asked(policy: GEMPolicy, name: str, asked: dict[str, Any]) -> None:
    """Change a policy's selection settings.

    Raises:
        ConfigError: A setting is unknown or out of range, has an option of its own, or would
            change nothing.
    """
    for setting in (swept for swept in SWEPT if swept in asked):
        option = "--" + setting.replace("_", "-")
        raise ConfigError(
            f"Give {option} {asked[setting]} instead of --set {setting}={asked[setting]}: it takes "
            "several values, for a row each."
        )
    if "temperature" in asked:
        raise ConfigError("temperature has no effect: these rows take the best score.")
    own = policy.selection
    changed = own.replace(**asked)
    for setting in (gain for gain in GAINS if getattr(changed, gain) != getattr(own, gain)):
        if changed.gain_kappa is None:
            raise ConfigError(
                f"{setting} has no effect on {name} where gain_kappa is None (null): no gain is "
                "asked for."
            )
        if setting != "deciding_candidates" and policy.config.gain_unit == 0:
            raise ConfigError(
                f"{setting} has no effect on {name}: the checkpoint does not know its unit. "
                "`gem-policy train` measures it, for a finished run too whose folder is still "
                "there."
            )
    policy.selection = changed


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="Shipped name, file, folder or hf://org/repo.")],
    episodes: Annotated[int, typer.Option(help="Episodes per row.")] = 100,
    candidates: Annotated[str, typer.Option(help="Budgets N, comma-separated.")] = "",
    support_weight: Annotated[str, typer.Option(help="lambda, comma-separated.")] = "",
    kappa: Annotated[str, typer.Option(help="kappa, comma-separated.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of another setting of selection."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also play the behavior model and the actor alone.")
    ] = False,
    compare: Annotated[
        list[str] | None, typer.Option(help="LABEL=SOURCE of another policy to play as well.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first start; each episode has its own.")] = 0,
    envs: Annotated[int, typer.Option(help="Environments side by side.")] = 50,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every episode and setting here.")
    ] = None,
    append: Annotated[bool, typer.Option(help="Keep the rows already in the JSON file.")] = False,
    batched: Annotated[
        bool,
        typer.Option(help="Decide for all environments at once: faster, the same up to rounding."),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            help="Have torch's compiler make the code of decisions, for each row anew: faster, the "
            "same up to rounding."
        ),
    ] = False,
    device: Device = "auto",
    import_: Imports = None,
) -> None:
    """Play a policy in the environment that it was made for, through SB3's evaluate_policy."""
    from gem_policy.config import parse_settings, require_count
    from gem_policy.cuda_graph import is_current_cuda
    from gem_policy.environments import env_maker
    from gem_policy.evaluate import ReportRow, rollout
    from gem_policy.policy import GEMPolicy
    from gem_policy.report import (
        check_appended,
        players,
        read_document,
        report_document,
        require_writable,
        write_document,
    )

    import_modules(import_)
    require_count("episodes", episodes)
    require_count("envs", envs)
    require_count("seed", seed, 0)
    if append and json_file is None:
        raise ConfigError("--append needs --json FILE, the report to add to.")
    if json_file is not None:
        require_writable(json_file)
    policy = GEMPolicy.load(name, device=device)
    others = {k: GEMPolicy.load(v, device=device) for k, v in map(_pair, compare or [])}
    for label, other in others.items():
        require_comparable(policy, label, other)
    for acting in (policy, *others.values()):
        # The same decision for the same number of environments, some thousand times.
        acting.cuda_graph = is_current_cuda(acting.device)
    policy.compiled = compiled  # as the report says; every row's decisions are compiled anew
    select_as_asked(policy, name, parse_settings(set_ or []))
    before = read_document(json_file) if append and json_file is not None else None
    rows: list[ReportRow] = []
    plan = players(
        policy,
        candidates=numbers(candidates, int, "--candidates") if candidates else None,
        support_weights=numbers(support_weight, float, "--support-weight")
        if support_weight
        else None,
        kappas=numbers(kappa, float, "--kappa") if kappa else None,
        baselines=baselines,
        compare=others,
    )
    played: dict[str, Any] = {"episodes": episodes, "seed": seed, "envs": envs, "batched": batched}
    if before is not None and json_file is not None:
        check_appended(report_document(policy, [], **played), before, json_file)
    _print_header(policy, name, episodes, seed)
    with _progress() as bar:
        task = bar.add_task("evaluating", total=len(plan) * episodes)
        for player in plan:
            bar.update(task, description=player.label)
            predictor = player.enter()
            if isinstance(predictor, GEMPolicy):
                predictor.compiled = False  # only so many are kept, and none is needed again
                predictor.compiled = compiled
            records = rollout(
                predictor,
                env_maker(policy),
                episodes=episodes,
                envs=envs,
                seed=seed,
                deterministic=player.deterministic,
                batched=batched,
                progress=lambda: bar.advance(task),
            )
            rows.append(ReportRow(player.label, player.settings, records))
            bar.console.print(f"{player.label:28} {_row_text(rows[-1].summary())}")
            if json_file is not None:  # after every row: a long evaluation may be stopped
                document = report_document(policy, rows, **played)
                if before is not None:
                    document["rows"] = [*before["rows"], *document["rows"]]
                write_document(document, json_file)


def require_comparable(policy: GEMPolicy, label: str, other: GEMPolicy) -> None:
    """Make sure that the other policy can act in the policy's environment.

    Raises:
        SpaceError: It reads other observations, or its actions have another shape.
    """
    from gem_policy.spaces import ObservationReader

    try:  # its form alone: a sample of wide bounds may be more than networks take
        sample = policy.observation_space.sample()
        ObservationReader(other.observation_space).read(sample, finite=False)
    except SpaceError as error:
        raise SpaceError(
            f"--compare {label}: it was made for other observations than the policy that is "
            f"evaluated: {other.observation_space} instead of {policy.observation_space}."
        ) from error
    own, expected = other.action_space.shape, policy.action_space.shape
    if own != expected:
        raise SpaceError(
            f"--compare {label}: its actions have the shape {own}, those of the policy that is "
            f"evaluated {expected}."
        )


def _pair(text: str) -> tuple[str, str]:
    label, equals, source = text.rpartition("=")  # a label may be "K=1"
    if not equals:
        raise ConfigError(f"--compare takes LABEL=SOURCE, got {text!r}.")
    return label, source


def _print_header(policy: GEMPolicy, name: str, episodes: int, seed: int) -> None:
    from gem_policy.environments import evaluation_spec

    spec = evaluation_spec(policy.provenance)
    print(f"{name} in {spec.id}, {episodes} episodes per row, seed {seed}")
    print("Intervals are 95 % bootstrap intervals of the mean; time is of one decision.\n")


def _row_text(summary: dict[str, Any]) -> str:
    """One row of a report as a line."""

    def interval(key: str, digits: int, factor: float = 1.0) -> str:
        x = summary[key]
        low, high = x["low"] * factor, x["high"] * factor
        return f"{x['mean'] * factor:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    parts = [f"return {interval('return', 1):24}"]
    if "success" in summary:
        parts.append(f"success % {interval('success', 0, 100):18}")
        parts.append(f"steps {interval('steps', 1):24}")
    parts.append(f"{summary['decision_us'] / 1000:.2f} ms")
    return " ".join(parts)


def _progress() -> Any:
    """A progress bar with an ETA."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        Remaining(),
        console=Console(soft_wrap=True),
    )


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="Minari id or path, or one of `datasets list`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run and of its checkpoint.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of a training, network or selection setting."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file of such settings, or a recipe that ships.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the run.  [default: that of --config, else 0]")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Train this many at once, from SEED on, into OUT/seed-SEED and so on."),
    ] = None,
    download: Annotated[bool, typer.Option(help="Fetch the dataset if it is not here.")] = False,
    device: Device = "cpu",
    tensorboard: Annotated[bool, typer.Option(help="Write curves to OUT/tensorboard.")] = True,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Log to this Weights & Biases project.")
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Play the policy after so many updates of the actor, and at the end."),
    ] = None,
    evaluate_episodes: Annotated[int, typer.Option(help="Episodes of each time.")] = 10,
    max_steps: Annotated[
        int | None, typer.Option(help="Read the first episodes only, up to so many steps.")
    ] = None,
    cuda_graph: Annotated[
        bool | None,
        typer.Option(help="Launch an update as one CUDA graph. [default: on a CUDA device]"),
    ] = None,
    compiled: Annotated[
        bool, typer.Option(help="Have torch.compile make the updates' code: faster, after a while.")
    ] = False,
    import_: Imports = None,
) -> None:
    """Train a policy on a Minari dataset; run the same command again to resume it."""
    from gem_policy.config import require_count
    from gem_policy.devices import choose_device
    from gem_policy.training.dataset import load
    from gem_policy.training.run import (
        curves,
        gather_settings,
        player,
        run,
        seed_curves,
        settle,
        wandb_curves,
    )
    from gem_policy.training.run_folder import held

    import_modules(import_)
    settings = gather_settings(config, set_ or [], seed)
    first = settings.train.seed
    if seeds is not None:
        require_count("seeds", seeds)  # before anything is loaded
    where = choose_device(device)
    with held(out):  # told before anything is read
        pass
    data = load(dataset, download=download, max_steps=max_steps)
    print(f"{data.id}: {data.transitions.episodes} episodes, {len(data.transitions)} steps")
    settings = settle(settings, data)  # for W&B, which is told before the run begins
    play = None
    if evaluate_every is not None:
        play = player(data, settings.train, evaluate_episodes, where)
    folder = out if tensorboard else None
    drawn = curves(folder) if seeds is None else seed_curves(folder, range(first, first + seeds))
    with _progress() as bar, drawn as write, wandb_curves(wandb, out, settings) as log:
        paths = run(
            data,
            out,
            settings,
            where,
            bar,
            [write, log],
            play,
            evaluate_every,
            seeds=seeds,
            cuda_graph=cuda_graph,
            compiled=compiled,
        )
    print("\n".join(f"Wrote {path}" for path in paths))


@app.command()
def estimate(
    name: Annotated[str, typer.Argument(help="Shipped name, file, folder or hf://org/repo.")],
    dataset: Annotated[str, typer.Argument(help="Minari id or path, of the policy's task.")],
    candidates: Annotated[str, typer.Option(help="Budgets N, comma-separated.")] = "",
    support_weight: Annotated[str, typer.Option(help="lambda, comma-separated.")] = "",
    kappa: Annotated[str, typer.Option(help="kappa, comma-separated.")] = "",
    updates: Annotated[int, typer.Option(help="Updates of the fitted critics.")] = 5000,
    transitions: Annotated[int, typer.Option(help="Steps of the dataset to fit on.")] = 50_000,
    seed: int = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every setting and estimate here.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Estimate a policy's discounted return from data alone, by fitted Q evaluation."""
    from gem_policy.policy import GEMPolicy
    from gem_policy.report import require_writable, write_document
    from gem_policy.training.dataset import load
    from gem_policy.training.fitted_q import estimate as fit
    from gem_policy.training.fitted_q import grid
    from gem_policy.training.fitted_q_learner import FittedQConfig

    if json_file is not None:
        require_writable(json_file)
    policy = GEMPolicy.load(name, device=device)
    selections = grid(
        policy.selection,
        numbers(candidates, int, "--candidates") if candidates else [],
        numbers(kappa, float, "--kappa") if kappa else [],
        numbers(support_weight, float, "--support-weight") if support_weight else [],
    )
    config = FittedQConfig(updates=updates, transitions=transitions, seed=seed)
    data = load(dataset)
    with _progress() as bar:
        task = bar.add_task("deciding", total=None)

        def tell(what: str, done: int, total: int) -> None:
            if done == total or done % 20 == 0:
                bar.update(task, description=what, completed=done, total=total)

        found = fit(policy, data, selections, config, progress=tell)
    print("Discounted return in the training's units, mean over held-out starts [95 % interval].")
    print("The interval knows nothing of the fit: see its spread and drift.")
    for one in found:
        chosen, value = one.selection, one.value
        print(
            f"N={chosen.candidates:<4} lambda={chosen.support_weight:<5g} kappa={chosen.kappa:<5g} "
            f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]  spread {one.spread:.4f}  "
            f"drift {one.drift:.4f}"
        )
    if json_file is not None:
        rows = [one.to_dict() for one in found]
        document = {"policy": name, "dataset_id": data.id, "settings": vars(config), "rows": rows}
        write_document(document, json_file)


@app.command()
def doctor(
    dataset: Annotated[str, typer.Argument(help="Minari id or path.")],
    download: Annotated[bool, typer.Option(help="Fetch the dataset if it is not here.")] = False,
    simulate: Annotated[bool, typer.Option(help="Replay some steps in the environment.")] = True,
    as_json: Json = False,
    import_: Imports = None,
) -> None:
    """Look for everything that is wrong with a dataset; exit code 1 if training is not advised."""
    from gem_policy.training.doctor import examine

    import_modules(import_)
    report = examine(dataset, download=download, simulate=simulate)
    print(json.dumps(report.to_dict(), indent=1) if as_json else report)
    if not report.healthy:
        raise typer.Exit(1)


@datasets.command("list")
def list_datasets(as_json: Json = False) -> None:
    """Every dataset that `make` can make, and whether it is here."""
    from gem_policy.training import recipes
    from gem_policy.training.location import local_ids

    here = set(local_ids())
    if as_json:
        print(json.dumps([{"name": n, "here": n in here} for n in recipes.names()]))
        return
    for name in recipes.names():
        print(f"{name:36} {'here' if name in here else ''}")


@datasets.command("make")
def make_dataset(
    name: str,
    steps: Annotated[int | None, typer.Option(help="Instead of the full size.")] = None,
    seed: int = 0,
    sources: Annotated[
        Path | None, typer.Option(help="Folder with other people's policies.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes to simulate with.")] = 1,
) -> None:
    """Make a dataset again by its recipe; safe to interrupt, goes on where it stopped."""
    from gem_policy.training import recipes

    with _progress() as bar:
        task = bar.add_task(name, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        made = recipes.make(
            name, steps=steps, seed=seed, sources=sources, workers=workers, progress=advance
        )
    print(f"Made {made}")


@datasets.command()
def sources(
    convert: Annotated[
        Path | None, typer.Option(help="Folder with the downloaded originals to convert.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the converted arrays.")] = None,
) -> None:
    """Where other people's policies and demonstrations are, and their conversion to arrays."""
    from gem_policy.training import sources as known

    if convert is None:
        for source in known.SOURCES:
            print(f"{source.target}  ({source.license})")
            for original in source.originals:
                print(f"    github.com/{source.repository} at {source.commit}: {original.path}")
                print(f"    sha256 {original.sha256}")
        return
    if to is None:
        raise ConfigError("--convert needs --to DIR, the folder for the converted arrays.")
    written, missing = known.convert(convert, to)
    print(
        "\n".join(
            [*(f"wrote {x}" for x in written), *(f"original not there: {x}" for x in missing)]
        )
    )
