"""``MODULE:CALLABLE``: the user's own function that builds a model."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from torch import nn

from moe_export.errors import UsageError
from moe_export.sources.inputs import ExampleInputs

_NAMED = re.compile(r"[\w.]+:[\w.]+")


def is_callable_name(source: str) -> bool:
    """Whether ``source`` has the form ``MODULE:CALLABLE``."""
    return _NAMED.fullmatch(source) is not None


def call_named(source: str) -> tuple[nn.Module, ExampleInputs | None]:
    """Import and call ``MODULE:CALLABLE``; the current folder is on the import path.

    Args:
        source: Names a function without arguments, a class, or a module that is already built.

    Returns:
        The model, and the example inputs if the callable returned a pair.

    Raises:
        UsageError: it cannot be imported or called, raises, or returns something else.
    """
    module_name, _, attribute = source.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{source}: {error}") from error
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"{source}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise UsageError(f"{source} is a {type(found).__name__}, not something that can be called")
    try:
        result = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"{source}() raised {type(error).__name__}: {error}") from error
    example = None
    if isinstance(result, tuple) and len(result) == 2:
        result, example = result
    if not isinstance(result, nn.Module):
        raise UsageError(
            f"{source} must return a module, or a module and its example inputs; found "
            f"{type(result).__name__}"
        )
    return result, example
