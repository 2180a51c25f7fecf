"""Train the digits classifier for a few seconds and save it as model.pt with its test images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_moe import DigitsClassifier
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[Any]


def load_images() -> tuple[Array, Array, Array, Array]:
    """Scaled images ``[N, 64]`` float32 and labels ``[N]``, for training and for the test."""
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.25, random_state=0
    )
    return x_train, x_test, y_train, y_test


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the layers are too small for more
    x_train, x_test, y_train, y_test = load_images()
    images, labels = torch.from_numpy(x_train), torch.from_numpy(y_train)
    model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        for batch in torch.randperm(len(images)).split(128):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = model(torch.from_numpy(x_test)).argmax(dim=1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model, folder / "model.pt")
    np.savez(folder / "test.npz", images=x_test)
    np.savez(folder / "labels.npz", labels=y_test, eager=predicted)
    print(f"eager PyTorch accuracy: {np.mean(predicted == y_test):.4f} on {len(y_test)} images")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
