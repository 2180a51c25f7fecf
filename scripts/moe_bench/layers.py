"""The layers that are timed, their weights on disk, and their exact results."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Activation = Literal["silu", "relu"]


@dataclass(frozen=True)
class Layer:
    """Sizes of an MoE layer.

    Attributes:
        name: Of the model it is from.
        hidden: H, width of a token.
        intermediate: I, width inside an expert.
        experts: E.
        top_k: K, experts per token.
        activation: Of the gate, or of up where ungated.
        gated: Whether up holds gate rows too.
    """

    name: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    activation: Activation = "silu"
    gated: bool = True

    @property
    def up_rows(self) -> int:
        """Rows of an expert's first matrix: 2·I when gated."""
        return self.intermediate * (2 if self.gated else 1)

    @property
    def expert_values(self) -> int:
        """Weights of one expert."""
        return self.hidden * (self.up_rows + self.intermediate)

    def operations(self, tokens: int) -> int:
        """Multiplications and additions of the experts for ``tokens`` tokens."""
        return 2 * tokens * self.top_k * self.expert_values


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("olmoe", 2048, 1024, 64, 8),
        Layer("qwen3", 2048, 768, 128, 8),
        Layer("mixtral", 4096, 14336, 8, 2),
        Layer("switch", 768, 3072, 128, 1, "relu", gated=False),
        Layer("tiny", 256, 128, 8, 2),  # to try the command
    )
}


@dataclass(frozen=True)
class Weights:
    """Random weights of a layer, mapped from files.

    Attributes:
        layer: What they are of.
        folder: Where ``up.bin`` and ``down.bin`` are, float32 and row-major.
        up: ``[E, 2·I, H]``, gate rows first (``[E, I, H]`` ungated).
        down: ``[E, H, I]``.
    """

    layer: Layer
    folder: Path
    up: Floats
    down: Floats

    def release_pages(self) -> None:
        """Give up what of the files is in memory; they are read again when needed."""
        for name, array in (("up", self.up), ("down", self.down)):
            array.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]  # it is a mapping
            with (self.folder / f"{name}.bin").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def expert(self, x: Floats, expert: int) -> NDArray[np.float64]:
        """One expert on rows ``x [N, H]`` in float64, ``[N, H]``."""
        layer = self.layer
        inner = x.astype(np.float64) @ self.up[expert].astype(np.float64).T
        gate = inner[:, : layer.intermediate]
        active = np.maximum(gate, 0) if layer.activation == "relu" else gate / (1 + np.exp(-gate))
        hidden = active * inner[:, layer.intermediate :] if layer.gated else active
        result: NDArray[np.float64] = hidden @ self.down[expert].astype(np.float64).T
        return result


def draw_weights(layer: Layer, folder: Path) -> Weights:
    """Write weights of standard deviation 0.02 to ``folder`` and map them."""
    generator = np.random.default_rng(0)
    shapes = {
        "up": (layer.experts, layer.up_rows, layer.hidden),
        "down": (layer.experts, layer.hidden, layer.intermediate),
    }
    for name, shape in shapes.items():
        with (folder / f"{name}.bin").open("wb") as file:
            for _ in range(layer.experts):
                drawn = generator.standard_normal(shape[1:], dtype=np.float32)
                (drawn * np.float32(0.02)).tofile(file)
            os.fsync(file.fileno())  # only pages that are written can be given up
    up, down = (
        np.memmap(folder / f"{name}.bin", np.float32, "r", shape=shape)
        for name, shape in shapes.items()
    )
    return Weights(layer, folder, up, down)
