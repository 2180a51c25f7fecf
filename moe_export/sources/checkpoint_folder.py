"""A folder that transformers saved, or a model of the hub: opened, and loaded by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.sources.hub import fetch_model
from moe_export.sources.load_report import check_shapes, conversions_reported
from moe_export.sources.quantized import QuantizedWeights, read_quantized, refuse_gguf


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder with a ``config.json`` and weights.

    Attributes:
        path: The folder; for a model of the hub the snapshot in the cache.
        quantized: Its weights, where they are quantized.
    """

    path: Path
    quantized: QuantizedWeights | None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know about the weights."""
        return () if self.quantized is None else (self.quantized.remark,)

    def load(self, loader: Any, *, trust: bool) -> tuple[nn.Module, dict[str, Any]]:  # noqa: ANN401 - a class of transformers
        """Load the model.

        A quantized checkpoint is given as a state dict of float32 tensors that are computed when
        they are read, under the names that the checkpoint would have without quantization, so that
        transformers renames and merges them as usual.

        Args:
            loader: A model class of transformers, or one that chooses, as ``AutoModel`` does.
            trust: Run modeling code that the checkpoint brings.

        Returns:
            The model, and what transformers says of missing and unexpected weights.

        Raises:
            UsageError: tensors do not have the shapes that the config gives them; names them.
            UnsupportedModelError: a quantized checkpoint with modeling code of its own.
        """
        with conversions_reported(self.path):
            model, info = self._load(loader, trust=trust)
        check_shapes(self.path, info)
        return model, info

    def _load(self, loader: Any, *, trust: bool) -> Any:  # noqa: ANN401 - a model and a dictionary
        # Shapes that do not fit are reported rather than raised: the error would not name them.
        shared = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        options: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": True}
        if self.quantized is None:
            return loader.from_pretrained(str(self.path), dtype="auto", **shared, **options)
        config = self._plain_config(options)
        if not issubclass(loader, nn.Module):  # from_pretrained of one that chooses needs a path
            with torch.device("meta"):
                loader = type(loader.from_config(config))
        tensors = dict(self.quantized.tensors)
        model, info = loader.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, **shared
        )
        self._name_origin(model)
        return model, info

    def _name_origin(self, model: Any) -> None:  # noqa: ANN401
        """Say where a model comes from that was given as a state dict, and how it generates."""
        from transformers import GenerationConfig

        model.config.name_or_path = str(self.path)
        if model.can_generate() and (self.path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                str(self.path), local_files_only=True
            )

    def _plain_config(self, options: dict[str, Any]) -> Any:  # noqa: ANN401
        """The config of the same model without quantization."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(self.path), **options)
        if type(config).__module__.startswith("transformers_modules"):
            raise UnsupportedModelError(
                f"{self.path} is quantized and brings its own modeling code: export the checkpoint "
                "that it was quantized from"
            )
        for part in (config, config.get_text_config()):
            if hasattr(part, "quantization_config"):
                del part.quantization_config
        return config


def open_checkpoint_folder(source: str, *, trust: bool) -> CheckpointFolder:
    """Open a folder, or fetch a model of the hub.

    Raises:
        UsageError: there is no such model, or its files contradict each other.
        EnvironmentLacksError: the hub cannot be reached.
        UnsupportedModelError: a format that is not read, by name.
    """
    path = Path(source)
    if not path.is_dir():
        path = fetch_model(source, trust=trust)
    refuse_gguf(path, source)
    if not (path / "config.json").is_file():
        raise UsageError(_not_a_model(path))
    return CheckpointFolder(path, read_quantized(path))


def _not_a_model(folder: Path) -> str:
    message = f"{folder} is a folder without config.json: not a Hugging Face model"
    if (folder / "adapter_config.json").is_file():
        return (
            f"{message} but an adapter: merge it into its base model with PEFT's "
            "merge_and_unload(), and export what save_pretrained() writes"
        )
    if any(folder.glob("*.safetensors")):
        return (
            f"{message}. For weights alone pass --factory MODULE:CALLABLE, which builds the model"
        )
    return message
