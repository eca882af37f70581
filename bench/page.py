"""Tables of measured values beside their bars, and the place of a page where they go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median


@dataclass(frozen=True)
class Bar:
    """What a measured value has to be. low, high: where one clip holds.

    of: what has to hold for the bar to hold: "each" clip, or the "median" or "mean" of all.
    """

    low: float = float("-inf")
    high: float = float("inf")
    of: str = "median"

    def __str__(self) -> str:
        if self.low == 1 and self.of == "each":
            return "always"
        if self.high == float("inf"):
            return f">= {self.low:g}" if self.low != float("-inf") else ""
        return f"<= {self.high:g}" if self.low == float("-inf") else f"{self.low:g} to {self.high:g}"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def worst(self, values: Sequence[float]) -> float:
        return max(values, key=lambda value: max(value - self.high, self.low - value))


SHARE = Bar()
"""Of what is only told."""


@dataclass
class Scores:
    """Values of what was measured, in the order of their first mention, and what they compare with.

    bars: by the name of what is measured, whichever the verb. real: the same of clips that no model made. inside: the
    same within what was made, where nothing joins.
    """

    bars: dict[str, Bar]
    found: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    real: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    inside: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, verb: str, what: str, value: float, real: float | None = None, inside: float | None = None) -> None:
        for kind, number in ((self.found, value), (self.real, real), (self.inside, inside)):
            if number is not None:
                kind.setdefault((verb, what), []).append(float(number))

    def rows(self) -> list[list[str]]:
        rows = []
        for (verb, what), values in self.found.items():
            bar, others = self.bars[what], [kind.get((verb, what)) for kind in (self.real, self.inside)]
            middle = _middle(bar)
            all_hold = all(map(bar.holds, values)) if bar.of == "each" else bar.holds(middle(values))
            has_worst = bool(str(bar)) and bar.of == "median" and len(values) > 1
            rows.append([
                verb, what, str(bar), f"{middle(values):.2f}", f"{bar.worst(values):.2f}" if has_worst else "",
                f"{sum(map(bar.holds, values))} of {len(values)}" if str(bar) and bar.of != "mean" else "",
                *(f"{middle(other):.2f}" if other else "" for other in others),
                ("yes" if all_hold else "**no**") if str(bar) else "",
            ])  # fmt: skip
        return rows


HEAD = ("verb", "what", "bar", "measured", "worst", "holds in", "real clips", "inside", "holds")


def _middle(bar: Bar) -> Callable[[Sequence[float]], float]:
    return median if bar.of == "median" else fmean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def put(page: Path, name: str, text: str) -> None:
    """Replaces what is between the marks `<!-- name: begin -->` and `<!-- name: end -->` of `page`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"{page} lacks the marks {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
