"""Past formats lead to today's; that files of them decide as they did is in test_golden.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from fakes import tiny_checkpoint

from gem_policy.checkpoint import from_document, to_document
from gem_policy.errors import CheckpointError
from gem_policy.formats import FORMAT_VERSION, MIGRATIONS, migrated, require_known_version

# What each format brought, so what the one before did not have: part of the document, name.
BROUGHT = {
    2: [("network", "critic_frequencies")],
    3: [("network", "critic_lookahead"), ("network", "step_hidden")],
    4: [("selection", "gain_kappa")],
    5: [("selection", "least_gain"), (None, "gain_unit")],
    6: [("selection", "gain_per_nat")],
    7: [("selection", "deciding_candidates")],
}


def of_format(version: int) -> dict[str, Any]:
    """Today's document without what later formats than `version` brought."""
    document = copy.deepcopy(to_document(tiny_checkpoint()))
    document["format_version"] = version
    for later in range(version + 1, FORMAT_VERSION + 1):
        for part, name in BROUGHT[later]:
            del (document[part] if part else document)[name]
    return document


def test_every_format_but_the_newest_has_a_migration() -> None:
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))
    assert sorted(BROUGHT) == list(range(2, FORMAT_VERSION + 1))


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_document_of_every_format_becomes_readable_and_stays_as_it_was(version: int) -> None:
    document = of_format(version)
    before = copy.deepcopy(document)
    newest = migrated(document)
    assert document == before
    today = to_document(tiny_checkpoint())
    for part in ("network", "selection"):
        assert newest[part].keys() == today[part].keys()
        assert {**newest[part], **before[part]} == newest[part]  # what it said is what it says
    assert newest.keys() == today.keys()
    from_document(document, "it")


@pytest.mark.parametrize("lost", ["network", "selection"])
def test_a_document_without_a_part_is_refused_not_migrated(lost: str) -> None:
    document = of_format(1)
    del document[lost]
    with pytest.raises(CheckpointError, match=f"unreadable description: '{lost}'"):
        from_document(document, "it")


@pytest.mark.parametrize("document", [None, [], {}, {"format_version": "7"}])
def test_what_has_no_version_is_no_checkpoint(document: Any) -> None:
    with pytest.raises(CheckpointError, match="is no gem-policy checkpoint"):
        require_known_version(document, "it")


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(version: int) -> None:
    with pytest.raises(CheckpointError, match=f"unknown format version {version}"):
        require_known_version({"format_version": version}, "it")
