"""Compare prefill and decode, step by step: each side goes on from its own cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moe_export.generation.decoder import Decoder
from moe_export.generation.spec import ATTENTION_MASK, INPUT_IDS, LOGITS, POSITION_IDS
from moe_export.lower.stage import LoweredLayer
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.arrays import Array
from moe_export.runners.eager import EagerRunner
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.model import LoadedModel
from moe_export.sources.past import EagerDecoder, GenerativeModel
from moe_export.tolerances import relative_error
from moe_export.verify.cases import Case, CaseShape, InputShape, Sweep
from moe_export.verify.judge import Judge, output_error

# Draws of one case before its numbers are given up because of ties.
_MAX_DRAWS = 5
# Sliding windows up to this many tokens are crossed; eager would take too long on wider ones.
_WIDEST_WINDOW = 1024


@dataclass(frozen=True)
class StepCase:
    """Tokens that are fed in parts, each behind the cache of those before.

    Attributes:
        batch: Rows.
        parts: Tokens per step; the first step's cache is empty.
        padded: Whether row r begins with r positions of padding.
    """

    batch: int
    parts: tuple[int, ...]
    padded: bool = False

    @property
    def name(self) -> str:
        """What is special about it, such as ``batch 2, 7+1*3+5 tokens``."""
        groups: list[list[int]] = []
        for part in self.parts:
            if groups and groups[-1][0] == part:
                groups[-1][1] += 1
            else:
                groups.append([part, 1])
        parts = "+".join(str(p) if count == 1 else f"{count}*{p}" for p, count in groups)
        return f"batch {self.batch}, {parts} tokens{', padded left' if self.padded else ''}"


def step_cases(loaded: GenerativeModel) -> tuple[StepCase, ...]:
    """The cases: from one token on, parts of several sizes, padding, and past every window."""
    cases = [
        StepCase(1, (1,) * 12),
        StepCase(2, (7, 1, 1, 1, 5, 1)),
        StepCase(3, (5, 1, 1, 4, 1), padded=True),
        StepCase(2, (64, 1, 1, 3)),
    ]
    for window in _windows(loaded):
        if window <= _WIDEST_WINDOW:
            before = max(1, window - 2)
            cases.append(StepCase(2, (before, *(1,) * 5, 3), padded=before > 1))
            cases.append(StepCase(2, (window + 3, 1, 1, 2)))
    return tuple(cases)


def _windows(loaded: GenerativeModel) -> list[int]:
    windows = {c.sliding_window for c in loaded.spec.caches}
    return sorted(window for window in windows if window is not None)


def compare_steps(
    loaded: GenerativeModel,
    layers: tuple[LoweredLayer, ...],
    runner: OnnxRuntimeRunner,
    judge: Judge,
    plan: BuildPlan,
    progress: Progress,
) -> None:
    """Run every case in eager, with transformers' own cache, and in the written model.

    Args:
        loaded: The model, its layers unbound.
        layers: In the order they run.
        runner: A session that gives every layer's routing and result besides.
        judge: Collects what differs.
        plan: Gives the seed.
        progress: Told of every case.
    """
    random = np.random.default_rng(plan.seed)
    for case in progress.track(step_cases(loaded), "cases"):
        tied = 0
        for redrawn in range(_MAX_DRAWS):
            run = _StepRun(loaded, layers, runner, _draw(case, loaded, random))
            flipped = run.compare(judge)
            tied += flipped
            if flipped == 0 or redrawn == _MAX_DRAWS - 1:
                judge.add_case(
                    run.whole, run.errors, tied_tokens=tied, redrawn=redrawn, judged=flipped == 0
                )
                break
    if wide := [w for w in _windows(loaded) if w > _WIDEST_WINDOW]:
        progress.remark(
            f"the sliding window of {wide[0]} tokens is wider than what was compared "
            f"({_WIDEST_WINDOW}): that tokens behind it are masked was not seen"
        )


@dataclass(frozen=True)
class _Drawn:
    """A case with its tokens: ``ids`` and ``mask`` are ``[B, T]``."""

    case: StepCase
    ids: Array
    mask: Array

    def parts(self) -> Iterator[slice]:
        """The columns of each step."""
        start = 0
        for part in self.case.parts:
            yield slice(start, start + part)
            start += part


def _draw(case: StepCase, loaded: GenerativeModel, random: np.random.Generator) -> _Drawn:
    shape = (case.batch, sum(case.parts))
    mask = np.ones(shape, np.int64)
    for row in range(case.batch if case.padded else 0):
        mask[row, : min(row, case.parts[0] - 1)] = 0
    return _Drawn(case, random.integers(0, loaded.spec.vocabulary_size, shape), mask)


class _StepRun:
    """One case, run in parts on both sides."""

    def __init__(
        self,
        loaded: GenerativeModel,
        layers: tuple[LoweredLayer, ...],
        runner: OnnxRuntimeRunner,
        drawn: _Drawn,
    ) -> None:
        self._loaded, self._drawn = loaded, drawn
        self._eager: EagerDecoder = loaded.start()
        self._watched = EagerRunner(self._eager.step, [layer.block for layer in layers])
        self._decoder = Decoder(runner, loaded.spec, drawn.case.batch)
        self.errors = {LOGITS: 0.0, "cache": 0.0}
        inputs = {INPUT_IDS: drawn.ids, ATTENTION_MASK: drawn.mask}
        self.whole = Case(drawn.case.name, inputs, drawn.mask.astype(bool))

    def compare(self, judge: Judge) -> int:
        """Compare step by step, up to one in which a tie sends a token elsewhere.

        Returns:
            How many tokens it sent elsewhere.
        """
        drawn = self._drawn
        positions = np.maximum(drawn.mask.cumsum(axis=1) - 1, 0)
        for columns in drawn.parts():
            step = {
                INPUT_IDS: drawn.ids[:, columns],
                ATTENTION_MASK: drawn.mask[:, : columns.stop],
                POSITION_IDS: positions[:, columns],
            }
            given = {name: np.ascontiguousarray(step[name]) for name in self._takes()}
            trace = self._watched.trace(given)
            found = self._decoder.step(step[INPUT_IDS], drawn.mask[:, columns])
            attended = drawn.mask[:, columns].astype(bool)
            part = replace(self.whole, inputs=given, attended=attended)
            flipped = judge.compare_layers(part, trace, found)
            error = output_error(part, found[LOGITS], trace.outputs[LOGITS])
            self.errors[LOGITS] = max(self.errors[LOGITS], error)
            if flipped:
                return flipped
        self.errors["cache"] = self._cache_error()
        return 0

    def _takes(self) -> list[str]:
        caches = {c.past for c in self._loaded.spec.caches}
        return [name for name in self._loaded.inputs if name not in caches]

    def _cache_error(self) -> float:
        """Largest error of a cached token; eager keeps those that its window can still see."""
        found, worst = self._decoder.cache(), 0.0
        kept = [t for layer in self._eager.cache.layers for t in (layer.keys, layer.values)]
        for cache, tensor in zip(self._loaded.spec.caches, kept, strict=True):
            expected = tensor.float().numpy().swapaxes(1, 2)
            length = expected.shape[1]
            last = found[cache.past].swapaxes(1, 2)[:, -length:]
            attended = self._drawn.mask[:, -length:].astype(bool)
            worst = max(worst, relative_error(last[attended], expected[attended]))
        return worst


class _PrefillSweep(Sweep):
    """The sweep's shapes with an empty cache."""

    def draw(self, case: CaseShape) -> Case:
        """Draw one case anew."""
        length = case.sizes["sequence"]
        sizes = {**case.sizes, "past_sequence": 0, "total_sequence": length}
        drawn = super().draw(replace(case, sizes=sizes))
        inputs = dict(drawn.inputs)
        if POSITION_IDS in inputs:
            inputs[POSITION_IDS] = np.maximum(inputs[ATTENTION_MASK].cumsum(axis=1) - 1, 0)
        return replace(drawn, inputs=inputs)


def make_sweep(loaded: LoadedModel, inputs: tuple[InputShape, ...], plan: BuildPlan) -> Sweep:
    """The sweep over a model's shapes; a model with a cache gets an empty one.

    Args:
        loaded: The model.
        inputs: Of its graph.
        plan: Gives the ranges of axes and the seed.
    """
    kind = _PrefillSweep if isinstance(loaded, GenerativeModel) else Sweep
    return kind(inputs, plan.dynamic, plan.seed)
