"""Run the exported classifier without PyTorch and compare its accuracy with eager's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import moe_export


def main(folder: Path) -> None:
    bundle = moe_export.load(folder / "bundle")
    images = np.load(folder / "test.npz")["images"]
    known = np.load(folder / "labels.npz")
    predicted = bundle.run({"images": images})["output"].argmax(axis=1)
    assert "torch" not in sys.modules, "a bundle runs without PyTorch"
    print(f"ONNX Runtime accuracy:  {np.mean(predicted == known['labels']):.4f}, without PyTorch")
    differing = int((predicted != known["eager"]).sum())
    print(f"predictions that differ from eager: {differing}")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
