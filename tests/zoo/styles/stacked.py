"""Experts as stacked parameters, in both orientations and several contractions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made

WIDTH = 20


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


class GatherEinsum(nn.Module):
    """[E, H, F]; the weights of a token's experts are gathered, then one einsum per product."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = nn.Linear(H, num_experts, bias=False)
        self.up, self.down = weight(num_experts, H, WIDTH), weight(num_experts, WIDTH, H)

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2)
        h = torch.einsum("th,tkhf->tkf", x, self.up[ids]).relu()
        return torch.einsum("tkf,tkfh,tk->th", h, self.down[ids], weights)


class GatherBmmBias(nn.Module):
    """[E, F, H] like nn.Linear, with biases; one ``baddbmm`` per slot."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = nn.Linear(H, num_experts)
        self.w1, self.b1 = weight(num_experts, WIDTH, H), weight(num_experts, WIDTH)
        self.w2, self.b2 = weight(num_experts, H, WIDTH), weight(num_experts, H)

    def forward(self, x):
        values, ids = torch.topk(self.router(x), 2, dim=-1)
        probs = values.softmax(dim=-1)
        out = torch.zeros_like(x)
        for k in range(2):
            i = ids[:, k]
            h = torch.baddbmm(self.b1[i].unsqueeze(-1), self.w1[i], x.unsqueeze(-1))
            y = torch.baddbmm(self.b2[i].unsqueeze(-1), self.w2[i], F.silu(h))
            out = out + probs[:, k].unsqueeze(-1) * y.squeeze(-1)
        return out


class InputWeighted(nn.Module):
    """Llama 4: sigmoid of the top logits scales the *input*; every expert runs, one bmm; shared."""

    def __init__(self, num_experts=5, top_k=1):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(H, num_experts, bias=False)
        self.gate_up_proj = weight(num_experts, H, 2 * WIDTH)
        self.down_proj = weight(num_experts, WIDTH, H)
        self.shared = nn.Sequential(nn.Linear(H, WIDTH), nn.SiLU(), nn.Linear(WIDTH, H))

    def forward(self, hidden_states):
        x = hidden_states.reshape(-1, H)
        logits = self.router(x)
        top, ids = torch.topk(logits, self.top_k, dim=1)
        scores = torch.full_like(logits, float("-inf")).scatter_(1, ids, top)
        scores = torch.sigmoid(scores.float()).to(x.dtype)
        routed = x.repeat(self.num_experts, 1) * scores.transpose(0, 1).reshape(-1, 1)
        gate, up = torch.bmm(
            routed.view(self.num_experts, -1, H), self.gate_up_proj
        ).chunk(2, dim=-1)  # fmt: skip
        out = torch.bmm(up * F.silu(gate), self.down_proj).view(self.num_experts, -1, H)
        return (self.shared(x) + out.sum(dim=0)).view_as(hidden_states)


class Flattened(nn.Module):
    """dbrx: all experts' rows in one [E * F, H] matrix, viewed and chunked; p-norm of weights."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.layer = nn.Linear(H, num_experts, bias=False)
        self.w1 = weight(num_experts * WIDTH, H)
        self.v1 = weight(num_experts * WIDTH, H)
        self.w2 = weight(num_experts * WIDTH, H)

    def forward(self, x):
        bsz, q_len, hidden = x.shape
        x = x.view(-1, hidden)
        top_weights, top_experts = torch.topk(self.layer(x).softmax(dim=-1), 2, dim=-1)
        top_weights = top_weights / torch.norm(top_weights, p=2, dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        mask = F.one_hot(top_experts, self.num_experts).permute(2, 1, 0)
        w1 = self.w1.view(self.num_experts, WIDTH, H).chunk(self.num_experts, dim=0)
        v1 = self.v1.view(self.num_experts, WIDTH, H).chunk(self.num_experts, dim=0)
        w2 = self.w2.view(self.num_experts, WIDTH, H).chunk(self.num_experts, dim=0)
        for e in range(self.num_experts):
            topk_idx, token_idx = torch.where(mask[e])
            if token_idx.shape[0] == 0:
                continue
            tokens = x[token_idx]
            y = F.silu(tokens @ w1[e].squeeze(0).t()) * (tokens @ v1[e].squeeze(0).t())
            y = y @ w2[e].squeeze(0)
            out.index_add_(0, token_idx, y * top_weights[token_idx, topk_idx, None])
        return out.reshape(bsz, q_len, hidden)


class Interleaved(nn.Module):
    """gpt-oss: gate and up rows alternate; clamped, (up + 1), biases, router bias."""

    def __init__(self, num_experts=6, alpha=1.702, limit=2.0):
        super().__init__()
        self.alpha, self.limit = alpha, limit
        self.router = nn.Linear(H, num_experts)
        self.gate_up = weight(num_experts, H, 2 * WIDTH)
        self.gate_up_bias = weight(num_experts, 2 * WIDTH)
        self.down, self.down_bias = weight(num_experts, WIDTH, H), weight(num_experts, H)

    def forward(self, x):
        top, ids = self.router(x).topk(2, dim=-1)
        probs = top.softmax(-1)
        h = torch.einsum("th,tkhf->tkf", x, self.gate_up[ids]) + self.gate_up_bias[ids]
        gate, up = h[..., ::2].clamp(max=self.limit), h[..., 1::2].clamp(-self.limit, self.limit)
        h = gate * torch.sigmoid(self.alpha * gate) * (up + 1)
        y = torch.einsum("tkf,tkfh->tkh", h, self.down[ids]) + self.down_bias[ids]
        return (y * probs.unsqueeze(-1)).sum(dim=1)


class UpFirst(nn.Module):
    """Fused rows with up before gate; hit experts only; ``F.linear`` on slices of the stack."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.input_linear = weight(num_experts, 2 * WIDTH, H)
        self.output_linear = weight(num_experts, H, WIDTH)

    def forward(self, x):
        flat = x.flatten(0, -2)
        w, ids = torch.topk(F.softmax(self.gate(flat), dim=-1), 3)
        w = w / w.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for e in torch.unique(ids):
            token, slot = torch.where(ids == e)
            up, gate = F.linear(flat[token], self.input_linear[e]).split(WIDTH, dim=-1)
            y = F.linear(up * F.gelu(gate, approximate="tanh"), self.output_linear[e])
            out[token] += y * w[token, slot].unsqueeze(1)
        return out.unflatten(0, x.shape[:-1])


class OneHotContraction(nn.Module):
    """No loop, no gather: one-hot gates [T, E] inside the einsum; every expert runs."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gate = weight(H, num_experts)
        self.w_in, self.w_out = weight(num_experts, H, WIDTH), weight(num_experts, WIDTH, H)

    def forward(self, x):
        logits = torch.einsum("bsh,he->bse", x, self.gate)
        values, ids = logits.softmax(-1).topk(2, -1)
        gates = (F.one_hot(ids, logits.size(-1)) * values.unsqueeze(-1)).sum(-2)
        h = F.relu(torch.einsum("bsh,ehf->bsef", x, self.w_in))
        return torch.einsum("bse,bsef,efh->bsh", gates, h, self.w_out)


class ExpertsInTheMiddle(nn.Module):
    """The expert axis is the second of [H, E, F]."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.router = nn.Linear(H, num_experts)
        self.w_in, self.w_out = weight(H, num_experts, WIDTH), weight(WIDTH, num_experts, H)

    def forward(self, x):
        p, ids = self.router(x).softmax(-1).max(-1)
        h = torch.tanh(torch.einsum("th,htf->tf", x, self.w_in[:, ids]))
        return torch.einsum("tf,fth,t->th", h, self.w_out[:, ids], p)


class BlocksOfOneFfn(nn.Module):
    """One wide FFN whose hidden units belong to experts: gates mask blocks of the hidden layer."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(H, num_experts, bias=False)
        self.up = nn.Linear(H, num_experts * WIDTH)
        self.down = nn.Linear(num_experts * WIDTH, H, bias=False)

    def forward(self, x):
        top, ids = self.gate(x).topk(2, dim=-1)
        gates = torch.zeros(*x.shape[:-1], self.num_experts).scatter(-1, ids, top.softmax(-1))
        h = F.relu(self.up(x)) * gates.repeat_interleave(WIDTH, dim=-1)
        return self.down(h)


IN_OUT = ("w_in", "w_out")

LAYERS = [
    ZooLayer("gather_einsum", made(GatherEinsum), num_experts=6, experts=("up", "down"), **ROWS),
    ZooLayer(
        "gather_bmm_bias",
        made(GatherBmmBias),
        num_experts=6,
        experts=("w1", "w2", "b1", "b2"),
        **ROWS,
    ),
    ZooLayer(
        "input_weighted",
        made(InputWeighted),
        num_experts=5,
        experts=("gate_up_proj", "down_proj"),
        note="experts that were not chosen get zeros as input",
        **SEQUENCES,
    ),
    ZooLayer("flattened", made(Flattened), num_experts=6, experts=("w1", "v1", "w2"), **SEQUENCES),
    ZooLayer(
        "interleaved",
        made(Interleaved),
        num_experts=6,
        experts=("gate_up", "gate_up_bias", "down", "down_bias"),
        **ROWS,
    ),
    ZooLayer(
        "up_first",
        made(UpFirst),
        num_experts=6,
        experts=("input_linear", "output_linear"),
        **SEQUENCES,
    ),
    ZooLayer(
        "one_hot_contraction", made(OneHotContraction), num_experts=6, experts=IN_OUT, **SEQUENCES
    ),
    ZooLayer(
        "experts_in_the_middle",
        made(ExpertsInTheMiddle),
        num_experts=6,
        experts=("w_in@1", "w_out@1"),
        **ROWS,
    ),
    ZooLayer(
        "blocks_of_one_ffn",
        made(BlocksOfOneFfn),
        num_experts=6,
        experts=("up.weight", "up.bias", "down.weight@1"),
        note="an expert is a block of columns of one FFN",
        **SEQUENCES,
    ),
]
