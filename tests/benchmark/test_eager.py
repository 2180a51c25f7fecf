"""Eager PyTorch computes what the bundle computes, with and without a cache."""

from __future__ import annotations

import pytest

from moe_export.benchmark.cases import draw_cases
from moe_export.benchmark.contenders import BundleContender
from moe_export.benchmark.eager import EagerContender
from moe_export.benchmark.timing import largest_difference
from moe_export.errors import UsageError
from moe_export.package.bundle import UnverifiedBundleWarning, load


def eager(bundle, source, **options):
    return EagerContender(
        bundle, str(source), **{"factory": None, "trust": False, **options}, threads=1
    )


def test_every_step_over_a_cache_agrees(text_bundle, text_source):
    with pytest.warns(UnverifiedBundleWarning):
        bundle = load(text_bundle, num_threads=1)
    ours = BundleContender(bundle.runner, bundle.manifest.generation)
    other = eager(bundle, text_source)
    for case in draw_cases(bundle, (1, 9), seed=0):
        for _ in range(2):  # a run leaves nothing behind that the next one would see
            assert largest_difference(case, ours, other) < 1e-5


def test_source_without_a_cache_is_refused(text_bundle):
    with pytest.warns(UnverifiedBundleWarning):
        bundle = load(text_bundle)
    with pytest.raises(UsageError, match="causal language model"):
        eager(bundle, "tests.cli.models:two_layers")
