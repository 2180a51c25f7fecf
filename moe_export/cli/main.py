"""The ``moe-export`` command."""

from __future__ import annotations

import click

from moe_export import __version__
from moe_export.cli.bench import bench
from moe_export.cli.build import build
from moe_export.cli.doctor import doctor
from moe_export.cli.families import families
from moe_export.cli.inspect import inspect
from moe_export.cli.run import run
from moe_export.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="moe-export")
def main() -> None:
    """Make a PyTorch Mixture-of-Experts model run fast without PyTorch.

    \b
    moe-export build model.pt -o bundle --trust --input x=4,64
    moe-export run bundle --inputs x.npz --outputs y.npz
    """  # noqa: D301 - \b is click's mark for a block that is not wrapped


for command in (build, verify, inspect, run, bench, doctor, families):
    main.add_command(command)
