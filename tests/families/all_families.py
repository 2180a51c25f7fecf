"""All model families of the tests."""

from __future__ import annotations

from tests.families.catalogue import Family
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
