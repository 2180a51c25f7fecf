"""``python -m moe_export`` is ``moe-export``."""

from moe_export.cli.main import main

main(prog_name="moe-export")
