"""Experts spelled out: numbered attributes, lists and dictionaries of parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.layer import ROWS, SEQUENCES, H, ZooLayer, made

WIDTH = 20


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


class NumberedParameters(nn.Module):
    """self.w1_0, self.w1_1, ...: set and read by name."""

    def __init__(self, num_experts=4):
        super().__init__()
        self.num_experts = num_experts
        self.wr = weight(H, num_experts)
        for e in range(num_experts):
            self.register_parameter(f"w1_{e}", weight(H, WIDTH))
            self.register_parameter(f"b1_{e}", weight(WIDTH))
            self.register_parameter(f"w2_{e}", weight(WIDTH, H))

    def expert(self, e, x):
        h = x @ getattr(self, f"w1_{e}") + getattr(self, f"b1_{e}")
        return torch.relu(h) @ getattr(self, f"w2_{e}")

    def forward(self, x):
        probs = torch.softmax(x @ self.wr, dim=-1)
        values, ids = torch.sort(probs, dim=-1, descending=True)
        values, ids = values[:, :2], ids[:, :2]
        y = torch.zeros_like(x)
        for e in range(self.num_experts):
            for k in range(2):
                sel = torch.nonzero(ids[:, k] == e, as_tuple=False).view(-1)
                if sel.numel():
                    y.index_add_(0, sel, values[sel, k, None] * self.expert(e, x[sel]))
        return y


class NumberedModules(nn.Module):
    """Four experts written out one by one, and four branches in forward."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(H, 4)
        self.expert_a = nn.Sequential(nn.Linear(H, WIDTH), nn.SiLU(), nn.Linear(WIDTH, H))
        self.expert_b = nn.Sequential(nn.Linear(H, WIDTH), nn.SiLU(), nn.Linear(WIDTH, H))
        self.expert_c = nn.Sequential(nn.Linear(H, WIDTH), nn.SiLU(), nn.Linear(WIDTH, H))
        self.expert_d = nn.Sequential(nn.Linear(H, WIDTH), nn.SiLU(), nn.Linear(WIDTH, H))

    def forward(self, x):
        prob, choice = F.softmax(self.gate(x), dim=-1).max(dim=-1)
        y = torch.zeros_like(x)
        is_a, is_b, is_c, is_d = (choice == 0, choice == 1, choice == 2, choice == 3)
        if is_a.any():
            y[is_a] = self.expert_a(x[is_a])
        if is_b.any():
            y[is_b] = self.expert_b(x[is_b])
        if is_c.any():
            y[is_c] = self.expert_c(x[is_c])
        if is_d.any():
            y[is_d] = self.expert_d(x[is_d])
        return y * prob.unsqueeze(-1)


class ParameterLists(nn.Module):
    """nn.ParameterList per role, zipped in the loop; gates from a dense one-hot mask."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.gating = nn.Linear(H, num_experts, bias=False)
        self.w_gate = nn.ParameterList([weight(WIDTH, H) for _ in range(num_experts)])
        self.w_up = nn.ParameterList([weight(WIDTH, H) for _ in range(num_experts)])
        self.w_down = nn.ParameterList([weight(H, WIDTH) for _ in range(num_experts)])

    def forward(self, x):
        logits = self.gating(x)
        top = logits.topk(2, dim=-1)
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, top.indices, True)
        gates = logits.masked_fill(~mask, -1e9).softmax(dim=-1)
        y = torch.zeros_like(x)
        for e, (g, u, d) in enumerate(zip(self.w_gate, self.w_up, self.w_down, strict=True)):
            rows = mask[:, e].nonzero().squeeze(-1)
            z = x.index_select(0, rows)
            z = F.linear(F.silu(F.linear(z, g)) * F.linear(z, u), d)
            y = y.index_add(0, rows, z * gates[rows, e].unsqueeze(-1))
        return y


class ParameterDictionary(nn.Module):
    """nn.ParameterDict with keys of expert and role."""

    def __init__(self, num_experts=5):
        super().__init__()
        self.num_experts = num_experts
        self.router = nn.Linear(H, num_experts)
        self.params = nn.ParameterDict()
        for e in range(num_experts):
            self.params[f"e{e}_in"] = weight(H, WIDTH)
            self.params[f"e{e}_out"] = weight(WIDTH, H)

    def forward(self, x):
        b, s, _ = x.size()
        tokens = x.contiguous().view(b * s, -1)
        weights, experts = torch.topk(torch.sigmoid(self.router(tokens)), 2, dim=-1)
        y = tokens.new_zeros(b * s, H)
        for e in range(self.num_experts):
            row, col = torch.nonzero(experts == e, as_tuple=True)
            h = F.leaky_relu(tokens[row] @ self.params[f"e{e}_in"], 0.1)
            y.index_add_(0, row, (h @ self.params[f"e{e}_out"]) * weights[row, col, None])
        return y.view(b, s, -1)


class ListOfExpertTuples(nn.Module):
    """A ModuleList of ModuleLists [up, down], called by a function outside the class."""

    def __init__(self, num_experts=6):
        super().__init__()
        self.switch = nn.Linear(H, num_experts)
        self.experts = nn.ModuleList(
            nn.ModuleList([nn.Linear(H, WIDTH), nn.Linear(WIDTH, H)]) for _ in range(num_experts)
        )

    def forward(self, x):
        return route_and_run(x, self.switch(x).softmax(-1), self.experts)


def route_and_run(x, probs, experts):
    order = probs.argsort(dim=-1, descending=True)[..., :2]
    weight = probs.gather(-1, order)
    out = torch.zeros_like(x)
    for number, (up, down) in enumerate(experts):
        for slot in (0, 1):
            where = order[..., slot] == number
            out[where] += weight[..., slot][where].unsqueeze(-1) * down(F.elu(up(x[where])))
    return out


LAYERS = [
    ZooLayer(
        "numbered_parameters",
        made(NumberedParameters),
        num_experts=4,
        experts=("w1_{e}", "b1_{e}", "w2_{e}"),
        **ROWS,
    ),
    ZooLayer(
        "numbered_modules",
        made(NumberedModules),
        num_experts=4,
        experts=("expert_{letter}",),
        note="four attributes and four branches",
        **SEQUENCES,
    ),
    ZooLayer(
        "parameter_lists",
        made(ParameterLists),
        num_experts=6,
        experts=("w_gate", "w_up", "w_down"),
        **ROWS,
    ),
    ZooLayer(
        "parameter_dictionary",
        made(ParameterDictionary),
        num_experts=5,
        experts=("params.e{e}_in", "params.e{e}_out"),
        **SEQUENCES,
    ),
    ZooLayer("list_of_pairs", made(ListOfExpertTuples), num_experts=6, **SEQUENCES),
]
