"""``moe-export bench``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from moe_export.benchmark.bench import BenchPlan
from moe_export.benchmark.bench import bench as run_bench
from moe_export.cli.bench_table import draw_bench
from moe_export.cli.console import stdout
from moe_export.cli.options import Output, common_options
from moe_export.errors import UsageError

_TOKENS = "1,16,512"


@click.command(epilog="Example: moe-export bench bundle --against ./Qwen3-MoE --tokens 1,512")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--tokens", metavar="1,16,512",
              help=f"Numbers of tokens of a run, {_TOKENS} if left out. With a key/value cache: of "
                   "prompts, and one token behind the largest.")  # fmt: skip
@click.option("--inputs", "inputs_file", type=click.Path(path_type=Path),
              help="Exactly these inputs, .npz, instead of random ones.")  # fmt: skip
@click.option("--against", metavar="SOURCE",
              help="What the bundle was built from: eager PyTorch runs it in turns.")  # fmt: skip
@click.option("--factory", metavar="MODULE:CALLABLE",
              help="Builds the model, where SOURCE is weights alone.")  # fmt: skip
@click.option("--trust", is_flag=True, help="Let SOURCE run its code.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True,
              help="Turns of each kind of run.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0,
              help="Threads of everything that is timed; 0: one per core.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds the inputs.")
@common_options
def bench(
    folder: Path,
    tokens: str | None,
    output: Output,
    **options: Any,  # noqa: ANN401 - fields of BenchPlan
) -> None:
    """Time a bundle in ONNX Runtime: whole runs, and its MoE layers.

    Prints percentiles of single runs, and per MoE layer its time, the distinct experts that its
    tokens reach, and its share of the limit: the time in which this machine reads their weights, or
    does their multiplications, over the layer's. Both limits are measured between the runs.
    """
    if tokens is not None and options["inputs_file"] is not None:
        raise UsageError("--inputs says how many tokens there are: leave out --tokens")
    plan = BenchPlan(tokens=_numbers(tokens or _TOKENS), **options)

    def say(text: str) -> None:
        if output.verbosity >= 0:
            click.echo(text, err=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = run_bench(folder, plan, say)
    for warning in caught:
        click.secho(f"warning: {warning.message}", err=True, fg="yellow")
    output.emit(
        result.to_json(), lambda: draw_bench(stdout(), result, every_layer=output.verbosity > 0)
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--tokens {text!r}: expected whole numbers from 1, as in 1,16,512")
    return numbers
