"""Quantized Hugging Face checkpoints: two formats are loaded exactly, others refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.sources.checkpoint import StoredTensor, find_weights, open_checkpoint
from moe_export.sources.dequantize import (
    BLOCKS,
    FP8_DTYPES,
    DequantizedTensor,
    WeightSource,
    dequantize_fp8,
    dequantize_mxfp4,
)

_ORIGINAL = "export the checkpoint that it was quantized from"
_DEQUANTIZE = (
    f"{_ORIGINAL}, or load it with transformers where {{package}} is installed, call "
    "model.dequantize(), and export what model.save_pretrained() writes"
)
_RELOAD = (
    f"{_ORIGINAL}, or load it with transformers and quantization_config={{config}}, and export "
    "what model.save_pretrained() writes"
)
# What to do about each method that transformers names; see its QuantizationMethod.
_ADVICE = {
    "bitsandbytes": _DEQUANTIZE.format(package="bitsandbytes"),
    "higgs": _DEQUANTIZE.format(package="flute"),
    "compressed-tensors": _RELOAD.format(config="CompressedTensorsConfig(dequantize=True)"),
    "metal": _RELOAD.format(config="MetalConfig(dequantize=True)"),
}
# Files that older tools wrote instead of config.json's quantization_config.
_CONFIG_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# What becomes of the weights of a format.
_KEPT = "--weights mxfp4 stores those of experts so again"
_NOT_KEPT = "no bundle stores weights so"
_DEFAULT_FP8_BLOCK = (128, 128)


@dataclass(frozen=True)
class QuantizedWeights:
    """The weights of a quantized checkpoint, to be computed in float32 as they are read.

    Attributes:
        tensors: By name, as the same checkpoint without quantization would call them.
        remark: What was loaded and what the export holds.
    """

    tensors: Mapping[str, WeightSource]
    remark: str


def check_method(folder: Path, source: str) -> str | None:
    """The method that a folder's weights are quantized by; None where they are not.

    Raises:
        UsageError: ``config.json`` is no readable JSON.
        UnsupportedModelError: the method is not read; says what to do.
    """
    settings = quantization_settings(_read_config(folder), folder)
    if settings is None:
        return None
    method = _method(settings)
    if method not in ("fp8", "mxfp4"):
        raise UnsupportedModelError(
            f"{source} is quantized by {method}, which is not read (fp8 in blocks and mxfp4 are): "
            f"{_ADVICE.get(method, _ORIGINAL)}"
        )
    if settings.get("expert_dtype") == "fp4":
        raise UnsupportedModelError(
            f"{source} has experts packed in 4 bits beside FP8 weights (expert_dtype fp4), which "
            f"is not read: {_ORIGINAL}"
        )
    return method


def refuse_gguf(path: Path, source: str) -> None:
    """Refuse a GGUF file, or a folder that has no other weights.

    Raises:
        UnsupportedModelError: says what to do.
    """
    if path.suffix == ".gguf" or (any(path.glob("*.gguf")) and find_weights(path) is None):
        raise UnsupportedModelError(
            f"{source} is quantized for llama.cpp (GGUF), which is not read: export the checkpoint "
            "that it was converted from, or load it with transformers' "
            "from_pretrained(FOLDER, gguf_file=NAME) and export what save_pretrained() writes"
        )


def refuse_quantized_model(model: Any) -> None:  # noqa: ANN401 - a model of transformers
    """Refuse a model in memory whose weights are still quantized.

    Raises:
        UnsupportedModelError: names the method, and says what to do.
    """
    if getattr(model, "is_quantized", False):
        method = getattr(model, "quantization_method", None)
        raise UnsupportedModelError(
            f"this {type(model).__name__} is quantized by {getattr(method, 'value', method)} in "
            "memory: load it without quantization, or let moe-export load its folder (MXFP4 and "
            "block FP8)"
        )


def read_quantized(folder: Path) -> QuantizedWeights | None:
    """Open a folder's weights if they are quantized; None where they are not.

    Only the config and the headers of the weights' files are read.

    Raises:
        UsageError: the checkpoint contradicts itself; the tensor is named.
        UnsupportedModelError: a quantization that is not read, by name, with what to do.
    """
    method, weights = check_method(folder, str(folder)), find_weights(folder)
    if method is None:
        if weights is not None:
            _check_plain(open_checkpoint(weights))
        return None
    if weights is None:
        raise UsageError(f"{folder} says that it is quantized by {method}, but has no .safetensors")
    stored = open_checkpoint(weights)
    if method == "mxfp4":
        return _described(folder, dequantize_mxfp4(stored), "MXFP4", _KEPT)
    return _described(folder, dequantize_fp8(stored, _fp8_block(folder)), "FP8", _NOT_KEPT)


def quantization_settings(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any] | None:
    """What a checkpoint says of its quantization; None where it says nothing."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), Mapping):
                return dict(part[key])
    for name, method in _CONFIG_FILES.items():
        if (folder / name).is_file():
            return {"quant_method": method}
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds a {type(config).__name__}; expected an object")
    return config


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # early checkpoints do not name it
    return str(method)


def _fp8_block(folder: Path) -> Sequence[int] | None:
    settings = quantization_settings(_read_config(folder), folder) or {}
    block: Any = settings.get("weight_block_size", _DEFAULT_FP8_BLOCK)
    if block is None:
        return None
    if (
        not isinstance(block, Sequence)
        or len(block) != 2
        or not all(isinstance(size, int) and size > 0 for size in block)
    ):
        raise UsageError(
            f"{folder}/config.json: weight_block_size is {block!r}; expected two sizes, as in "
            f"{list(_DEFAULT_FP8_BLOCK)}"
        )
    return tuple(block)


def _check_plain(stored: Mapping[str, StoredTensor]) -> None:
    """Refuse weights that only a quantization config explains; they would be read as other values.

    Raises:
        UsageError: names such a tensor.
    """
    for name, tensor in stored.items():
        if tensor.dtype in FP8_DTYPES or (name.endswith(BLOCKS) and tensor.dtype == "U8"):
            raise UsageError(
                f"{tensor.path}: {name} is {tensor.dtype}, but config.json has no "
                "quantization_config, which says what it means: restore it from the original"
            )


def _described(
    folder: Path, tensors: Mapping[str, WeightSource], name: str, fate: str
) -> QuantizedWeights:
    count = sum(isinstance(tensor, DequantizedTensor) for tensor in tensors.values())
    if not count:
        raise UsageError(f"{folder} says that it is quantized, but no tensor of it is {name}")
    return QuantizedWeights(
        tensors,
        f"{count} {name} tensors were loaded as the float32 numbers that they stand for; {fate}",
    )
