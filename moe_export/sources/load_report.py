"""What transformers says of weights that do not fit: it prints a table where others raise."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_export.errors import UsageError

_LOGGER = "transformers.modeling_utils"
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_LISTED = 5


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += _COLOR.sub("", record.getMessage()) + "\n"


@contextmanager
def conversions_reported(path: Path) -> Iterator[None]:
    """Turn a failure to merge a checkpoint's tensors into an error that names them.

    Raises:
        UsageError: the parameter that could not be made, and why.
    """
    logger, collector = logging.getLogger(_LOGGER), _Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    except RuntimeError as error:
        names = re.findall(r"^(\S+) +\| CONVERSION", collector.text, re.MULTILINE)
        if not names:
            raise
        reasons = re.findall(r"^(.+)\nError: ", collector.text, re.MULTILINE)
        raise UsageError(
            f"{path}: the tensors for {', '.join(names[:_LISTED])} do not fit together: "
            f"{'; '.join(dict.fromkeys(reasons)) or error}"
        ) from error
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def check_shapes(path: Path, info: dict[str, Any]) -> None:
    """Check that every tensor had the shape that the model gives it.

    Args:
        path: The checkpoint.
        info: What ``from_pretrained`` returned beside the model.

    Raises:
        UsageError: names the tensors with both shapes.
    """
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        listed = "\n  ".join(
            f"{name}: {list(found)} in the checkpoint, {list(expected)} in the model"
            for name, found, expected in wrong[:_LISTED]
        )
        raise UsageError(
            f"{path}: {len(wrong)} tensors have other shapes than config.json says:\n  {listed}"
        )
