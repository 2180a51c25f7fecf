"""Layers to run on a GPU: weights in every form that its kernels have, packed, and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from moe_export.gpu.c_api import GpuLibrary
from moe_export.ops.spec import GroupedExperts, GroupedMatMul
from moe_export.ops.storage import WeightStorage
from moe_export.pack.padded_rows import pack_padded_rows
from moe_export.quantize.matrix import quantize_matrix
from moe_export.runners.device import Device

Array = NDArray[Any]

ELEMENT_DTYPES: Mapping[str, DTypeLike] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class Form:
    """How a layer is stored and computed.

    Attributes:
        element_type: Of activations: fp32, fp16 or bf16.
        weights: How weights are stored.
    """

    element_type: str
    weights: WeightStorage

    def __str__(self) -> str:
        weights = self.weights
        block = f", blocks of {weights.block_size}" if weights.block_size else ""
        zero = " with zero points" if weights.has_zero_point else ""
        return f"{self.element_type} x {weights.weight_type}{block}{zero}"


def list_forms() -> list[Form]:
    """Every form that the library has kernels of."""
    quantized = [
        WeightStorage(weight_type="int8"),
        *(WeightStorage(weight_type="int4", block_size=block) for block in (32, 64, 128)),
        WeightStorage(weight_type="int4", block_size=128, has_zero_point=True),
        WeightStorage(weight_type="fp8"),
    ]
    return [Form("fp32", WeightStorage())] + [
        Form(element, storage)
        for element in ("fp16", "bf16")
        for storage in (WeightStorage(weight_type=element), *quantized)
    ]


@dataclass(frozen=True)
class Layer:
    """One `GroupedExperts` call on the host.

    Attributes:
        attributes: Row-major, for the reference.
        element_type: Of x and y.
        inputs: Its tensors by name, row-major; x is float32 with values of ``element_type``.
    """

    attributes: GroupedExperts
    element_type: str
    inputs: Mapping[str, Array]

    @property
    def packed_attributes(self) -> GroupedExperts:
        """As the library takes them."""
        return replace(self.attributes, weight_layout="cuda_v1")


def make_layer(
    form: Form, attributes: GroupedExperts, expert_ids: Array, rng: np.random.Generator
) -> Layer:
    """Random weights and tokens.

    Args:
        form: How the layer is stored.
        attributes: Its sizes and its expert; what says how weights are stored is the form's.
        expert_ids: ``[T, K]`` int32 or int64.
        rng: Draws everything else.
    """
    weights = form.weights
    a = replace(
        attributes,
        weight_type=weights.weight_type,
        block_size=weights.block_size,
        has_zero_point=weights.has_zero_point,
    )
    dtype = ELEMENT_DTYPES[form.element_type]
    x = rng.standard_normal((len(expert_ids), a.hidden_size)).astype(dtype).astype(np.float32)
    inputs: dict[str, Array] = {
        "x": x,
        "expert_ids": expert_ids,
        "expert_weights": rng.uniform(0.1, 1, expert_ids.shape).astype(np.float32),
    }
    sizes = {"up": (a.up_rows, a.hidden_size), "down": (a.hidden_size, a.intermediate_size)}
    for name, (rows, columns) in sizes.items():
        scale = np.float32(columns**-0.5)
        experts = [
            quantize_matrix(weights, rng.standard_normal((rows, columns), np.float32) * scale)
            for _ in range(a.num_experts)
        ]
        for part in experts[0]:
            inputs[f"{name}_{part}"] = np.stack([expert[part] for expert in experts])
        if a.has_bias:
            inputs[f"{name}_bias"] = rng.standard_normal((a.num_experts, rows), np.float32)
    return Layer(a, form.element_type, {name: inputs[name] for name in a.input_names()})


class UploadedLayer:
    """A layer in device memory, ready to run."""

    def __init__(self, layer: Layer, library: GpuLibrary, device: Device) -> None:
        a, inputs = layer.packed_attributes, layer.inputs
        self._layer, self._library, self._device = layer, library, device
        tokens, top_k = inputs["expert_ids"].shape
        x = inputs["x"].astype(ELEMENT_DTYPES[layer.element_type])
        self._like = x
        self._y = device.allocate(x.nbytes)
        workspace = library.number(
            "grouped_experts_workspace", a, layer.element_type, tokens, top_k
        )
        biases = [inputs.get(f"{name}_bias") for name in ("up", "down")]
        self._arguments = (
            *(tokens, top_k, device.upload(x), device.upload(inputs["expert_ids"])),
            int(inputs["expert_ids"].dtype == np.int64),
            device.upload(inputs["expert_weights"]),
            device.upload(_packed(layer, "up", a.hidden_size)),
            device.upload(_packed(layer, "down", a.intermediate_size)),
            *(None if bias is None else device.upload(bias) for bias in biases),
            self._y,
            device.allocate(workspace),
            device.stream,
        )

    def run(self, tile_rows: int = 0) -> None:
        """Launch it on the device's stream; 0 lets the library choose the tile."""
        layer = self._layer
        self._library.call(
            "grouped_experts",
            *(layer.packed_attributes, layer.element_type, tile_rows, *self._arguments),
        )

    def output(self) -> Array:
        """What the last run computed, ``[T, H]`` float32."""
        return self._device.download(self._y, self._like).astype(np.float32)


def pack_matrix(
    attributes: GroupedExperts | GroupedMatMul,
    weight: Array,
    scale: Array | None = None,
    zero: Array | None = None,
    *,
    columns: int,
) -> Array:
    """Every expert's matrix as ``cuda_v1``, ``[E, bytes]`` int8.

    Args:
        attributes: How it is stored.
        weight: ``[E, N, ..]`` row-major.
        scale: As stored row-major, if the weights have scales.
        zero: As stored row-major, if they have zero points.
        columns: K.
    """
    return np.stack(
        [
            pack_padded_rows(
                attributes.weight_type,
                weight[expert],
                None if scale is None else scale[expert],
                None if zero is None else zero[expert],
                columns=columns,
                block_size=attributes.block_size,
            )
            for expert in range(attributes.num_experts)
        ]
    )


def _packed(layer: Layer, name: str, columns: int) -> Array:
    parts = [layer.inputs.get(f"{name}_{part}") for part in ("scale", "zero")]
    return pack_matrix(layer.attributes, layer.inputs[f"{name}_weight"], *parts, columns=columns)
