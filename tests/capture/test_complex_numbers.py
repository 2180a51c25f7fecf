"""Complex arithmetic, as rotary embeddings write it, against eager."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from moe_export.capture.complex_numbers import ComplexAsPairs


class Rotary(torch.nn.Module):
    """Turns pairs of columns of ``x [B, S, 8]`` by an angle that grows with the position."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def forward(self, x):
        angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        turns = self.spread(torch.polar(torch.ones_like(angles), angles) * 1.5)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))[:, :, None]
        return torch.view_as_real(pairs * turns).flatten(3).squeeze(2)


SPREADS = {
    "index with None": lambda t: t[None, :, None, :],
    "index with an ellipsis": lambda t: t[None, ..., None, :],
    "unsqueeze": lambda t: t.unsqueeze(0).unsqueeze(-2),
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_exports_rotations_at_another_length(spread, tmp_path):
    model, x = Rotary(spread), torch.randn(2, 5, 8)
    shapes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    with ComplexAsPairs():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    converted.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    other = torch.randn(3, 9, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    np.testing.assert_allclose(found, model(other).numpy(), atol=1e-5)


def test_leaves_eager_results_as_they_are():
    value = torch.randn(3, 4, dtype=torch.complex64)
    with ComplexAsPairs():
        found = [value[1], value[..., 2:], value[:, None] * 2, value.unsqueeze(-1), value * value]
    expected = [value[1], value[..., 2:], value[:, None] * 2, value.unsqueeze(-1), value * value]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
