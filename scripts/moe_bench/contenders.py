"""What is timed: this library and its peers, each a function of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from moe_bench import (
    ggml_moe,
    openvino_moe,
    openvino_session,
    openvino_unrolled,
    ort_moe,
    ort_qmoe,
    ours,
    torch_moe,
    unrolled,
)
from moe_bench.layers import Weights
from moe_bench.routing import Bind

Width = Literal["fp32", "bf16", "int8", "int4"]
# Packages of the extra ``bench``, by the module to import.
MODULES = {"openvino": "openvino", "ggml-python": "ggml"}
WEIGHT_BITS: Mapping[Width, int] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    Attributes:
        name: For tables and ``--contenders``.
        width: What its weights are stored in; only contenders of the same width are compared.
        prepare: From weights to a function that binds calls.
        bits: That a weight takes with its share of scales; those of its type if 0.
        ours: Whether it is this library.
        copies: Of its weights that it holds in memory, mapped files among them, as measured.
        package: What has to be installed for it, besides what this library needs.
    """

    name: str
    width: Width
    prepare: Callable[[Weights], Bind]
    bits: float = 0
    ours: bool = False
    copies: float = 1
    package: str = ""

    def stored_bytes(self, values: float) -> float:
        """What ``values`` weights take as they are read."""
        return values * (self.bits or WEIGHT_BITS[self.width]) / 8

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or find_spec(MODULES[self.package]) is not None


def _openvino(width: openvino_session.Width, copies: float, bits: float = 0) -> list[Contender]:
    fused, single = openvino_moe.preparer(width), openvino_unrolled.preparer(width)
    return [
        Contender("OpenVINO", width, fused, bits, copies=copies, package="openvino"),
        Contender("OpenVINO unrolled", width, single, bits, copies=3, package="openvino"),
    ]


def _torch(name: torch_moe.Way) -> tuple[Contender, ...]:
    label = f"torch {name}"
    return (
        Contender(label, "fp32", torch_moe.preparer(name, "float32"), copies=0),
        Contender(label, "bf16", torch_moe.preparer(name, "bfloat16"), copies=0.5),
    )


CONTENDERS = (
    Contender("moe-export", "fp32", ours.preparer("fp32"), ours=True),
    Contender("moe-export", "bf16", ours.preparer("bf16"), ours=True),
    Contender("moe-export", "int8", ours.preparer("int8"), ours=True),
    Contender("moe-export", "int4", ours.preparer("int4", 128), 4.25, ours=True),
    Contender("moe-export b32", "int4", ours.preparer("int4", 32), 5, ours=True),
    Contender("ORT MoE", "fp32", ort_moe.prepare),
    Contender("transformers' export", "fp32", unrolled.prepare, copies=3.5),
    Contender("ORT QMoE", "int8", ort_qmoe.preparer(8), 8.25),
    Contender("ORT QMoE", "int4", ort_qmoe.preparer(4), 4.25),
    *_openvino("fp32", 3),
    *_openvino("bf16", 4),
    *_openvino("int8", 7),
    *_openvino("int4", 7, bits=4.25),
    Contender("ggml BF16", "bf16", ggml_moe.preparer("BF16"), package="ggml-python"),
    Contender("ggml Q8_0", "int8", ggml_moe.preparer("Q8_0"), 8.5, package="ggml-python"),
    Contender("ggml Q4_0", "int4", ggml_moe.preparer("Q4_0"), 4.5, package="ggml-python"),
    *_torch("eager"),
    *_torch("grouped_mm"),
    *_torch("batched_mm"),
)
