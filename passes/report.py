"""What ``verify`` found: a table to read, a dict to store, an error to raise."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from netaug_fx.errors import VerificationError


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: Stable, for code that looks one up: see ``verify``.
        passed: Whether the two models agree; also True where the question does not apply, as ``detail`` then says.
        detail: How it was found out, or what differs.
        expected: What the original has.
        actual: What the tiny model has.
    """

    name: str
    passed: bool
    detail: str = ""
    expected: str = ""
    actual: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one ``verify``, in the order in which they ran.

    Attributes:
        model: The class of the tiny model.
        checks: Every check, those that could not run included (as failed, with the reason).
        macs: Multiply-adds of the tiny model (see ``macs_include``), or None if they could not be counted.
        params: Its parameters.
        macs_include: One sentence saying what ``macs`` includes and for which inputs.
    """

    model: str
    checks: tuple[Check, ...]
    macs: int | None
    params: int
    macs_include: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of that name.

        Raises:
            KeyError: There is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {', '.join(check.name for check in self.checks)}")

    def raise_if_failed(self) -> None:
        """Does nothing if every check passed.

        Raises:
            VerificationError: Names each failed check with what was expected and found.
        """
        failed = [check for check in self.checks if not check.passed]
        if failed:
            lines = [f"  {check.name}: {_explanation(check)}" for check in failed]
            raise VerificationError(
                f"{self.model} is not the model it was compared with: {len(failed)} of {len(self.checks)} checks failed"
                f" ({', '.join(check.name for check in failed)})\n" + "\n".join(lines)
            )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        return {"passed": self.passed, **asdict(self), "checks": [asdict(check) for check in self.checks]}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        """An aligned table, one check a line, long explanations wrapped."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            first, *rest = textwrap.wrap(_explanation(check), 110 - width) or [""]
            lines.append(f"{'ok    ' if check.passed else 'FAILED'}  {check.name:<{width}}  {first}".rstrip())
            lines += [" " * (width + 10) + line for line in rest]
        macs = "unknown" if self.macs is None else f"{self.macs:,}"
        verdict = "verified" if self.passed else "NOT verified"
        lines.append(f"{self.model}: {verdict}; {self.params:,} parameters, {macs} MACs")
        return "\n".join(lines)


def _explanation(check: Check) -> str:
    if check.passed or not (check.expected or check.actual):
        return check.detail or check.actual
    return f"expected {check.expected}, found {check.actual}" + (f"; {check.detail}" if check.detail else "")
