"""Parts of a page that a script writes, between two comments that stay."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"


def block(name: str, body: str) -> str:
    """The part ``name`` of a page, comments included."""
    return f"<!-- {name} -->\n{body}\n<!-- end of {name} -->"


def fill(page: Path, name: str, body: str) -> None:
    """Put ``body`` where the page has the part ``name``.

    Raises:
        ValueError: It has no such part.
    """
    text = page.read_text()
    before, opened, rest = text.partition(f"<!-- {name} -->")
    _, closed, after = rest.partition(f"<!-- end of {name} -->")
    if not (opened and closed):
        raise ValueError(f"{page.name} has no part <!-- {name} --> ... <!-- end of {name} -->.")
    page.write_text(f"{before}{block(name, body)}{after}")


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, "| " + " | ".join(["---"] * len(rows[0])) + " |", *body])
