"""What the doctor found, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One observation about a dataset.

    Attributes:
        code: A stable name, such as `nan-rewards`.
        severity: `error`: do not train on it; `warning`: know what you do; `note`: good to know.
        text: What was found, with numbers.
        advice: What to do about it; empty for a note that asks for nothing.
    """

    code: str
    severity: Severity
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that the doctor has to say about a dataset.

    Attributes:
        dataset: Its id, or what was asked for if it could not be opened.
        facts: Counts, returns, lengths and the like, as plain numbers and strings.
        findings: Errors first, then warnings, then notes.
    """

    dataset: str
    facts: Mapping[str, object]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing forbids to train on the dataset."""
        return all(finding.severity != "error" for finding in self.findings)

    def codes(self, *severities: Severity) -> tuple[str, ...]:
        """Codes of the findings of the given severities; of all when none is given."""
        wanted = severities or ORDER
        return tuple(finding.code for finding in self.findings if finding.severity in wanted)

    def to_dict(self) -> dict[str, object]:
        """The report as JSON takes it."""
        return {
            "dataset": self.dataset,
            "healthy": self.healthy,
            "facts": dict(self.facts),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        """The report in words."""
        width = max((len(name) for name in self.facts), default=0)
        lines = [self.dataset, ""]
        lines += [f"  {name:{width}}  {value}" for name, value in self.facts.items()]
        for finding in self.findings:
            lines += ["", f"{finding.severity.upper()} {finding.code}: {finding.text}"]
            if finding.advice:
                lines.append(f"  -> {finding.advice}")
        errors, warnings = (len(self.codes(severity)) for severity in ORDER[:2])
        verdict = "fit for training" if self.healthy else "not fit for training"
        return "\n".join([*lines, "", f"{verdict}: {errors} errors, {warnings} warnings"])


def sort(findings: list[Finding]) -> tuple[Finding, ...]:
    """By severity, otherwise in the order they were found."""
    return tuple(sorted(findings, key=lambda finding: ORDER.index(finding.severity)))
