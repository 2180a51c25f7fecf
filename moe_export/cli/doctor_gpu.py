"""``moe-export doctor --gpu``."""

from __future__ import annotations

from dataclasses import asdict

from moe_export.cli.console import StageProgress, make_table, stdout
from moe_export.cli.options import Output
from moe_export.errors import ParityError
from moe_export.gpu.c_api import GpuLibrary
from moe_export.gpu.self_test import Check, list_checks
from moe_export.runners.device import DriverDevice
from moe_export.runners.library import gpu_library_path


def test_gpu(output: Output) -> None:
    """Run the self-test on the first GPU and report it.

    Raises:
        EnvironmentLacksError: there is no GPU, or the kernels are not built.
        ParityError: a kernel computes something else than the reference.
    """
    library = GpuLibrary(gpu_library_path())
    device = DriverDevice()
    number = library.number("device_capability")
    capability = f"{number // 10}.{number % 10}"
    with StageProgress(output.verbosity) as progress:
        progress.stage("self-test")
        runs = progress.track(list_checks(library, device), "kernels")
        checks = [run() for run in runs]
    found = {
        "device": device.name,
        "compute_capability": capability,
        "checks": [asdict(check) | {"passed": check.passed} for check in checks],
    }
    output.emit(found, lambda: _draw(device.name, capability, checks))
    failed = [check.kernel for check in checks if not check.passed]
    if failed:
        raise ParityError(
            f"{len(failed)} of {len(checks)} GPU kernels differ from the reference: "
            + "; ".join(failed)
        )


def _draw(name: str, capability: str, checks: list[Check]) -> None:
    console = stdout()
    console.print(f"{name}, compute capability {capability}")
    rows = [
        (check.kernel, f"{check.error:.1e}", f"{check.tolerance:.1e}", _state(check))
        for check in checks
    ]
    console.print(make_table("", ("kernel", "error", "allowed", ""), rows))


def _state(check: Check) -> str:
    return "ok" if check.passed else "FAILED"
