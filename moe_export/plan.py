"""What the user asked for: one frozen record that every stage may read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moe_export.errors import UsageError

Target = Literal["cpu", "portable"]
TARGETS: tuple[Target, ...] = get_args(Target)

Weights = Literal["fp32", "fp16", "bf16", "int8", "int4", "mxfp4", "source"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
INT4_BLOCKS = (32, 64, 128)
_DEFAULT_BLOCK = 128

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
        match = re.fullmatch(r"(\w+)\.(\d+)(?:=(\d+)\.\.(\d+))?", text.strip())
        if not match:
            raise UsageError(f"{text!r}: expected NAME.AXIS or NAME.AXIS=MIN..MAX, as in x.0=1..64")
        low, high = (int(match[3]), int(match[4])) if match[3] else (None, None)
        if low is not None and high is not None and low > high:
            raise UsageError(f"{text!r}: the range is empty")
        return cls(match[1], int(match[2]), low, high)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything ``build`` was asked for.

    Attributes:
        output: Folder of the bundle.
        target: ``cpu`` for ONNX Runtime with this package's library, ``portable`` for one file of
            standard operators that any ONNX runtime reads.
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
        weights: How experts' weights are stored; ``source`` is the narrowest type that holds those
            of a layer without rounding. All other weights stay in float32.
        block_size: Columns that share a scale in int4; 128 where it is None.
        zero_points: Give int4 blocks zero points.
        max_error: Keep layers in float32 until the model's relative error is at most this.
        seed: Seeds every random draw.
    """

    output: Path
    target: Target = "cpu"
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
    weights: Weights = "fp32"
    block_size: int | None = None
    zero_points: bool = False
    max_error: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that do not go together.

        Raises:
            UsageError: says which.
        """
        if self.weights not in WEIGHTS:
            raise UsageError(f"weights {self.weights!r} is none of {', '.join(WEIGHTS)}")
        if self.weights != "fp32" and self.target != "cpu":
            raise UsageError(
                f"--weights {self.weights} needs --target cpu: the operators of {self.target} take "
                "float32 weights"
            )
        if self.block_size is not None and self.block_size not in INT4_BLOCKS:
            raise UsageError(
                f"--block-size {self.block_size} is none of {', '.join(map(str, INT4_BLOCKS))}"
            )
        if self.weights != "int4" and (self.block_size is not None or self.zero_points):
            name = "--zero-points" if self.zero_points else "--block-size"
            raise UsageError(f"{name} belongs to --weights int4; weights are {self.weights}")
        if self.max_error is not None:
            self._check_max_error(self.max_error)

    def _check_max_error(self, max_error: float) -> None:
        if not max_error > 0:
            raise UsageError(f"--max-error must be above 0; found {max_error}")
        if self.weights == "fp32":
            raise UsageError("--max-error bounds what smaller weights cost: give --weights")
        if not self.verify:
            raise UsageError("--max-error needs the comparison with eager, which is skipped")

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
