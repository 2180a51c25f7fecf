"""Results as tables: every contender of a case on the terminal, the best peers in the README."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from moe_bench.compare import best_peer, case_of, compare
from moe_bench.contenders import WEIGHT_BITS
from moe_bench.results import Refusal, Result


def case_tables(results: Sequence[Result], refusals: Sequence[Refusal]) -> list[Table]:
    """A table for each case, with a row for each contender, and those that refused at its end."""
    tables = []
    for case in dict.fromkeys(map(case_of, results)):
        of_case = [result for result in results if case_of(result) == case]
        layer, tokens, skewed = case
        routing = "skewed" if skewed else "uniform"
        title = f"{layer}, {tokens} tokens, {routing}: {of_case[0].hit:.0f} experts hit"
        table = Table("contender", "weights", "ms", "peer / ours", "of limit", "error", title=title)
        best = {id(best_peer(own, of_case)) for own in of_case if own.ours}
        widths = list[str](WEIGHT_BITS)
        for result in sorted(of_case, key=lambda result: widths.index(result.width)):
            table.add_row(*_cells(result, id(result) in best))
        for refusal in refusals:
            if (refusal.layer, refusal.tokens) in ((layer, tokens), (layer, 0)):
                table.add_row(refusal.contender, refusal.width, refusal.reason)
        tables.append(table)
    return tables


def _cells(result: Result, is_best: bool) -> tuple[str, ...]:
    ratio = "" if result.ours or not result.ratio else f"{result.ratio:.2f}"
    return (
        f"{result.contender} *" if is_best else result.contender,
        result.width,
        f"{result.seconds * 1e3:.2f}",
        ratio,
        f"{result.limit_share:.0%}",
        f"{result.error:.0e}",
    )


def readme_table(results: Sequence[Result]) -> str:
    """A row for each case, a column for each width: the best peer over ours, and our share."""
    widths = [w for w in WEIGHT_BITS if any(r.ours and r.width == w for r in results)]
    lines = [f"| layer | tokens | {' | '.join(widths)} |", "|---|---|" + "---|" * len(widths)]
    cells = {
        (case_of(each.ours), each.ours.width): (
            f"{each.ratio:.2f} {each.peer.contender}, " if each.peer else ""
        )
        + f"{each.ours.limit_share:.0%}"
        for each in reversed(compare(results))  # the first of ours of a width stands
    }
    for case in dict.fromkeys(case_of(result) for result in results if result.ours):
        layer, tokens, skewed = case
        row = [layer + (", skewed" if skewed else ""), str(tokens)]
        row += [cells.get((case, width), "") for width in widths]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
