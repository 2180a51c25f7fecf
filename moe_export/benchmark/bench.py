"""The whole benchmark of a bundle."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from moe_export.benchmark.cases import Case, draw_cases, given_case
from moe_export.benchmark.contenders import BundleContender, Contender
from moe_export.benchmark.eager import EagerContender
from moe_export.benchmark.layers import LayerProfiler, Work, find_work
from moe_export.benchmark.limits import Limits, count_cores
from moe_export.benchmark.results import BenchResult, CaseResult, Latency
from moe_export.benchmark.timing import largest_difference, time_runs
from moe_export.errors import EnvironmentLacksError, MoeExportError, UsageError
from moe_export.package.bundle import Bundle, load
from moe_export.runners.arrays import read_arrays

_PACKAGES = ("moe-export", "onnxruntime", "numpy", "torch", "transformers")
_OURS, _EAGER = "bundle", "eager"
# Weights of 4 bits stay below; another model does not.
_SUSPICIOUS = 0.3


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What is asked for.

    Attributes:
        tokens: Numbers of tokens of a run.
        inputs_file: Inputs instead of drawn ones.
        rounds: Turns of each kind of run.
        threads: Of every contender; 0 for one per core.
        against: A source to time in eager PyTorch, as ``build`` takes it.
        factory: Builds its model, where it is weights alone.
        trust: It may run its own code while it is loaded.
        seed: Seeds the inputs.
    """

    tokens: tuple[int, ...] = (1, 16, 512)
    inputs_file: Path | None = None
    rounds: int = 5
    threads: int = 0
    against: str | None = None
    factory: str | None = None
    trust: bool = False
    seed: int = 0


def bench(
    folder: Path, plan: BenchPlan, say: Callable[[str], None] = lambda _: None
) -> BenchResult:
    """Time a bundle.

    Args:
        folder: The bundle.
        plan: What is asked for.
        say: Receives what is being done.

    Raises:
        BundleError: the folder is no bundle, or is damaged.
        UsageError: the bundle does not take such inputs.
    """
    threads = plan.threads or count_cores()
    bundle = load(folder, num_threads=threads)
    if plan.factory is not None and plan.against is None:
        raise UsageError("--factory builds the model of --against SOURCE; give that too")
    cases = _cases(bundle, plan)
    remarks: list[str] = []
    say("finding which experts are hit")
    work = _find_work(bundle, cases, remarks)
    contenders: dict[str, Contender] = {
        _OURS: BundleContender(bundle.runner, bundle.manifest.generation)
    }
    if plan.against is not None:
        say(f"loading {plan.against}")
        contenders[_EAGER] = EagerContender(
            bundle, plan.against, factory=plan.factory, trust=plan.trust, threads=threads
        )
    with tempfile.TemporaryDirectory() as profiles:
        profiler = LayerProfiler(bundle, work, Limits(threads), Path(profiles))

        def on_round(number: int) -> None:
            say(f"round {number} of {plan.rounds}" if number else "warming up")

        seconds = time_runs(cases, contenders, plan.rounds, on_round, profiler.turn)
        latencies = {case.name: Latency.of(seconds[_OURS, case.name]) for case in cases}
        layers = profiler.finish({name: latency.p50 for name, latency in latencies.items()})
    results = [CaseResult(c.name, c.tokens, latencies[c.name], layers[c.name]) for c in cases]
    if plan.against is not None:
        for index, case in enumerate(cases):
            eager = Latency.of(seconds[_EAGER, case.name])
            difference = largest_difference(case, contenders[_OURS], contenders[_EAGER])
            results[index] = replace(results[index], eager=eager, difference=difference)
        worst = max(result.difference or 0.0 for result in results)
        if worst > _SUSPICIOUS:
            remarks.append(
                f"outputs differ from eager's by {worst:.1e} of the largest: is {plan.against} "
                "what the bundle was built from?"
            )
    if bundle.manifest.layers and not any(layers.values()):
        remarks.append(
            "no time per MoE layer: they run in standard operators, which the profile does not "
            "tell apart"
        )
    read = profiler.read_bandwidths
    return BenchResult(
        bundle=str(folder),
        verified=bundle.verified,
        threads=threads,
        rounds=plan.rounds,
        cases=tuple(results),
        read_bandwidth=float(np.median(read)) if read else None,
        rates={name: float(np.median(found)) for name, found in profiler.rates.items()},
        machine=_machine(with_torch=plan.against is not None),
        remarks=tuple(remarks),
    )


def _cases(bundle: Bundle, plan: BenchPlan) -> tuple[Case, ...]:
    if plan.inputs_file is not None:
        given = read_arrays(plan.inputs_file)
        return (given_case(bundle, plan.inputs_file.name, given),)
    return draw_cases(bundle, plan.tokens, plan.seed)


def _find_work(bundle: Bundle, cases: Sequence[Case], remarks: list[str]) -> Work:
    # A bundle of its own, whose sessions end with it.
    counting = Bundle(bundle.folder, bundle.manifest, num_threads=bundle.num_threads)
    try:
        return find_work(counting, cases)
    except EnvironmentLacksError as error:
        remarks.append(str(error))
        return {}
    except UsageError:
        raise
    except MoeExportError as error:
        names = ", ".join(case.name for case in cases)
        raise UsageError(f"{bundle.folder} does not run on {names}: {error}") from error


def _machine(*, with_torch: bool) -> dict[str, str]:
    """The processor's name, and versions of what ran."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    name = next((li.split(":")[1].strip() for li in lines if li.startswith("model name")), "")
    packages = _PACKAGES if with_torch else _PACKAGES[:3]
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"cpu": name or platform.machine(), **versions}
