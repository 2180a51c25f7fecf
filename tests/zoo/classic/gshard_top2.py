"""Top-2 gating with capacity: Lepikhin et al. 2020, "GShard".

    p = softmax(x W);  g1, g2 = the two largest;  g_i = g_i / (g1 + g2 + 1e-9)
    position of a first choice  = earlier first choices of that expert in the group
    position of a second choice = all first choices of that expert + earlier second choices
    a choice is kept if its position < C, C = min(S, max(int(factor * S / E), minimum))
    y = sum of the kept g_i * E_i(x)                   (not renormalized after dropping)

S is the size of a group: one sequence, or all tokens of the call. The loss is
mean_e(fraction of first choices * mean probability) * E^2, averaged over groups.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class GShardTop2(nn.Module):
    def __init__(
        self,
        hidden=24,
        width=32,
        num_experts=6,
        capacity_factor=2.0,
        min_capacity=2,
        one_group=True,
        return_loss=False,
    ):
        super().__init__()
        self.num_experts = num_experts
        self.capacity_factor, self.min_capacity = capacity_factor, min_capacity
        self.one_group, self.return_loss = one_group, return_loss
        self.gate = nn.Linear(hidden, num_experts, bias=False)
        self.wi = nn.Parameter(torch.randn(num_experts, hidden, width))
        self.wo = nn.Parameter(torch.randn(num_experts, width, hidden))

    def capacity(self, size):
        wanted = int(self.capacity_factor * size / self.num_experts)
        return min(size, max(wanted, self.min_capacity))

    def top2_gating(self, x):
        """[G, S, M] to the combine tensor [G, S, E, C] and the loss."""
        e, capacity = self.num_experts, self.capacity(x.shape[1])
        probs = self.gate(x).softmax(dim=-1)
        mask1 = F.one_hot(probs.argmax(dim=-1), e).to(probs.dtype)
        mask2 = F.one_hot((probs * (1 - mask1)).argmax(dim=-1), e).to(probs.dtype)
        gate1, gate2 = (probs * mask1).sum(-1), (probs * mask2).sum(-1)
        total = gate1 + gate2 + 1e-9
        gate1, gate2 = gate1 / total, gate2 / total
        loss = (mask1.mean(dim=1) * probs.mean(dim=1)).mean() * e * e

        position1 = mask1.cumsum(dim=1) - mask1
        position2 = mask2.cumsum(dim=1) - mask2 + mask1.sum(dim=1, keepdim=True)
        mask1 = mask1 * (position1 < capacity)
        mask2 = mask2 * (position2 < capacity)
        place1 = F.one_hot((position1 * mask1).sum(-1).long(), capacity).to(probs.dtype)
        place2 = F.one_hot((position2 * mask2).sum(-1).long(), capacity).to(probs.dtype)
        combine = torch.einsum("gs,gse,gsc->gsec", gate1, mask1, place1)
        combine = combine + torch.einsum("gs,gse,gsc->gsec", gate2, mask2, place2)
        return combine, loss

    def forward(self, x):
        groups = x.reshape(1, -1, x.shape[-1]) if self.one_group else x
        combine, loss = self.top2_gating(groups)
        dispatch = (combine > 0).to(x.dtype)
        inputs = torch.einsum("gsec,gsm->egcm", dispatch, groups)
        h = F.relu(torch.einsum("egcm,emh->egch", inputs, self.wi))
        outputs = torch.einsum("egch,ehm->egcm", h, self.wo)
        y = torch.einsum("gsec,egcm->gsm", combine, outputs).reshape(x.shape)
        return (y, loss) if self.return_loss else y
