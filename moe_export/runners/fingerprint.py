"""What an engine was built with, and whether this machine can run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_export.errors import BundleError

# Shapes of an input: the least, the one that is optimized for, the largest.
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
# The first GPUs that an engine built to be hardware-compatible runs on.
_AMPERE = (8, 0)


@dataclass(frozen=True)
class EngineFingerprint:
    """What ``manifest.engine`` says.

    Attributes:
        plan: The engine's file in the bundle.
        flavor: ``tensorrt-rtx`` or ``tensorrt``.
        version: Of TensorRT.
        compute_capabilities: GPUs that it was built for, such as ``8.9``.
        plugins: Versions of this package's plugins in it, by name.
        plugin_library_sha256: Of the library that they came from.
        profiles: Shapes that it takes, by input: the least, the best, the largest.
        dtype: Type of its activations.
        version_compatible: Later versions run it.
        hardware_compatible: All GPUs from compute capability 8.0 on run it.
    """

    plan: str
    flavor: str
    version: str
    compute_capabilities: tuple[str, ...]
    plugins: Mapping[str, str]
    plugin_library_sha256: str
    profiles: tuple[Profile, ...]
    dtype: str
    version_compatible: bool = False
    hardware_compatible: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineFingerprint:
        """Read what ``dataclasses.asdict`` wrote.

        Raises:
            TypeError, KeyError, ValueError: an entry is missing, unknown or of another form.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"engine has unknown entries: {', '.join(unknown)}")
        found = dict(values)
        for name in ("plan", "flavor", "version", "plugin_library_sha256", "dtype"):
            if not isinstance(found[name], str):
                raise TypeError(f"engine.{name} must be text; found {found[name]!r}")
        found["compute_capabilities"] = tuple(str(c) for c in found["compute_capabilities"])
        for capability in found["compute_capabilities"]:
            _numbers(capability)
        found["plugins"] = {str(name): str(v) for name, v in found["plugins"].items()}
        found["profiles"] = tuple(
            {str(name): _shapes(shapes) for name, shapes in profile.items()}
            for profile in found["profiles"]
        )
        return cls(**found)

    def check_version(self, installed: str) -> None:
        """Refuse another version of TensorRT.

        Args:
            installed: The version that is here.

        Raises:
            BundleError: it cannot run the engine; names both.
        """
        same = installed == self.version
        later = self.version_compatible and _numbers(installed) >= _numbers(self.version)
        if not (same or later):
            wanted = f"{self.version} or later" if self.version_compatible else self.version
            raise BundleError(
                f"the engine was built by {self.flavor} {self.version} and runs with {wanted}; "
                f"here is {installed}. Install that version, or build the bundle again here"
            )

    def check_gpu(self, found: str) -> None:
        """Refuse another kind of GPU.

        Args:
            found: The compute capability of the GPU that is here.

        Raises:
            BundleError: it cannot run the engine; names both.
        """
        if found in self.compute_capabilities:
            return
        if self.hardware_compatible and _numbers(found) >= _AMPERE:
            return
        raise BundleError(
            f"the engine was built for GPUs of compute capability "
            f"{', '.join(self.compute_capabilities)}; the one here has {found}. Build the bundle "
            "again for it"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _shapes(shapes: Any) -> Any:  # noqa: ANN401 - any JSON
    least, best, largest = (tuple(int(size) for size in shape) for shape in shapes)
    return least, best, largest
