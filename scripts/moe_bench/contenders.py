"""What is timed: this library and its peers, each a function of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from moe_bench import ggml_moe, openvino_moe, ort_moe, ort_qmoe, ours, torch_moe, unrolled
from moe_bench.layers import Weights
from moe_bench.routing import Bind

Width = Literal["fp32", "bf16", "int8", "int4"]
# Packages of the extra ``bench``, by the module to import.
_MODULES = {"openvino": "openvino", "ggml-python": "ggml"}
WEIGHT_BITS: Mapping[Width, int] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    Attributes:
        name: For tables and ``--contenders``.
        width: What its weights are stored in; only contenders of the same width are compared.
        prepare: From weights to a function that binds calls.
        ours: Whether it is this library.
        package: What has to be installed for it, besides what this library needs.
    """

    name: str
    width: Width
    prepare: Callable[[Weights], Bind]
    ours: bool = False
    package: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or find_spec(_MODULES[self.package]) is not None


CONTENDERS = (
    Contender("moe-export", "fp32", ours.prepare, ours=True),
    Contender("ORT MoE", "fp32", ort_moe.prepare),
    Contender("transformers' export", "fp32", unrolled.prepare),
    Contender("ORT QMoE", "int8", ort_qmoe.preparer(8)),
    Contender("ORT QMoE", "int4", ort_qmoe.preparer(4)),
    *(
        Contender("OpenVINO", width, openvino_moe.preparer(width), package="openvino")
        for width in WEIGHT_BITS
    ),
    Contender("ggml BF16", "bf16", ggml_moe.preparer("BF16"), package="ggml-python"),
    Contender("ggml Q8_0", "int8", ggml_moe.preparer("Q8_0"), package="ggml-python"),
    Contender("ggml Q4_0", "int4", ggml_moe.preparer("Q4_0"), package="ggml-python"),
    Contender("torch eager", "fp32", torch_moe.preparer("eager", "float32")),
    Contender("torch grouped_mm", "fp32", torch_moe.preparer("grouped_mm", "float32")),
    Contender("torch eager", "bf16", torch_moe.preparer("eager", "bfloat16")),
    Contender("torch grouped_mm", "bf16", torch_moe.preparer("grouped_mm", "bfloat16")),
)
