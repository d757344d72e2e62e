"""The tables of coverage: by family, and what does not count with its reason. In: rows of coverage. Out: Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
HEAD = (
    "family",
    "nets",
    "count",
    "refused",
    "wrong",
    "not proven",
    "no answer",
    "weights that can grow",
    "MACs that can grow",
    "heard",
    "ONNX n/a",
)

NOT_ASKED = "n/a: not asked"
NOT_PROVEN = "extra channels reach no output, so that nothing was proven"


def summary(rows: Sequence[Row], listed: int | None = None) -> str:
    """A table by family (medians), the total, and a list of the nets that do not count.

    Every net counts, or is refused by ``augment`` with a reason, wrong, not proven (nothing that was added reaches an
    output), or without an answer (it ended with another error than ours, or at a limit). ``heard`` is the part of the
    added weights at which a wrong index map would have shown; nets of versions before it was asked have none.

    Args:
        rows: One row a net.
        listed: How many nets the zoo lists within the limits asked for.
    """
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += [_line(f"`{family}`", members) for family, members in sorted(families.items())]
    lines.append(_line("all", rows))
    if listed is not None:
        lines += ["", f"{len(rows)} of {listed} nets listed were run, under {_codes(rows)}."]
    failed = [row for row in sorted(rows, key=lambda row: str(row["name"])) if not row["counted"]]
    if failed:
        lines += ["", "Do not count:", ""]
        lines += [f"- `{row['name']}`: {why_not(row)}" for row in failed]
    return "\n".join(lines)


def _codes(rows: Sequence[Row]) -> str:
    codes = {row["versions"].get("code", "?") for row in rows}
    return f"version {codes.pop()} of the code" if len(codes) == 1 else f"{len(codes)} versions of the code"


def _line(name: str, rows: Sequence[Row]) -> str:
    counted = [row for row in rows if row["counted"]]
    cells = [
        name,
        str(len(rows)),
        f"{len(counted)}" + (f" ({len(counted) / len(rows):.1%})" if name == "all" and rows else ""),
        str(sum("refused" in row for row in rows)),
        str(sum(is_wrong(row) for row in rows)),
        str(sum(_bad(row) == {"maps": NOT_PROVEN} for row in rows)),
        str(sum("crashed" in row for row in rows)),
        _median(rows, "share_of_weights"),
        _median(rows, "share_of_macs"),
        _median([row for row in rows if row.get("heard") is not None], "heard"),
        str(sum(row.get("checks", {}).get("onnx", "").startswith("n/a") for row in rows)),
    ]
    return "| " + " | ".join(cells) + " |"


def is_wrong(row: Row) -> bool:
    """Whether a net was augmented, and then did not hold what is claimed.

    A net whose own function hides what was added (an instance norm before global pooling) cannot show it either way: it
    does not count, and is not wrong.
    """
    return not row["counted"] and "refused" not in row and any(text != NOT_PROVEN for text in _bad(row).values())


def _median(rows: Sequence[Row], key: str) -> str:
    values = [row.get(key, 0.0) for row in rows]
    return f"{statistics.median(values):.1%}" if values else "-"


def why_not(row: Row) -> str:
    """Why a net does not count, in one line."""
    if "refused" in row or "crashed" in row:
        return str(row.get("refused") or row["crashed"])
    return "; ".join(f"{name}: {text}" for name, text in _bad(row).items())


def _bad(row: Row) -> Row:
    return {k: v for k, v in row.get("checks", {}).items() if v != "ok" and not v.startswith("n/a")}
