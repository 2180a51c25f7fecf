"""What the attribute records of the contract share: fields, their checks and their ONNX form."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

from moe_export.errors import ContractError

WeightType = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "mxfp4"]
WeightLayout = Literal["row_major", "cpu_v1", "cuda_v1"]

QUANTIZED_TYPES = ("int8", "int4", "fp8", "mxfp4")

AttributeValue = int | float | str


def require(condition: bool, label: str, message: str) -> None:
    """Raise ``ContractError`` that starts with ``label`` unless ``condition`` holds."""
    if not condition:
        raise ContractError(f"{label}: {message}")


def documented(default: Any, doc: str) -> Any:  # noqa: ANN401 - a dataclass field of any type
    """A dataclass field with its line of the README's table."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class OpAttributes(ABC):
    """What the attribute records share: strict conversion from and to ONNX attributes."""

    op_type: ClassVar[str]
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every field's type and every value on its own."""
        for name, kind in get_type_hints(type(self)).items():
            if getattr(kind, "__origin__", None) is not ClassVar:
                self._check_field(name, kind, getattr(self, name))
        self.check_values()

    def _check_field(self, name: str, kind: Any, value: object) -> None:  # noqa: ANN401 - a type hint
        label = f"{self.prefix}_attributes"
        if choices := get_args(kind):
            require(
                value in choices,
                label,
                f"{name} must be one of {', '.join(choices)}; found {value!r}",
            )
        elif kind is float:
            require(
                isinstance(value, float) and math.isfinite(value),
                label,
                f"{name} must be a finite float; found {value!r}",
            )
        else:
            require(type(value) is kind, label, f"{name} must be {kind.__name__}; found {value!r}")

    @abstractmethod
    def check_values(self) -> None:
        """Check what each attribute's type does not say."""

    @abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs these attributes ask for, in order and without gaps."""

    def parameter_names(self) -> tuple[str, ...]:
        """Names of the inputs that are stored weights."""
        return ()

    @abstractmethod
    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the shapes of the inputs, given by name."""

    def to_onnx(self) -> dict[str, AttributeValue]:
        """Every attribute, written out; booleans become 0 or 1."""
        return {
            name: int(value) if isinstance(value, bool) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_onnx(cls, attributes: Mapping[str, AttributeValue]) -> Self:
        """Read the attributes of a node; none may be missing, unknown or of another type.

        Raises:
            ContractError: names the attribute at fault.
        """
        kinds = {f.name: get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}
        label = f"{cls.prefix}_attributes"
        unknown, missing = (
            sorted(set(attributes) - set(kinds)),
            sorted(set(kinds) - set(attributes)),
        )
        require(not unknown, label, f"{cls.op_type} has no attribute {', '.join(unknown)}")
        require(not missing, label, f"{cls.op_type} needs attribute {', '.join(missing)}")
        values: dict[str, Any] = dict(attributes)
        for name, kind in kinds.items():
            if kind is bool:
                flag = values[name]
                valid = type(flag) is int and flag in (0, 1)
                require(valid, label, f"{name} must be 0 or 1; found {flag!r}")
                values[name] = bool(flag)
        return cls(**values)
