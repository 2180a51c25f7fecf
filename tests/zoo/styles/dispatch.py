"""Tokens are sorted, counted, copied or packed into buffers; results are put back."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made

WIDTH = 20


def mlp():
    return nn.Sequential(nn.Linear(H, WIDTH), nn.GELU(), nn.Linear(WIDTH, H))


class SortSplitCat(nn.Module):
    """argsort, bincount, split, cat, inverse permutation."""

    def __init__(self, num_experts=6, top_k=2):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(H, num_experts, bias=False)
        self.experts = nn.ModuleList(mlp() for _ in range(num_experts))

    def forward(self, x):
        weights, ids = torch.topk(self.router(x).softmax(-1), self.top_k)
        flat = ids.view(-1)
        order = torch.argsort(flat, stable=True)
        sizes = torch.bincount(flat, minlength=self.num_experts).tolist()
        parts = x[order.div(self.top_k, rounding_mode="floor")].split(sizes)
        done = torch.cat([f(p) for f, p in zip(self.experts, parts, strict=True)])
        inverse = torch.argsort(order)
        return torch.einsum("tkh,tk->th", done[inverse].view(-1, self.top_k, H), weights)


class SortedSlices(nn.Module):
    """Copies in expert order; offsets by searchsorted; stacked weights sliced per expert."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(H, num_experts)
        self.w1 = nn.Parameter(torch.randn(num_experts, H, WIDTH))
        self.w2 = nn.Parameter(torch.randn(num_experts, WIDTH, H))

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, H)
        scores, ids = self.gate(x).topk(2, dim=-1)
        scores = scores.softmax(dim=-1).reshape(-1)
        sorted_ids, order = ids.reshape(-1).sort()
        token = order // 2
        bounds = torch.searchsorted(sorted_ids, torch.arange(self.num_experts + 1)).tolist()
        out = torch.zeros_like(x)
        for e in range(self.num_experts):
            lo, hi = bounds[e], bounds[e + 1]
            if lo == hi:
                continue
            rows = token[lo:hi]
            y = F.silu(x[rows] @ self.w1[e]) @ self.w2[e]
            out.index_add_(0, rows, y * scores[order[lo:hi], None])
        return out.view(shape)


