"""How near eager came to another choice, from the scores it selected from."""

from __future__ import annotations

import numpy as np
import torch

from moe_export.runners.eager import _margin


def test_the_distance_of_the_last_kept_score_to_the_first_left_out():
    scores = torch.tensor([[0.9, 0.1, 0.6], [0.5, 0.5, 0.2]])
    np.testing.assert_allclose(_margin([(scores, 1)], 2, 1), [0.3, 0.0], atol=1e-6)


def test_a_selection_among_nothing_says_nothing():
    scores = torch.tensor([[0.9, 0.1, 0.6]])
    nothing = torch.empty(1, 1, 0)
    np.testing.assert_allclose(_margin([(nothing, 0), (scores, 1)], 1, 1), [0.3], atol=1e-6)
