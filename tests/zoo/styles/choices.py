"""Choices that are not a fixed top-k of one score per token."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.layer import ROWS, H, ZooLayer, floats, made, with_ids
from tests.zoo.styles.common import Experts


class Threshold(nn.Module):
    """As many experts as score above a threshold: none to all of them."""

    def __init__(self, num_experts=6, threshold=0.6):
        super().__init__()
        self.threshold = threshold
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        scores = self.gate(x).sigmoid()
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            active = scores[:, e] > self.threshold
            if active.any():
                y[active] = y[active] + scores[active, e, None] * expert(x[active])
        return y


class Nucleus(nn.Module):
    """Top-p: the fewest experts whose probabilities sum to at least p, renormalized."""

    def __init__(self, num_experts=6, top_p=0.7):
        super().__init__()
        self.top_p = top_p
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        probs, order = self.gate(x).softmax(-1).sort(dim=-1, descending=True)
        kept = probs * (probs.cumsum(-1) - probs < self.top_p)
        weights = torch.zeros_like(kept).scatter(1, order, kept / kept.sum(-1, keepdim=True))
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = torch.nonzero(weights[:, e])[:, 0]
            y.index_add_(0, rows, expert(x[rows]) * weights[rows, e, None])
        return y


class Hierarchical(nn.Module):
    """Two levels: a group by argmax, an expert inside the group by the group's own gate."""

    def __init__(self, groups=2, per_group=3):
        super().__init__()
        self.groups, self.per_group = groups, per_group
        self.outer = nn.Linear(H, groups)
        self.inner = nn.ModuleList(nn.Linear(H, per_group) for _ in range(groups))
        self.experts = Experts(groups * per_group)

    def forward(self, x):
        p_group, group = self.outer(x).softmax(-1).max(-1)
        inner = torch.stack([gate(x).softmax(-1) for gate in self.inner], dim=1)
        p_inner, member = inner[torch.arange(len(x)), group].max(-1)
        ids = (group * self.per_group + member).unsqueeze(1)
        return self.experts.combine(x, (p_group * p_inner).unsqueeze(1), ids)


class SinkhornInTraining(nn.Module):
    """Balanced assignment in training; in eval the plain argmax, weighed by a sigmoid."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = Experts(num_experts)

    def forward(self, x):
        logits = self.gate(x)
        choice = logits
        if self.training:
            choice = logits.exp()
            for _ in range(8):
                choice = choice / choice.sum(0, keepdim=True)
                choice = choice / choice.sum(1, keepdim=True)
        ids = choice.argmax(dim=1, keepdim=True)
        return self.experts.combine(x, torch.sigmoid(logits).gather(1, ids), ids)


class PerSequence(nn.Module):
    """The whole sequence is routed by its mean: one choice of two experts per example."""

    def __init__(self, num_experts=5):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x):
        weights, ids = self.gate(x.mean(dim=1)).softmax(-1).topk(2, dim=-1)
        return self.experts.combine(x, weights.unsqueeze(-1), ids)


class TaskConditioned(nn.Module):
    """A task's embedding is added before the gate: forward(x, task_id)."""

    def __init__(self, num_experts=6, tasks=4):
        super().__init__()
        self.task_embedding = nn.Embedding(tasks, H)
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x, task_id):
        logits = self.gate(x + self.task_embedding(task_id))
        weights, ids = logits.topk(2, dim=-1)
        return self.experts.combine(x, weights.softmax(-1), ids)


class PaddingMask(nn.Module):
    """Padded tokens are routed nowhere: forward(x, mask), mask True where a token is real."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = Experts(num_experts)

    def forward(self, x, mask):
        weights, ids = self.gate(x).softmax(-1).topk(2, dim=-1)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            batch, position, slot = torch.where((ids == e) & mask.unsqueeze(-1))
            if len(batch) > 0:
                gate = weights[batch, position, slot].unsqueeze(-1)
                y[batch, position] += gate * expert(x[batch, position])
        return y


def with_mask(batch, length):
    def draw():
        (x,) = floats(batch, length, H)()
        kept = (length - 2 * torch.arange(batch)).clamp(min=1)
        return x, torch.arange(length) < kept.unsqueeze(1)

    return draw


LAYERS = [
    ZooLayer("threshold", made(Threshold), num_experts=6, note="0 to 6 experts per token", **ROWS),
    ZooLayer("nucleus", made(Nucleus), num_experts=6, note="1 to 6 experts per token", **ROWS),
    ZooLayer("hierarchical", made(Hierarchical), num_experts=6, **ROWS),
    ZooLayer("sinkhorn_in_training", made(SinkhornInTraining), num_experts=6, **ROWS),
    ZooLayer(
        "per_sequence",
        made(PerSequence),
        inputs=floats(6, 4, H),
        other_inputs=(floats(1, 1, H), floats(17, 5, H)),
        num_experts=5,
        note="tokens of a sequence share their experts",
    ),
    ZooLayer(
        "task_conditioned",
        made(TaskConditioned),
        inputs=with_ids(4, 12),
        other_inputs=(with_ids(4, 1), with_ids(4, 65)),
        num_experts=6,
    ),
    ZooLayer(
        "padding_mask",
        made(PaddingMask),
        inputs=with_mask(2, 6),
        other_inputs=(with_mask(1, 1), with_mask(3, 7), with_mask(4, 16)),
        num_experts=6,
    ),
]