class CapacityBuffers(nn.Module):
    """Cumulative counts place copies in a buffer [E * C, H]; bmm; gathered back.

    A copy beyond the capacity goes to an extra row that is thrown away.
    """

    def __init__(self, num_experts=6, factor=1.0):
        super().__init__()
        self.num_experts, self.factor = num_experts, factor
        self.wg = nn.Linear(H, num_experts, bias=False)
        self.fc1 = nn.Parameter(torch.randn(num_experts, H, WIDTH))
        self.fc1_bias = nn.Parameter(torch.randn(num_experts, 1, WIDTH))
        self.fc2 = nn.Parameter(torch.randn(num_experts, WIDTH, H))

    def forward(self, x):
        tokens, e = x.shape[0], self.num_experts
        capacity = max(1, int(self.factor * 2 * ((tokens + e - 1) // e)))
        gates, ids = F.softmax(self.wg(x), dim=1).topk(2, dim=1)
        gates = gates / gates.sum(dim=1, keepdim=True)
        ids = ids.t().reshape(-1)  # all first choices, then all second choices
        one_hot = F.one_hot(ids, e)
        location = (torch.cumsum(one_hot, dim=0) * one_hot).sum(dim=1) - 1
        row = torch.where(location < capacity, ids * capacity + location, e * capacity)
        buffer = x.new_zeros(e * capacity + 1, H).index_copy(0, row, x.repeat(2, 1))
        h = torch.bmm(buffer[:-1].view(e, capacity, H), self.fc1) + self.fc1_bias
        y = torch.bmm(F.relu(h), self.fc2).view(-1, H)
        y = torch.cat([y, y.new_zeros(1, H)])[row]
        y = y * (gates.t().reshape(-1, 1) * (location < capacity).unsqueeze(1))
        return y[:tokens] + y[tokens:]


class PaddedBins(nn.Module):
    """Every expert's bin is padded to the fullest one, then one bmm."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.router = nn.Linear(H, num_experts)
        self.up = nn.Parameter(torch.randn(num_experts, H, WIDTH))
        self.down = nn.Parameter(torch.randn(num_experts, WIDTH, H))

    def forward(self, x):
        prob, ids = self.router(x).softmax(-1).max(dim=-1)
        counts = torch.bincount(ids, minlength=self.num_experts)
        order = ids.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(x)) - starts[ids[order]]
        bins = x.new_zeros(self.num_experts, int(counts.max()), H)
        bins[ids[order], place] = x[order]
        results = torch.relu(bins @ self.up) @ self.down
        out = torch.empty_like(x)
        out[order] = results[ids[order], place]
        return out * prob[:, None]


class RepeatedTokens(nn.Module):
    """Tokens repeated k times, weights gathered per copy, index_add of the copies."""

    def __init__(self, num_experts=6, top_k=3):
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = nn.ModuleList(mlp() for _ in range(num_experts))

    def forward(self, hidden):
        b, s, h = hidden.shape
        x = hidden.view(-1, h)
        w, ids = self.gate(x).softmax(dim=-1).topk(self.top_k, dim=-1, sorted=False)
        copies = x.repeat_interleave(self.top_k, dim=0)
        flat = ids.flatten()
        result = torch.empty_like(copies)
        for i, expert in enumerate(self.experts):
            result[flat == i] = expert(copies[flat == i])
        source = torch.arange(x.shape[0]).repeat_interleave(self.top_k)
        return x.new_zeros(b * s, h).index_add(0, source, result * w.view(-1, 1)).view(b, s, h)


class FirstComeSlices(nn.Module):
    """Capacity by slicing ``nonzero()[:capacity]``; dropped tokens pass through unchanged."""

    def __init__(self, num_experts=6, capacity_factor=1.25):
        super().__init__()
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.switch = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(mlp() for _ in range(num_experts))

    def forward(self, x):
        capacity = int(self.capacity_factor * len(x) / self.num_experts) + 1
        prob, route = self.switch(x).softmax(-1).max(-1)
        out = x.clone()
        for e in range(self.num_experts):
            rows = (route == e).nonzero(as_tuple=True)[0][:capacity]
            out[rows] = self.experts[e](x[rows]) * prob[rows].unsqueeze(-1)
        return out


class BatchPrioritized(nn.Module):
    """V-MoE's batch prioritized routing: the capacity goes to the most confident tokens first."""

    def __init__(self, num_experts=6, capacity=3):
        super().__init__()
        self.num_experts, self.capacity = num_experts, capacity
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = nn.ModuleList(mlp() for _ in range(num_experts))

    def forward(self, x):
        flat = x.reshape(-1, H)
        weight, ids = self.gate(flat).softmax(-1).topk(2, dim=-1)
        priority = weight.sum(-1).argsort(descending=True)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            row, slot = (ids[priority] == e).nonzero(as_tuple=True)
            row, slot = priority[row[: self.capacity]], slot[: self.capacity]
            out.index_add_(0, row, expert(flat[row]) * weight[row, slot, None])
        return out.view_as(x)


class GatherScatter(nn.Module):
    """fastmoe: permuted by expert, a loop over counts, permuted back by ``index_copy``."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(H, num_experts)
        self.htoh4 = nn.ModuleList(nn.Linear(H, WIDTH) for _ in range(num_experts))
        self.h4toh = nn.ModuleList(nn.Linear(WIDTH, H) for _ in range(num_experts))

    def forward(self, inp):
        top_val, top_idx = torch.topk(self.gate(inp), k=2, dim=-1, largest=True, sorted=False)
        score = F.softmax(top_val, dim=-1).unsqueeze(1)
        _, pos = torch.sort(top_idx.reshape(-1))
        count = torch.zeros(self.num_experts, dtype=torch.long)
        count.scatter_add_(0, top_idx.reshape(-1), torch.ones_like(top_idx.reshape(-1)))
        x = torch.index_select(inp, 0, torch.div(pos, 2, rounding_mode="floor"))
        base, outputs = 0, []
        for e in range(self.num_experts):
            batch = count[e].item()
            h = F.gelu(self.htoh4[e](x[base : base + batch]))
            outputs.append(self.h4toh[e](h))
            base += batch
        out = torch.zeros(inp.shape[0] * 2, H).index_copy(0, pos, torch.cat(outputs, dim=0))
        return torch.bmm(score, out.view(-1, 2, H)).reshape(-1, H)


LAYERS = [
    ZooLayer("sort_split_cat", made(SortSplitCat), num_experts=6, **ROWS),
    ZooLayer("sorted_slices", made(SortedSlices), num_experts=6, experts=("w1", "w2"), **SEQUENCES),
    ZooLayer(
        "capacity_buffers",
        made(CapacityBuffers, factor=0.6),
        num_experts=6,
        coupled=True,
        experts=("fc1", "fc1_bias", "fc2"),
        **ROWS,
    ),
    ZooLayer(
        "padded_bins",
        made(PaddedBins),
        num_experts=6,
        experts=("up", "down"),
        note="a size depends on the routing",
        **ROWS,
    ),
    ZooLayer("repeated_tokens", made(RepeatedTokens), num_experts=6, **SEQUENCES),
    ZooLayer(
        "first_come_slices",
        made(FirstComeSlices),
        num_experts=6,
        coupled=True,
        note="dropped tokens pass through",
        **ROWS,
    ),
    ZooLayer(
        "batch_prioritized",
        made(BatchPrioritized),
        num_experts=6,
        coupled=True,
        note="capacity is a constant, in order of confidence",
        **SEQUENCES,
    ),
    ZooLayer(
        "gather_scatter", made(GatherScatter), num_experts=6, experts=("htoh4", "h4toh"), **ROWS
    ),
]
