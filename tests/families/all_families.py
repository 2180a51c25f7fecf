"""All model families of the tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.families.catalogue import Family, make_model
from tests.families.with_hook import WITH_HOOK
from tests.families.without_hook import WITHOUT_HOOK

FAMILIES: tuple[Family, ...] = tuple(sorted((*WITH_HOOK, *WITHOUT_HOOK), key=lambda f: f.name))


def find_family(name: str) -> Family:
    """The family called ``name``.

    Raises:
        KeyError: lists the names there are.
    """
    by_name = {family.name: family for family in FAMILIES}
    if name not in by_name:
        raise KeyError(f"no family {name}; there are {', '.join(by_name)}")
    return by_name[name]


def make_named_model(name: str, **changes: Any) -> nn.Module:
    """A random model of the family called ``name``, its configuration altered by ``changes``."""
    return make_model(find_family(name), **changes)
