"""The pages of results: what they say is what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.training.config import TrainConfig
from gem_policy.training.few_demonstrations import DECAY, WIDE

blocks, cards, defaults = script("blocks.py"), script("cards.py"), script("defaults.py")


@pytest.mark.parametrize("made", [cards, defaults], ids=["cards", "defaults"])
def test_pages_say_what_was_measured(made: Any) -> None:
    for page, body in zip((blocks.README, blocks.RESULTS), made.bodies(), strict=True):
        assert blocks.block(made.NAME, body) in page.read_text(), page.name


def test_cards_say_what_was_measured() -> None:
    measured = cards.measured()
    assert measured
    for folder, (loaded, document) in measured.items():
        assert (folder / "README.md").read_text() == cards.card(folder.name, loaded, document)


def test_a_part_of_a_page_is_written_in_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter <!-- b -->\n")
    blocks.fill(page, "a", "new\nlines")
    blocks.fill(page, "a", "new\nlines")
    made = "before\n<!-- a -->\nnew\nlines\n<!-- end of a -->\nafter <!-- b -->\n"
    assert page.read_text() == made
    for name in ("b", "c"):  # not closed, not there
        with pytest.raises(ValueError, match=f"end of {name}"):
            blocks.fill(page, name, "x")
    assert page.read_text() == made


def test_the_first_row_of_a_table_is_its_head() -> None:
    assert blocks.markdown([["a", "b"], ["1", ""]]) == "| a | b |\n| --- | --- |\n| 1 |  |"


def row(label: str, mean: float, **settings: Any) -> dict[str, Any]:
    """A row of results with a return of ``mean`` +- 1."""
    summary = {"return": {"mean": mean, "low": mean - 1, "high": mean + 1}}
    return {"label": label, "settings": settings, "summary": summary}


def test_a_row_of_the_table_is_a_record() -> None:
    rows = [row(label, 10.0 * i) for i, label in enumerate(defaults.COLUMNS) if label != "GEM"]
    gem = row("GEM N=4 x", 99.4, candidates=4)
    record = {"dataset_id": "gem/a/b-v0", "updates": 7, "rows": [*rows, gem]}
    record["label"] = "as shipped"
    record["gem_updates"] = {"behavior_updates": 5, "actor_updates": 2}
    record["iql"] = {"seed": 0}
    cells = [f"{10 * i} [{10 * i - 1}, {10 * i + 1}]" for i in range(4)]
    line = ["7", "2 to 5", *cells, "99 [98, 100] N=4"]
    assert defaults.line(record) == ["a/b", *line]
    record["iql"] = {"seed": 3}
    assert defaults.line(record) == ["a/b, seed 3", *line]


def record(seed: int, updates: int, iql: float, gem: float) -> dict[str, Any]:
    """A record of one training of each, with these returns."""
    rows = [row(label, 10.0) for label in defaults.COLUMNS if label not in ("GEM", "d3rlpy IQL")]
    rows += [row("d3rlpy IQL", iql), row("GEM N=4 x", gem)]
    return {"updates": updates, "iql": {"seed": seed}, "rows": rows}


def test_a_row_of_the_short_table_is_a_mean_over_trainings() -> None:
    own = [record(0, 20_000, 1, 50), record(0, 100_000, 9, 50), record(1, 20_000, 3, 70)]
    assert defaults.short_line("gem/a/b-v0", own[:1]) == ["a/b", "10", "1", "", "10", "50 N=4"]
    expected = ["a/b", "10 (2)", "2 (2)", "9", "10 (2)", "60 (2) N=4"]
    assert defaults.short_line("gem/a/b-v0", own) == expected
    with pytest.raises(ValueError, match="5"):
        defaults.short_line("gem/a/b-v0", [record(0, 5, 1, 50)])


def test_what_was_chosen_before_the_latest_settings_is_marked() -> None:
    def less(name: str, count: int, **changes: Any) -> dict[str, Any]:
        own = asdict(SelectionConfig(candidates=count)) | changes
        return row(f"GEM N={count}", 1.0, **{k: v for k, v in own.items() if k != name})

    for made, setting, sign in (
        (less("", 256), "", ""),
        (less("gain_per_nat", 4), "gain_per_nat", "¹"),
        (less("gain_per_nat", 1), "", ""),  # chooses nothing
        (less("gain_per_nat", 4, gain_kappa=None), "", ""),  # asks for no gain
        (less("deciding_candidates", 65), "deciding_candidates", "²"),
        (less("deciding_candidates", 64), "", ""),  # all decide
    ):
        assert (defaults.before(made), defaults.mark(made)) == (setting, sign)
        assert defaults.budget_of(made) == made["label"].removeprefix("GEM ") + sign
    assert defaults.with_legend("1 and 2") == "1 and 2"
    assert defaults.with_legend("1² and 2") == "1² and 2\n\n² before `deciding_candidates`."
    both = "¹ before `gain_per_nat`, ² before `deciding_candidates`."
    assert defaults.with_legend("1² and 2¹").endswith(both)
    today, old = ({n: less(name, n) for n in (4, 256)} for name in ("", "deciding_candidates"))
    assert defaults.marks([today, old], 256) == "²" and defaults.marks([today, old], 4) == ""


def test_what_gem_has_more_than_iql_is_told_of_several_trainings() -> None:
    own = [
        record(seed, 20_000, 10.0 * seed, 10.0 * seed + gain) for seed, gain in enumerate((1, 3))
    ]
    own += [record(seed, 100_000, 50, 50 + gain) for seed, gain in enumerate((-3, 0, -6))]
    assert defaults.over_iql({"gem/a/b-v0": own[:2]}) == ""
    expected = "a/b -3 ± 2 after 100000 updates of IQL (3 trainings)."
    assert defaults.over_iql({"gem/a/b-v0": own}).splitlines()[1:] == [expected]


def test_what_gem_has_more_than_its_own_actor_is_told_start_by_start() -> None:
    def played(seed: int, count: int, gem: list[float], actor: list[float]) -> dict[str, Any]:
        rows = [row("GEM N", 0.0, candidates=count), row("actor mode", 0.0)]
        for own, returns in zip(rows, (gem, actor), strict=True):
            own["episodes"] = {"return": returns}
        return {"iql": {"seed": seed}, "rows": rows}

    chooses = played(0, 4, [1.0, 5.0], [0.0, 0.0])
    other = played(3, 4, [0.0, 0.0], [2.0, 2.0])
    groups = {"gem/a/b-v0": [chooses, chooses, other], "gem/c/d-v0": [played(0, 1, [9.0], [1.0])]}
    told = defaults.over_itself(groups, "actor mode").splitlines()
    assert told[1:] == ["a/b +3 ± 2;", "a/b, seed 3 -2 ± 0."], "once each, no clones"
    assert defaults.over_itself({"gem/c/d-v0": groups["gem/c/d-v0"]}, "actor mode") == ""


def test_only_trainings_with_all_of_todays_defaults_are_shown() -> None:
    chosen = asdict(SelectionConfig(candidates=7))
    alone = asdict(SelectionConfig(candidates=1, kappa=9.0))  # chooses nothing
    rows = [row("GEM N=7", 1.0, **chosen), row("GEM N=1", 1.0, **alone), row("actor mode", 1.0)]
    own: dict[str, Any] = {
        "dataset_id": "gem/some/large-v0",
        "train": asdict(TrainConfig(seed=7, weight_decay=0.0)),
        "network": json.loads(json.dumps(asdict(NetworkConfig(3, 2)))),
        "rows": rows,
    }
    assert defaults.with_defaults(own)
    small = {**own, "dataset_id": "gem/door/human-v0"}
    assert not defaults.with_defaults(small)
    decayed = asdict(TrainConfig(seed=7, weight_decay=DECAY))
    wide = {**own["network"], **{name: list(layers) for name, layers in WIDE.items()}}
    assert not defaults.with_defaults({**small, "train": decayed})
    assert defaults.with_defaults({**small, "train": decayed, "network": wide})
    for part, free in (("train", {"seed"}), ("network", {"observation_size", "action_size"})):
        assert not defaults.with_defaults({**own, part: None})
        for name in set(own[part]) - free:
            less = {k: v for k, v in own[part].items() if k != name}
            assert not defaults.with_defaults({**own, part: less})
            assert not defaults.with_defaults({**own, part: {**own[part], name: "another"}})
    for name in defaults.LATEST:
        before = {k: v for k, v in chosen.items() if k != name}
        assert defaults.with_defaults({**own, "rows": [row("GEM N=7", 1.0, **before)]})
    for name in set(chosen) - {"candidates"}:
        other = row("GEM N=7", 1.0, **{**chosen, name: "another"})
        assert not defaults.with_defaults({**own, "rows": [*rows[1:], other]}), name


def test_a_gain_is_a_mean_difference_with_its_standard_error() -> None:
    def curve(**returns: list[float]) -> dict[int, dict[str, Any]]:
        return {int(n[1:]): {"episodes": {"return": x}} for n, x in returns.items()}

    one = curve(n1=[1.0, 3.0, 5.0, 7.0], n16=[11.0, 13.0, 15.0, 21.0], n64=[0.0])
    error = math.sqrt(4 / 4)  # of 10, 10, 10, 14 on the same starts
    assert defaults.gains([one]) == [f"+11 ± {error:.0f}", ""]
    other = curve(n1=[5.0, 5.0], n16=[10.0, 20.0], n256=[0.0, 1.0])
    assert defaults.gains([other]) == ["+10 ± 5", "-4 ± 0"]
    # Of two trainings, 11 +- 1 and 10 +- 5: 0.5 by what they differ, 2.5 by their starts.
    assert defaults.gains([one, other]) == ["+10 ± 3", ""]
    assert defaults.gains([one, other, {1: one[1]}]) == ["+10 ± 3 (2)", ""]
    far = curve(n1=[0.0, 0.0], n16=[50.0, 52.0])
    assert defaults.gains([one, far]) == ["+31 ± 20", ""]
    assert defaults.gains([one, {1: one[1]}]) == ["", ""]


def test_a_budget_stands_under_its_own_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, counts in (("a", (1, 4)), ("a_lookahead", (4, 1)), ("a_seed-1", (4,)), ("b", (4, 1))):
        rows = [row(f"GEM N={n}", 10.0 * n, **asdict(SelectionConfig(n))) for n in counts]
        for own, n in zip(rows, counts, strict=True):
            own["episodes"] = {"return": [n, n + 2.0 * (n > 1)]}
        train = asdict(TrainConfig(seed=len(name), weight_decay=0.0))
        network = json.loads(json.dumps(asdict(NetworkConfig(3, 2))))
        document = {"dataset_id": f"gem/{name[0]}-v0", "episodes": 5, "seed": 6}
        document |= {"train": train, "network": network}
        made = {**document, "rows": [row("actor mode", 7.0), *rows]}
        (tmp_path / f"{name}_budget.json").write_text(json.dumps(made))
    other = {**made, "train": {**train, "discount": 0.5}}
    (tmp_path / "c_budget.json").write_text(json.dumps(other))
    monkeypatch.setattr(defaults, "FOLDER", tmp_path)
    cells = ["10 [9, 11]", "40 [39, 41]"]
    means, trainings, counted = defaults.budgets()
    assert means == [
        ["data", "starts", "N = 1", "N = 4", "16 less 1", "256 less 1"],
        ["a, mean of 3", "5 from 6", "10 (2)", "40", "", ""],
    ]
    assert trainings == [
        ["a", "5 from 6", *cells, "", ""],
        ["a, lookahead", "5 from 6", *cells, "", ""],
        ["a, seed 1", "5 from 6", "", "40 [39, 41]", "", ""],
        ["b", "5 from 6", *cells, "", ""],
    ]
    assert counted.startswith("Of the 3 differences") and "3 above" in counted
    made["rows"][1]["settings"].pop("gain_per_nat")  # of N = 4
    (tmp_path / "b_budget.json").write_text(json.dumps(made))
    _, trainings, counted = defaults.budgets()
    assert trainings[3] == ["b", "5 from 6", cells[0], cells[1] + "¹", "", ""]
    assert counted.startswith("Of the 2 differences")
    assert "Before `gain_per_nat`:\nOf the 1 differences" in counted


def test_differences_beyond_chance_are_counted() -> None:
    def curve(*gains: float) -> dict[int, dict[str, Any]]:
        pairs = ((1, [0.0] * len(gains)), (4, list(gains)), (16, [0.0] * len(gains)))
        return {n: {"episodes": {"return": x}} for n, x in pairs}

    # Means of 3, -3 and 1, each with a standard error of 1.
    curves = [curve(2, 4), curve(-2, -4), curve(0, 2)]
    (counted,) = defaults.tally(curves)
    assert counted.startswith("Of the 6 differences")
    assert "1 are below 0" in counted and "1 above" in counted and "by chance 0.2" in counted


def test_falls_are_counted_and_left_out() -> None:
    one, four = [10.0, 1.0, 10.0, 10.0], [12.0, 10.0, 3.0, 16.0]
    curve = {n: {"episodes": {"return": x}} for n, x in ((1, one), (4, four))}
    rows = defaults.without_falls({"a": curve}, 5)
    # Of the first start and the last: 2 and 6.
    assert rows == [["training", "N = 1", "N = 4"], ["a", "1 fall", "+4.0 ± 2.0, 1 fall"]]
