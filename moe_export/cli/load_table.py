"""Draw how the tokens of a run spread over each layer's experts, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_export.telemetry.expert_load import OVERLOAD_FACTOR, ExpertLoad

_WIDTH = 80
_PATH_WIDTH = 22
# Most bars of a layer.
_NUM_BARS = 16
_LISTED = 3
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", ".:-=+*%#"
_NO_TOKEN, _NO_TOKEN_ASCII = "·", "_"


def draw_load(console: Console, loads: Sequence[ExpertLoad], *, every_expert: bool) -> None:
    """One row per layer, then what it means, then dead and overloaded experts by number.

    Args:
        console: Where to.
        loads: The layers.
        every_expert: Add a row for each expert.
    """
    unicode = console.encoding.lower().startswith("utf")
    width = min(_WIDTH, console.width)
    console.print(_table(loads, unicode=unicode), width=width)
    console.print(_legend(loads, unicode=unicode), width=width)
    for load in loads:
        for line in _remarkable(load):
            console.print(line, width=width, markup=False)
    for load in loads if every_expert else ():
        console.print()
        console.print(_expert_table(load, unicode=unicode), width=width)


def _table(loads: Sequence[ExpertLoad], *, unicode: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("MoE layer", no_wrap=True)
    table.add_column("choices", justify="right", no_wrap=True)
    table.add_column("load", no_wrap=True, width=_NUM_BARS)
    for column in ("balance", "most", "dead", "over", "dropped"):
        table.add_column(column, justify="right", no_wrap=True)
    for load in loads:
        most = float(load.relative_load.max())
        table.add_row(
            escape(_tail(load.path)),
            str(load.total),
            draw_bars(load, unicode=unicode),
            "-" if load.balance is None else f"{load.balance:.2f}",
            f"{most:.1f}x",
            _marked(len(load.dead), "red"),
            _marked(len(load.overloaded), "yellow"),
            _marked(load.dropped_tokens, "yellow"),
        )
    return table


def draw_bars(load: ExpertLoad, *, unicode: bool) -> str:
    """A bar per expert in order, or, of many, means of as many groups, the fullest experts first.

    A half bar is the even share.
    """
    blocks, nothing = (_BLOCKS, _NO_TOKEN) if unicode else (_ASCII, _NO_TOKEN_ASCII)
    shares = load.relative_load
    if load.num_experts > _NUM_BARS:
        shares = np.array([p.mean() for p in np.array_split(np.sort(shares)[::-1], _NUM_BARS)])
    places = np.ceil(shares / OVERLOAD_FACTOR * len(blocks)).astype(int).clip(1, len(blocks)) - 1
    bars = [
        blocks[place] if share > 0 else nothing for place, share in zip(places, shares, strict=True)
    ]
    return "".join(bars)


def _legend(loads: Sequence[ExpertLoad], *, unicode: bool) -> Table:
    """What the columns mean."""
    blocks, nothing = (_BLOCKS, _NO_TOKEN) if unicode else (_ASCII, _NO_TOKEN_ASCII)
    grouped = any(load.num_experts > _NUM_BARS for load in loads)
    each = f"by expert, or of many {_NUM_BARS} groups, fullest first" if grouped else "by expert"
    factor = f"{OVERLOAD_FACTOR:g} times"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("choices", "tokens times the experts that each is sent to")
    table.add_row(
        "load",
        f"{each}: {blocks[len(blocks) // 2 - 1]} even, {blocks[-1]} {factor} that or more, "
        f"{nothing} no token",
    )
    table.add_row("balance", "N * sum of f * p, 1 if even; f: share of choices; p: mean of")
    for text in _grouped(loads, [load.probability for load in loads]):
        table.add_row("", text)
    table.add_row("most", "choices of the fullest expert over the even share")
    table.add_row("dead", "experts without a token")
    table.add_row("over", f"experts with more than {factor} the even share")
    for text in _grouped(loads, [load.dropped for load in loads]):
        table.add_row("dropped", text)
    return table


def _grouped(loads: Sequence[ExpertLoad], texts: Sequence[str]) -> Iterable[str]:
    """Each text once, with the layers it holds for unless it holds for all."""
    for text in dict.fromkeys(texts):
        paths = [_tail(la.path) for la, own in zip(loads, texts, strict=True) if own == text]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        where = "" if len(paths) == len(loads) else f" ({paths[0]}{more})"
        yield escape(f"{text}{where}")


def _remarkable(load: ExpertLoad) -> Iterable[str]:
    shares = load.relative_load
    if load.total == 0:
        yield f"{_tail(load.path)}: no expert got a token"
        return
    if load.dead:
        yield f"{_tail(load.path)}: dead {_listed(list(map(str, load.dead)))}"
    if load.overloaded:
        crowded = [f"{e} ({shares[e]:.1f}x)" for e in load.overloaded]
        yield f"{_tail(load.path)}: over {_listed(crowded)}"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more


def _expert_table(load: ExpertLoad, *, unicode: bool) -> Table:
    """A row per expert: its choices, their share, its mean probability, a bar."""
    table = Table(box=None, pad_edge=False, title=escape(_tail(load.path)), title_justify="left")
    for column in ("expert", "choices", "share", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    mark, most = "█" if unicode else "#", max(int(load.tokens_per_expert.max()), 1)
    for expert, tokens in enumerate(load.tokens_per_expert.tolist()):
        table.add_row(
            str(expert),
            str(tokens),
            f"{tokens / max(load.total, 1):.1%}",
            f"{float(load.mean_probability[expert]):.4f}",
            mark * round(40 * tokens / most),
        )
    return table


def _marked(count: int, style: str) -> str:
    return f"[{style}]{count}[/]" if count else "0"


def _tail(path: str) -> str:
    """The end of a path, which tells layers apart, where it is long."""
    return (path or "<root>") if len(path) <= _PATH_WIDTH else "…" + path[1 - _PATH_WIDTH :]
