"""Families whose experts do not go through transformers' experts hook."""

from __future__ import annotations

from tests.families.catalogue import Family

WITHOUT_HOOK: tuple[Family, ...] = ()
