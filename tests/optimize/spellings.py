"""The same routers in many spellings, each with the words its fused form is described by."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from tests.optimize.exported import Router

torch.manual_seed(7)
BIAS = 0.3 * torch.randn(8)
SCALES = 0.5 + torch.rand(8)


def renormalized(weights):
    return weights / weights.sum(-1, keepdim=True)


def softmax_plain(x):
    w, i = x.softmax(-1).topk(2)
    return i, w


def softmax_renormalized(x):
    w, i = torch.topk(F.softmax(x, dim=1), 2, dim=-1)
    return i, renormalized(w)


def softmax_in_place(x):
    w, i = F.softmax(x, dim=-1, dtype=torch.float).topk(3, dim=-1)
    w /= w.sum(dim=-1, keepdim=True)
    return i, w.to(x.dtype)


def softmax_by_exponentials(x):
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    p = e / e.sum(-1, keepdim=True)
    w, i = p.topk(2)
    return i, renormalized(w)


def softmax_unguarded(x):
    p = x.exp() / x.exp().sum(-1, keepdim=True)
    w, i = p.topk(2)
    return i, w


def softmax_normalize_p1(x):
    w, i = x.softmax(-1).topk(2)
    return i, F.normalize(w, p=1, dim=-1)


def softmax_log_space(x):
    w, i = x.log_softmax(-1).topk(2)
    return i, w.exp()


def softmax_log_sum_exp(x):
    w, i = (x - x.logsumexp(-1, keepdim=True)).topk(2)
    return i, w.exp()


def softmax_sorted(x):
    w, i = x.softmax(-1).sort(dim=-1, descending=True)
    return i[:, :2], renormalized(w[:, :2])


def softmax_argsorted(x):
    p = x.softmax(-1)
    i = p.argsort(dim=-1, descending=True)[:, :2]
    return i, p.gather(1, i)


def softmax_ascending(x):
    p = x.softmax(-1)
    i = p.argsort(dim=-1)[:, -2:]
    return i, p.gather(1, i)


def softmax_unsorted(x):
    w, i = x.softmax(-1).topk(2, sorted=False)
    return i, renormalized(w)


def switch_max(x):
    w, i = x.softmax(-1).max(-1)
    return i.unsqueeze(1), w.unsqueeze(1)


def switch_argmax(x):
    p = x.softmax(-1)
    i = p.argmax(-1)
    return i[:, None], torch.gather(p, 1, i[:, None])


def switch_one_hot(x):
    p = x.softmax(-1)
    i = p.argmax(-1)
    w = (p * F.one_hot(i, 8).to(p.dtype)).sum(-1)
    return i.view(-1, 1), w.view(-1, 1)


def gshard_two_maxima(x):
    p = x.softmax(-1)
    first = p.argmax(-1)
    rest = p.masked_fill(F.one_hot(first, 8).bool(), float("-inf"))
    second = rest.argmax(-1)
    i = torch.stack([first, second], 1)
    w = p.gather(1, i)
    return i, w / (w.sum(-1, keepdim=True) + 1e-9)


def gathered_by_one_hot(x):
    p = x.softmax(-1)
    i = p.topk(2).indices
    w = torch.einsum("te,tke->tk", p, F.one_hot(i, 8).to(p.dtype))
    return i, renormalized(w)


def transposed(x):
    w, i = x.t().softmax(0).topk(2, dim=0)
    return i.t(), renormalized(w.t())


def batched(x):
    p = x.unflatten(0, (-1, 1)).softmax(-1)
    w, i = p.topk(2, dim=-1)
    w = w / w.sum(-1, keepdim=True)
    return i.flatten(0, 1), w.flatten(0, 1)


def scaled(x):
    w, i = x.softmax(-1).topk(2)
    return i, w * 16.0


def divided_by_count(x):
    w, i = x.topk(4)
    return i, w.softmax(-1) / 4


def chosen_softmax(x):
    w, i = x.topk(2)
    return i, w.softmax(-1)


def chosen_softmax_gathered(x):
    _, i = torch.topk(x, 2, dim=-1)
    return i, F.softmax(x.gather(-1, i), dim=-1, dtype=torch.float32)


def chosen_softmax_by_exponentials(x):
    v, i = x.topk(2)
    e = (v - v[:, :1]).exp()
    return i, e / e.sum(1, keepdim=True)


def scattered_softmax(x):
    v, i = x.topk(2)
    hidden = torch.full_like(x, float("-inf")).scatter(-1, i, v)
    return i, hidden.softmax(-1).gather(-1, i)


def scattered_dense(x):
    v, i = x.topk(2)
    w = torch.full_like(x, float("-inf")).scatter(-1, i, v).softmax(-1)
    w, i = w.topk(2)
    return i, w


def masked_dense(x):
    i = x.topk(2).indices
    keep = F.one_hot(i, 8).sum(1).bool()
    w, i = torch.where(keep, x, torch.tensor(float("-inf"))).softmax(-1).topk(2)
    return i, w


def dense_renormalized(x):
    p = x.softmax(-1)
    v, i = p.topk(2)
    kept = torch.zeros_like(p).scatter(1, i, v)
    kept = kept / kept.sum(-1, keepdim=True)
    w, i = kept.topk(2)
    return i, w


def dense_out_of_range(x):
    v, i = x.topk(2)
    kept = torch.full_like(x, float("-inf")).scatter(1, i, v).softmax(-1)
    w, i = kept.topk(2)
    return torch.where(w != 0, i, 8), w


def dense_sigmoid(x):
    p = x.sigmoid()
    v, i = p.topk(2)
    dense = torch.zeros_like(p).scatter(1, i, v / (v.sum(-1, keepdim=True) + 1e-6))
    i = dense.abs().topk(2).indices
    w = dense.gather(1, i)
    return torch.where(w != 0, i, 8), w


def chosen_sigmoid(x):
    v, i = x.topk(2)
    return i, v.sigmoid()


def chosen_sigmoid_scattered(x):
    v, i = x.topk(1)
    dense = torch.full_like(x, float("-inf")).scatter(1, i, v).sigmoid()
    return i, dense.gather(1, i)


def group_mask(scores, groups, top):
    best = scores.view(scores.shape[0], groups, -1).max(-1).values
    kept = best.topk(top, dim=-1, sorted=False).indices
    return torch.zeros_like(best).scatter_(1, kept, 1)


def groups_expanded(x):
    p = x.softmax(-1)
    mask = group_mask(p, 4, 2).unsqueeze(-1).expand(-1, 4, 2).reshape(x.shape[0], -1)
    w, i = p.masked_fill(~mask.bool(), 0.0).topk(3, sorted=False)
    return i, w * 1.5


def groups_repeated(x):
    p = x.softmax(-1)
    mask = group_mask(p, 4, 2).repeat_interleave(2, dim=1)
    w, i = (p * mask).topk(3)
    return i, w * 1.5


def groups_one_hot(x):
    p = x.softmax(-1)
    kept = p.unflatten(-1, (4, 2)).amax(-1).topk(2).indices
    mask = F.one_hot(kept, 4).sum(1)
    w, i = (p.unflatten(-1, (4, 2)) * mask.unsqueeze(-1)).flatten(1).topk(3)
    return i, 1.5 * w


def two_best(scores, groups):
    return scores.view(scores.shape[0], groups, -1).topk(2, dim=-1).values.sum(-1)


def deepseek_v3(x, bias):
    s = x.sigmoid()
    c = s + bias.unsqueeze(0)
    best = two_best(c, 2)
    mask = torch.zeros_like(best).scatter(1, best.topk(1).indices, 1).bool()
    c = c.masked_fill(~mask.unsqueeze(-1).expand(-1, 2, 4).reshape(-1, 8), float("-inf"))
    i = c.topk(3).indices
    w = s.gather(1, i)
    return i, w / (w.sum(-1, keepdim=True) + 1e-20) * 2.5


def deepseek_v3_where(x, bias):
    s = 1 / (1 + torch.exp(-x))
    c = (s + bias).reshape(-1, 2, 4)
    first, second = c.max(-1).values, c.sort(-1).values[..., -2]
    kept = (first + second).argmax(-1, keepdim=True)
    here = torch.arange(2)[None, :] == kept
    c = torch.where(here[..., None], c, -torch.inf).reshape(-1, 8)
    i = c.argsort(-1, descending=True)[:, :3]
    w = s.gather(1, i)
    return i, 2.5 * w / w.sum(1, keepdim=True)


def mistral_groups(x):
    s = x.softmax(-1)
    best = two_best(s, 2)
    mask = torch.zeros_like(best).scatter(1, best.topk(1).indices, 1).repeat_interleave(4, 1)
    i = s.masked_fill(mask == 0, 0.0).topk(2).indices
    w = s.gather(1, i)
    return i, renormalized(w) * 1.25


def sigmoid_bias(x, bias):
    s = x.sigmoid()
    i = (s + bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def sigmoid_bias_epsilon(x, bias):
    s = torch.sigmoid(x.float())
    i = torch.topk(s + bias, 2, sorted=False).indices
    w = s.gather(1, i)
    return i, w / (w.sum(-1, keepdim=True) + 1e-6)


def sigmoid_plain(x):
    w, i = x.sigmoid().topk(2)
    return i, w


def sigmoid_by_exponential(x):
    w, i = (1 / (1 + (-x).exp())).topk(2)
    return i, w


def sigmoid_by_log(x):
    w, i = F.logsigmoid(x).exp().topk(2)
    return i, w


def sqrt_softplus(x, bias):
    s = F.softplus(x).sqrt()
    i = (s + bias).topk(2).indices
    return i, renormalized(s.gather(1, i)) * 1.5


def ernie(x, bias):
    p = x.softmax(-1)
    i = (p + bias).topk(2).indices
    w = p.gather(1, i)
    return i, w / w.sum(-1, keepdim=True).clamp(min=1e-2)


def scaled_bias(x, bias):
    s = x.sigmoid()
    i = (s + 0.5 * bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def bias_on_logits(x, bias):
    w, i = (x + bias).sigmoid().topk(2)
    return i, renormalized(w)


def soft_capped(x):
    capped = 3.0 * torch.tanh(x / 3.0)
    w, i = capped.softmax(-1).topk(2)
    return i, renormalized(w)


def tempered(x):
    w, i = (x / 0.7).softmax(-1).topk(2)
    return i, w


def scaled_per_expert(x, scales):
    w, i = x.softmax(-1).topk(2)
    return i, renormalized(w) * scales[i]


def raw(x):
    w, i = x.topk(2)
    return i, w


_CHOSEN = "top-2, softmax of the chosen"
_RENORMALIZED = "softmax top-2, renormalized"
_GROUPS = "softmax top-3, 2 of 4 groups by their best, others 0, x 1.5"
_V3 = "sigmoid + bias top-3, 1 of 2 groups by their two best, renormalized, x 2.5"
_MISTRAL = "softmax top-2, 1 of 2 groups by their two best, others 0, renormalized, x 1.25"
_BIAS = {"bias": BIAS}

# Every spelling with the words of its fused form.
SPELLINGS = {
    softmax_plain: "softmax top-2",
    softmax_renormalized: _RENORMALIZED,
    softmax_in_place: "softmax top-3, renormalized",
    softmax_by_exponentials: _RENORMALIZED,
    softmax_unguarded: "softmax top-2",
    softmax_normalize_p1: "softmax top-2, renormalized (sum at least 1e-12)",
    softmax_log_space: "softmax top-2",
    softmax_log_sum_exp: "softmax top-2",
    softmax_sorted: _RENORMALIZED,
    softmax_argsorted: "softmax top-2",
    softmax_ascending: "softmax top-2",
    softmax_unsorted: _RENORMALIZED,
    switch_max: "softmax top-1",
    switch_argmax: "softmax top-1",
    switch_one_hot: "softmax top-1",
    gshard_two_maxima: _RENORMALIZED,
    gathered_by_one_hot: _RENORMALIZED,
    transposed: _RENORMALIZED,
    batched: _RENORMALIZED,
    scaled: "softmax top-2, x 16",
    divided_by_count: "top-4, softmax of the chosen, x 0.25",
    chosen_softmax: _CHOSEN,
    chosen_softmax_gathered: _CHOSEN,
    chosen_softmax_by_exponentials: _CHOSEN,
    scattered_softmax: _CHOSEN,
    scattered_dense: _CHOSEN,
    masked_dense: _CHOSEN,
    dense_renormalized: _RENORMALIZED,
    dense_out_of_range: _CHOSEN,
    dense_sigmoid: "sigmoid top-2, renormalized (sum + 1e-06)",
    chosen_sigmoid: "top-2, sigmoid of the chosen",
    chosen_sigmoid_scattered: "top-1, sigmoid of the chosen",
    groups_expanded: _GROUPS,
    groups_repeated: _GROUPS,
    groups_one_hot: _GROUPS,
    deepseek_v3: _V3,
    deepseek_v3_where: _V3,
    mistral_groups: _MISTRAL,
    sigmoid_bias: "sigmoid + bias top-2, renormalized",
    sigmoid_bias_epsilon: "sigmoid + bias top-2, renormalized (sum + 1e-06)",
    sigmoid_plain: "sigmoid top-2",
    sigmoid_by_exponential: "sigmoid top-2",
    sigmoid_by_log: "sigmoid top-2",
    sqrt_softplus: "sqrt_softplus + bias top-2, renormalized, x 1.5",
    ernie: "softmax + bias top-2, renormalized (sum at least 0.01)",
    scaled_bias: "sigmoid + bias top-2, renormalized",
    bias_on_logits: "sigmoid top-2, renormalized",
    soft_capped: _RENORMALIZED,
    tempered: "softmax top-2",
    scaled_per_expert: _RENORMALIZED,
    raw: "top-2",
}
_STORED = {
    **dict.fromkeys(
        (deepseek_v3, deepseek_v3_where, sigmoid_bias, sigmoid_bias_epsilon, sqrt_softplus, ernie,
         scaled_bias, bias_on_logits), _BIAS),
    scaled_per_expert: {"scales": SCALES},
}  # fmt: skip
ROUTERS = {route.__name__: Router(route, stored=_STORED.get(route)) for route in SPELLINGS}
