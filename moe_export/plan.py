"""What the user asked for: one frozen record that every stage may read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moe_export.errors import UsageError

Target = Literal["cpu", "portable", "tensorrt-rtx", "tensorrt", "cuda"]
TARGETS: tuple[Target, ...] = get_args(Target)
# Targets whose bundles hold an engine that TensorRT built for certain GPUs.
ENGINE_TARGETS: tuple[Target, ...] = ("tensorrt-rtx", "tensorrt")
# Targets whose layers run on GPUs: these, and ONNX Runtime with its CUDA provider.
GPU_TARGETS: tuple[Target, ...] = (*ENGINE_TARGETS, "cuda")

Weights = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "mxfp4", "source"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
# How each target's kernels take experts' weights; the first is what they have without --weights.
TARGET_WEIGHTS: Mapping[Target, tuple[Weights, ...]] = {
    "cpu": ("fp32", "fp16", "bf16", "int8", "int4", "mxfp4", "source"),
    "portable": ("fp32",),
    **dict.fromkeys(GPU_TARGETS, ("source", "fp32", "fp16", "bf16", "int8", "int4", "fp8")),
}
DType = Literal["fp32", "fp16", "bf16"]
DTYPES: tuple[DType, ...] = get_args(DType)
Moe = Literal["auto", "native", "plugin"]
MOE: tuple[Moe, ...] = get_args(Moe)
INT4_BLOCKS = (32, 64, 128)
_DEFAULT_BLOCK = 128
# What options are called where their fields are called otherwise.
_OPTIONS = {"compute_capabilities": "compute_capability"}

_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")


@dataclass(frozen=True)
class InputSpec:
    """Shape and type of an example input to be drawn at random."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read ``NAME=2,16,64[:float32]``.

        Raises:
            UsageError: the text has another form.
        """
        match = re.fullmatch(r"(\w+)=(\d+(?:,\d+)*)(?::(\w+))?", text.strip())
        if not match:
            raise UsageError(
                f"--input {text!r}: expected NAME=SIZE,SIZE,...[:DTYPE], as in x=2,16,64"
            )
        name, shape, dtype = match[1], match[2], match[3] or "float32"
        if dtype not in _DTYPES:
            raise UsageError(f"--input {text!r}: {dtype} is not one of {', '.join(_DTYPES)}")
        sizes = tuple(int(size) for size in shape.split(","))
        if min(sizes) < 1:
            raise UsageError(f"--input {text!r}: sizes must be at least 1")
        return cls(name, sizes, dtype)


@dataclass(frozen=True)
class AxisSpec:
    """One axis of one input, with the range it may take where one was asked for."""

    name: str
    axis: int
    minimum: int | None = None
    maximum: int | None = None

    @classmethod
    def parse(cls, text: str) -> AxisSpec:
        """Read ``NAME.AXIS[=MIN..MAX]``.

        Raises:
            UsageError: the text has another form.
        """
        match = re.fullmatch(r"(\w+(?:\.\w+)*)\.(\d+)(?:=(\d+)\.\.(\d+))?", text.strip())
        if not match:
            raise UsageError(f"{text!r}: expected NAME.AXIS or NAME.AXIS=MIN..MAX, as in x.0=1..64")
        low, high = (int(match[3]), int(match[4])) if match[3] else (None, None)
        if low is not None and high is not None and low > high:
            raise UsageError(f"{text!r}: the range is empty")
        return cls(match[1], int(match[2]), low, high)


def engine_target(name: str) -> Target:
    """The target of that name whose bundles hold engines.

    Raises:
        UsageError: there is none.
    """
    for target in ENGINE_TARGETS:
        if target == name:
            return target
    raise UsageError(f"{name!r} is none of {', '.join(ENGINE_TARGETS)}")


def parse_compute_capability(text: str) -> str:
    """``8.0`` of ``8.0``, ``80`` or ``sm_80``.

    Raises:
        UsageError: the text has another form.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if not match:
        raise UsageError(f"--compute-capability {text!r}: expected MAJOR.MINOR, as in 8.9")
    return f"{match[1]}.{match[2]}"


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything ``build`` was asked for.

    Attributes:
        output: Folder of the bundle.
        target: ``cpu`` for ONNX Runtime with this package's library, ``portable`` for one file of
            standard operators that any ONNX runtime reads, ``tensorrt-rtx`` and ``tensorrt`` for an
            engine with this package's plugins, ``cuda`` for ONNX Runtime on a GPU with this
            package's kernels.
        dtype: Type of the graph's activations and of all weights but the experts'. None is float32
            on CPUs; for GPUs it is the checkpoint's own, which ``with_dtype`` puts in.
        inputs: Example inputs to draw, by ``--input``.
        dynamic: Axes that must stay dynamic.
        static: Axes that must be fixed at the example's size.
        factory: ``MODULE:CALLABLE`` that builds the model, where the source is weights alone.
        trust: The source may run its own code while it is loaded.
        verify: Compare the result with eager PyTorch.
        overwrite: Replace an existing bundle.
        keep_going: Try every MoE layer before refusing the model, and list all that are refused.
        with_past: Export a causal model with its key/value cache, so that the bundle generates.
        telemetry: Add outputs that tell how each MoE layer spreads its tokens.
        weights: How experts' weights are stored; None is the target's first in ``TARGET_WEIGHTS``.
            ``source`` is, on CPUs, the narrowest type that holds those of a layer without rounding,
            and the type of the activations on GPUs.
        block_size: Columns that share a scale in int4; 128 where it is None.
        zero_points: Give int4 blocks zero points.
        max_error: Keep layers in float32 until the model's relative error is at most this.
        compute_capabilities: GPUs that an engine of TensorRT-RTX is for, such as ``8.9``; that of
            this machine if empty.
        moe: What computes experts in an engine: this package's plugins, or ``native``, TensorRT's
            own MoE layer. ``auto`` takes the plugins (``engine/moe_choice.py`` says why).
        version_compatible: Later versions of TensorRT may run the engine.
        hardware_compatible: Later GPUs from Ampere on may run an engine of TensorRT.
        timing_cache: File that keeps what TensorRT measured, for later builds.
        seed: Seeds every random draw.
    """

    output: Path
    target: Target = "cpu"
    dtype: DType | None = None
    inputs: tuple[InputSpec, ...] = ()
    inputs_file: Path | None = None
    dynamic: tuple[AxisSpec, ...] = ()
    static: tuple[AxisSpec, ...] = ()
    factory: str | None = None
    trust: bool = False
    verify: bool = True
    overwrite: bool = False
    keep_going: bool = False
    with_past: bool = False
    telemetry: bool = False
    weights: Weights | None = None
    block_size: int | None = None
    zero_points: bool = False
    max_error: float | None = None
    compute_capabilities: tuple[str, ...] = ()
    moe: Moe = "auto"
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UsageError: says which.
        """
        if self.target not in TARGETS:
            raise UsageError(f"target {self.target!r} is none of {', '.join(TARGETS)}")
        self._check_weights()
        self._check_dtype()
        self._check_engine_options()
        self._check_moe()
        if self.max_error is not None:
            self._check_max_error(self.max_error)

    def _check_weights(self) -> None:
        if self.weights is not None and self.weights not in WEIGHTS:
            raise UsageError(f"weights {self.weights!r} is none of {', '.join(WEIGHTS)}")
        if self.expert_weights not in TARGET_WEIGHTS[self.target]:
            having = [t for t, kinds in TARGET_WEIGHTS.items() if self.weights in kinds]
            raise UsageError(
                f"--weights {self.weights} needs --target {' or '.join(having)}; {self.target} "
                f"takes {', '.join(TARGET_WEIGHTS[self.target])}{self._instead_of_mxfp4()}"
            )
        if self.block_size is not None and self.block_size not in INT4_BLOCKS:
            raise UsageError(
                f"--block-size {self.block_size} is none of {', '.join(map(str, INT4_BLOCKS))}"
            )
        if self.weights != "int4" and (self.block_size is not None or self.zero_points):
            name = "--zero-points" if self.zero_points else "--block-size"
            raise UsageError(f"{name} belongs to --weights int4; weights are {self.expert_weights}")

    def _instead_of_mxfp4(self) -> str:
        if self.weights != "mxfp4" or self.target not in GPU_TARGETS:
            return ""
        return ". Weights of an MXFP4 checkpoint are dequantized to one of these"

    def _check_dtype(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if not self.runs_on_gpu:
            if self.dtype not in (None, "fp32"):
                raise UsageError(
                    f"--dtype {self.dtype} needs --target {' or '.join(GPU_TARGETS)}: "
                    f"{self.target} computes in float32, and its --weights may be narrower"
                )
            return
        widths = ("fp32", "fp16", "bf16")
        if self.dtype is not None and self.weights in widths and self.weights != self.dtype:
            raise UsageError(
                f"--weights {self.weights} needs --dtype {self.weights}: experts multiply "
                f"activations with weights of their own type. Activations are {self.dtype}, whose "
                f"experts take source, {self.dtype}, int8, int4 or fp8"
            )

    def _check_engine_options(self) -> None:
        if self.telemetry and self.target in ENGINE_TARGETS:
            raise UsageError(
                "--telemetry needs --target cpu or portable: it counts with an operator "
                "(ScatterElements that adds) that TensorRT does not take"
            )
        for name, target in (
            ("compute_capabilities", "tensorrt-rtx"),
            ("hardware_compatible", "tensorrt"),
            ("timing_cache", "tensorrt"),
            ("version_compatible", "tensorrt"),
        ):
            if getattr(self, name) and self.target != target:
                raise UsageError(
                    f"--{_OPTIONS.get(name, name).replace('_', '-')} belongs to --target {target}"
                )

    def _check_moe(self) -> None:
        if self.moe not in MOE:
            raise UsageError(f"moe {self.moe!r} is none of {', '.join(MOE)}")
        if self.moe != "auto" and self.target not in ENGINE_TARGETS:
            raise UsageError(f"--moe belongs to --target {' or '.join(ENGINE_TARGETS)}")
        if self.moe != "native":
            return
        if self.expert_weights in ("int8", "int4", "fp8"):
            raise UsageError(
                f"--weights {self.weights} needs --moe plugin: with --moe native weights have the "
                "type of the activations. TensorRT's own MoE layer takes narrower ones with FP8 "
                "activations, whose scales would have to be calibrated on data"
            )
        if self.hardware_compatible:
            raise UsageError(
                "--hardware-compatible needs --moe plugin: most GPUs that such an engine runs on "
                "have no MoE layer of TensorRT's own"
            )

    def _check_max_error(self, max_error: float) -> None:
        if not max_error > 0:
            raise UsageError(f"--max-error must be above 0; found {max_error}")
        if self.runs_on_gpu:
            raise UsageError(
                f"--max-error needs --target cpu: a build for {self.target} says what rounding "
                "costs, and keeps no layers in float32"
            )
        if self.expert_weights == "fp32":
            raise UsageError("--max-error bounds what smaller weights cost: give --weights")
        if not self.verify:
            raise UsageError("--max-error needs the comparison with eager, which is skipped")

    @property
    def expert_weights(self) -> Weights:
        """How experts' weights are stored, whether it was asked for or not."""
        return self.weights or TARGET_WEIGHTS[self.target][0]

    @property
    def builds_engine(self) -> bool:
        """Whether TensorRT builds an engine for the bundle."""
        return self.target in ENGINE_TARGETS

    @property
    def runs_on_gpu(self) -> bool:
        """Whether its layers run in this package's GPU kernels."""
        return self.target in GPU_TARGETS

    def with_dtype(self, source_dtype: DType) -> BuildPlan:
        """The plan with the type of activations settled, for a checkpoint in ``source_dtype``."""
        if self.dtype is not None:
            return self
        return dataclasses.replace(self, dtype=source_dtype if self.runs_on_gpu else "fp32")

    @property
    def int4_block(self) -> int:
        """Columns that share a scale in int4."""
        return self.block_size or _DEFAULT_BLOCK

    def check_output(self) -> None:
        """Refuse an output that is in the way before any work is done.

        Raises:
            UsageError: the folder exists and ``overwrite`` is off, or it is not a bundle.
        """
        if not self.output.exists() or self._is_empty_folder():
            return
        if not self.overwrite:
            raise UsageError(f"{self.output} exists: choose another folder or pass --overwrite")
        if not (self.output / "manifest.json").is_file():
            raise UsageError(
                f"{self.output} is not a bundle (it has no manifest.json): it is not overwritten"
            )

    def _is_empty_folder(self) -> bool:
        return self.output.is_dir() and not any(self.output.iterdir())
