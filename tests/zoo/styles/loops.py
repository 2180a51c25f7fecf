"""Python loops over a list of experts, as different authors write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made

WIDTH = 32


def ffn():
    return nn.Sequential(nn.Linear(H, WIDTH), nn.ReLU(), nn.Linear(WIDTH, H))


class SparseSoftmaxMasks(nn.Module):
    """Losers set to -inf before the softmax; a boolean mask per expert; results added in place."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.topkroute_linear = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList([ffn() for _ in range(num_experts)])

    def forward(self, x):
        logits = self.topkroute_linear(x)
        top_k_logits, indices = logits.topk(2, dim=-1)
        zeros = torch.full_like(logits, float("-inf"))
        gating_output = F.softmax(zeros.scatter(-1, indices, top_k_logits), dim=-1)
        final_output = torch.zeros_like(x)
        flat_x = x.view(-1, x.size(-1))
        flat_gating_output = gating_output.view(-1, gating_output.size(-1))
        for i, expert in enumerate(self.experts):
            flat_mask = (indices == i).any(dim=-1).view(-1)
            if flat_mask.any():
                expert_output = expert(flat_x[flat_mask])
                weighted = expert_output * flat_gating_output[flat_mask, i].unsqueeze(1)
                final_output.view(-1, x.size(-1))[flat_mask] += weighted
        return final_output


class ParallelLists(nn.Module):
    """The linears of all experts in one list per role; slots outside, experts inside."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.route = nn.Linear(H, num_experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(H, WIDTH) for _ in range(num_experts))
        self.down = nn.ModuleList(nn.Linear(WIDTH, H) for _ in range(num_experts))

    def forward(self, x):
        logits, index = self.route(x).topk(3)
        weight = F.softmax(logits, dim=-1)
        out = 0
        for k in range(3):
            y = x.new_zeros(x.shape)
            for i in range(self.num_experts):
                pick = index[:, k].eq(i)
                y[pick] = self.down[i](F.gelu(self.up[i](x[pick])))
            out = out + weight[:, k : k + 1] * y
        return out


class HitExperts(nn.Module):
    """Only experts that were hit, by name, from ``unique().tolist()``."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.experts = nn.ModuleDict({f"expert_{i}": ffn() for i in range(num_experts)})

    def forward(self, x):
        batch, length, dim = x.shape
        tokens = x.reshape(batch * length, dim)
        probs = torch.softmax(self.gate(tokens), -1)
        weights, ids = torch.topk(probs, 2)
        result = torch.zeros(tokens.shape, dtype=tokens.dtype, device=tokens.device)
        for i in ids.unique().tolist():
            rows, which = (ids == i).nonzero(as_tuple=True)
            result.index_add_(
                0, rows, self.experts[f"expert_{i}"](tokens[rows]) * weights[rows, which][:, None]
            )
        return result.reshape(batch, length, dim)


class TokenByToken(nn.Module):
    """The plainest of all: for each token, for each of its experts."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        scores, ids = self.router(x).softmax(dim=1).topk(2, dim=1)
        rows = []
        for t in range(x.shape[0]):
            row = torch.zeros(H)
            for k in range(2):
                row = row + scores[t, k] * self.experts[ids[t, k].item()](x[t])
            rows.append(row)
        return torch.stack(rows)


class IndexPut(nn.Module):
    """Sigmoid gates, normalized and scaled; ``index_put`` with accumulate."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.scorer = nn.Linear(H, num_experts)
        self.ffns = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        score = torch.sigmoid(self.scorer(x))
        score, idx = torch.topk(score, k=3, dim=-1)
        score = 1.8 * score / score.sum(-1, keepdim=True).clamp(min=1e-6)
        y = torch.zeros_like(x)
        for e, f in enumerate(self.ffns):
            at = torch.nonzero(idx == e)
            if at.size(0) == 0:
                continue
            value = f(x[at[:, 0]]) * score[at[:, 0], at[:, 1]].unsqueeze(-1)
            y = torch.index_put(y, (at[:, 0],), value, accumulate=True)
        return y


class WhereSelects(nn.Module):
    """Every expert runs on everything, ``torch.where`` keeps what was routed there."""

    def __init__(self, num_experts=5):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        p = self.gate(x).softmax(-1)
        best = p.argmax(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            y = torch.where(best == e, p[..., e : e + 1] * expert(x), y)
        return y


class DenseWithZeros(nn.Module):
    """A dense gate matrix with zeros for the losers; all outputs are stacked and contracted."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        probs = self.gate(x).softmax(-1)
        kth = probs.topk(2).values[..., -1:]
        gates = probs * (probs >= kth)
        gates = gates / gates.sum(-1, keepdim=True)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=2)
        return torch.einsum("bse,bseh->bsh", gates, outputs)


class ScatterAdd(nn.Module):
    """Filters copies with a one-hot mask and adds rows back with ``scatter_add``."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.wg = nn.Linear(H, num_experts, bias=False)
        self.experts = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        top = self.wg(x).topk(2)
        weights = top.values.softmax(-1)
        chosen = F.one_hot(top.indices, len(self.experts)).bool()
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            here = chosen[:, :, e]
            token = here.any(dim=1).nonzero()
            value = expert(x[token.squeeze(1)]) * weights[here].unsqueeze(1)
            y.scatter_add_(0, token.expand(-1, x.size(1)), value)
        return y


class HardTopOne(nn.Module):
    """argmax, no weight at all: the router only chooses."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.pick = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(ffn() for _ in range(num_experts))

    def forward(self, x):
        which = self.pick(x).argmax(dim=-1)
        out = torch.empty_like(x)
        for e, expert in enumerate(self.experts):
            out[which == e] = expert(x[which == e])
        return out


LAYERS = [
    ZooLayer("sparse_softmax_masks", made(SparseSoftmaxMasks), num_experts=6, **SEQUENCES),
    ZooLayer(
        "parallel_lists",
        made(ParallelLists),
        num_experts=6,
        experts=("up", "down"),
        note="no module stands for one expert",
        **ROWS,
    ),
    ZooLayer("hit_experts", made(HitExperts), num_experts=6, **SEQUENCES),
    ZooLayer(
        "token_by_token",
        made(TokenByToken),
        num_experts=6,
        note="item() per token: eager's run time grows with tokens",
        **ROWS,
    ),
    ZooLayer("index_put", made(IndexPut), num_experts=6, experts=("ffns",), **ROWS),
    ZooLayer(
        "where_selects",
        made(WhereSelects),
        num_experts=5,
        note="eager runs all experts, routing is sparse",
        **SEQUENCES,
    ),
    ZooLayer(
        "dense_with_zeros",
        made(DenseWithZeros),
        num_experts=6,
        note="the k-th value is a threshold; eager runs all experts",
        **SEQUENCES,
    ),
    ZooLayer("scatter_add", made(ScatterAdd), num_experts=6, **ROWS),
    ZooLayer("hard_top_one", made(HardTopOne), num_experts=6, note="no gate weights", **SEQUENCES),
]
