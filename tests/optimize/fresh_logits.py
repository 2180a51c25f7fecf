"""Logits that the fitting code never saw, drawn by other rules than its own."""

from __future__ import annotations

import numpy as np


def fresh_logits(num_experts):
    """Rows ``[T, E]``: many sizes, near-ties, crowds, pairs of large ones, padding."""
    random = np.random.default_rng(987)
    parts = [random.normal(0, size, (400, num_experts)) for size in (0.5, 1.0, 2.0, 4.0)]
    parts.append(random.uniform(-8, 8, (400, num_experts)))
    parts.append(random.normal(0, 15, (100, num_experts)))
    parts += [random.normal(shift, 1, (60, num_experts)) for shift in (-20, -10, -5, 3, 6)]
    near = random.normal(0, 1, (300, num_experts))
    order = np.argsort(-near, axis=1)
    rows = np.arange(300)
    gap = 10.0 ** random.uniform(-4, -2, 300) * random.choice([-1, 1], 300)
    near[rows, order[:, 2]] = near[rows, order[:, 1]] + gap
    parts.append(near)
    parts.append(
        random.normal(0, 1, (1, num_experts)) * 2 + random.normal(0, 0.1, (300, num_experts))
    )
    high = random.normal(0, 1, (400, num_experts))
    for row in high:
        chosen = random.choice(num_experts, 2, replace=False)
        row[chosen] += random.uniform(2, 9, 2)
    parts.append(high)
    # A padded token has no logits but zeros.
    logits = np.concatenate([*parts, np.zeros((4, num_experts))])
    # Far above, a sigmoid rounds different logits to one score, and any choice is right.
    logits = np.where(logits > 8, 8 + np.log1p(np.maximum(logits - 8, 0)), logits)
    return logits.astype(np.float32)
