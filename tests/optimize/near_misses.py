"""Routers that are almost one that the op can say: fused wrongly, they would be the worst fault.

A part of one may be fused rightly, or all of it by other attributes than the obvious ones.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from tests.optimize.exported import Router
from tests.optimize.spellings import BIAS, group_mask, renormalized, two_best

torch.manual_seed(11)
SMALL = 1e-3 * torch.randn(8)


def large_epsilon(x):
    w, i = x.sigmoid().topk(2)
    return i, w / (w.sum(-1, keepdim=True) + 1e-3)


def two_epsilons(x):
    w, i = (x.sigmoid() + 1e-6).topk(2)
    return i, w / (w.sum(-1, keepdim=True) + 1e-3)


def clamp_against_add(x):
    w, i = x.sigmoid().topk(2)
    return i, w / w.sum(-1, keepdim=True).clamp(min=1e-3)


def scale_before(x):
    w, i = x.sigmoid().topk(2)
    w = 2.5 * w
    return i, w / (w.sum(-1, keepdim=True) + 0.1)


def scale_on_one_side(x):
    w, i = x.sigmoid().topk(2)
    return i, 2.5 * w / (2.5 * w).sum(-1, keepdim=True)


def bias_in_weights(x, bias):
    w, i = (x.sigmoid() + bias).topk(2)
    return i, w


def bias_in_sum(x, bias):
    s = x.sigmoid()
    w, i = (s + bias).topk(2)
    return i, s.gather(1, i) / (w.sum(-1, keepdim=True) + 2)


def bias_twice(x, bias):
    s = x.sigmoid()
    i = (s + bias + bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def bias_negated(x, bias):
    s = x.sigmoid()
    i = (s - bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def bias_small(x, small):
    s = x.sigmoid()
    i = (s + small).topk(2).indices
    return i, renormalized(s.gather(1, i))


def bias_for_groups_alone(x, bias):
    s = x.sigmoid()
    mask = group_mask(s + bias, 4, 2).repeat_interleave(2, 1)
    w, i = s.masked_fill(mask == 0, 0.0).topk(2)
    return i, w


def bias_not_for_groups(x, bias):
    s = x.sigmoid()
    mask = group_mask(s, 4, 2).repeat_interleave(2, 1)
    i = (s + bias).masked_fill(mask == 0, float("-inf")).topk(2).indices
    return i, s.gather(1, i)


def _kept_groups(s, best, top, excluded):
    mask = torch.zeros_like(best).scatter(1, best.topk(top).indices, 1)
    mask = mask.repeat_interleave(s.shape[1] // best.shape[1], 1)
    return s.masked_fill(mask == 0, excluded)


def groups_by_three(x):
    s = x.softmax(-1)
    best = s.view(-1, 2, 4).topk(3).values.sum(-1)
    w, i = _kept_groups(s, best, 1, 0.0).topk(2)
    return i, w


def groups_by_mean(x):
    s = x.softmax(-1)
    w, i = _kept_groups(s, s.view(-1, 2, 4).mean(-1), 1, 0.0).topk(2)
    return i, w


def groups_by_min(x):
    s = x.softmax(-1)
    w, i = _kept_groups(s, s.view(-1, 2, 4).amin(-1), 1, 0.0).topk(2)
    return i, w


def groups_of_logits(x):
    s = x.softmax(-1)
    w, i = _kept_groups(s, two_best(x, 2), 1, 0.0).topk(2)
    return i, w


def groups_excluded_zero(x, bias):
    s = x.sigmoid()
    c = _kept_groups(s + 4 * bias, two_best(s + 4 * bias, 4), 2, 0.0)
    i = c.topk(3).indices
    return i, renormalized(s.gather(1, i))


def groups_excluded_minus_one(x, bias):
    s = x.sigmoid()
    c = _kept_groups(s + 4 * bias, two_best(s + 4 * bias, 4), 2, -1.0)
    i = c.topk(3).indices
    return i, renormalized(s.gather(1, i))


def groups_three_of_four(x):
    s = x.softmax(-1)
    w, i = _kept_groups(s, s.view(-1, 4, 2).amax(-1), 3, 0.0).topk(4)
    return i, w


def groups_interleaved(x):
    s = x.softmax(-1)
    best = s.view(-1, 4, 2).amax(1)
    mask = torch.zeros_like(best).scatter(1, best.topk(1).indices, 1).repeat(1, 4)
    w, i = (s * mask).topk(2)
    return i, w


def last_weight_zeroed(x):
    w, i = x.softmax(-1).topk(3)
    return i, w * torch.tensor([1.0, 1.0, 0.0])


def first_counts_twice(x):
    w, i = x.softmax(-1).topk(3)
    return i, renormalized(w * torch.tensor([2.0, 1.0, 1.0]))


def probabilities_tempered(x):
    w, i = (x.softmax(-1) ** 0.5).topk(2)
    return i, renormalized(w)


def half_of_the_experts(x):
    p = x[:, :4].softmax(-1)
    w, i = F.pad(p, (0, 4)).topk(2)
    return i, w


def squared(x):
    w, i = x.softmax(-1).topk(2)
    return i, w * w


def rooted(x):
    w, i = x.sigmoid().topk(2)
    return i, renormalized(w.sqrt())


def divided_by_norm(x):
    w, i = x.softmax(-1).topk(2)
    return i, w / w.norm(dim=-1, keepdim=True)


def divided_by_largest(x):
    w, i = x.softmax(-1).topk(2)
    return i, w / w.max(-1, keepdim=True).values


def softmax_of_softmax(x):
    w, i = x.softmax(-1).softmax(-1).topk(2)
    return i, w


def softmax_of_three(x):
    w, i = x.topk(3)
    return i[:, :2], w.softmax(-1)[:, :2]


def rolled(x):
    w, i = x.softmax(-1).topk(2)
    return i, w.roll(1, 0)


def rolled_ids(x):
    w, i = x.softmax(-1).topk(2)
    return i.roll(1, 0), w


def next_expert(x):
    w, i = x.softmax(-1).topk(2)
    return (i + 1) % 8, w


def weights_swapped(x):
    w, i = x.softmax(-1).topk(2)
    return i, w.flip(-1)


def smallest(x):
    w, i = x.softmax(-1).topk(2, largest=False)
    return i, w


def by_magnitude(x):
    i = x.abs().topk(2).indices
    return i, x.gather(1, i).softmax(-1)


def _capacity(x, capacity):
    w, i = x.softmax(-1).topk(1)
    place = (F.one_hot(i[:, 0], 8).cumsum(0) * F.one_hot(i[:, 0], 8)).sum(-1)
    keep = (place <= capacity)[:, None]
    return torch.where(keep, i, 8), w * keep


def capacity_small(x):
    return _capacity(x, 2)


def capacity_large(x):
    return _capacity(x, 100_000)


def capacity_of_the_batch(x):
    return _capacity(x, x.shape[0])


def batch_mean(x):
    w, i = (x - x.mean(0, keepdim=True)).softmax(-1).topk(2)
    return i, w


def batch_balance(x):
    load = x.softmax(-1).mean(0, keepdim=True)
    i = (x - 1e-4 * load).topk(2).indices
    return i, x.gather(1, i).softmax(-1)


def batch_largest(x):
    e = (x - x.max()).exp()
    w, i = (e / e.sum(-1, keepdim=True)).topk(2)
    return i, w


def expert_choice(x):
    w, i = x.softmax(0).topk(2)
    return i, w


def batch_size(x):
    w, i = x.softmax(-1).topk(2)
    return i, w * (1 + x.shape[0] * 1e-3)


def position(x):
    w, i = x.softmax(-1).topk(2)
    return i, w * (torch.arange(x.shape[0]) != 40)[:, None]


def ties_share(x):
    kth = x.topk(2).values[:, -1:]
    w, i = x.masked_fill(x < kth, float("-inf")).softmax(-1).topk(2)
    return i, w


def ties_counted(x):
    p = x.softmax(-1)
    w, i = p.topk(2)
    return i, w / (p == w[:, :1]).sum(-1, keepdim=True)


def threshold(x):
    w, i = x.softmax(-1).topk(2)
    return i, torch.where(w < 0.05, 0.0, w)


def threshold_tiny(x):
    w, i = x.softmax(-1).topk(2)
    return i, torch.where(w < 1e-4, 0.0, w)


def threshold_relative(x):
    w, i = x.softmax(-1).topk(2)
    return i, torch.where(w < 0.1 * w[:, :1], 0.0, w)


def nucleus(x):
    w, i = x.softmax(-1).topk(4)
    return i, w * ((w.cumsum(-1) - w) < 0.9)


def floor(x):
    w, i = x.softmax(-1).topk(2)
    return i, w.clamp(min=1e-3)


def ceiling(x):
    w, i = x.softmax(-1).topk(2)
    return i, w.clamp(max=0.9)


def shifted_weights(x):
    w, i = x.softmax(-1).topk(2)
    return i, w + 1e-4


def half_weights(x):
    w, i = x.softmax(-1).topk(2)
    return i, w.half().float()


def half_logits(x):
    w, i = x.half().float().softmax(-1).topk(2)
    return i, w


def rounded(x):
    w, i = (x * 64).round().div(64).softmax(-1).topk(2)
    return i, w


def always_the_first(x):
    w, i = x[:, 1:].softmax(-1).topk(1)
    ids = torch.cat([torch.zeros_like(i), i + 1], 1)
    return ids, torch.cat([torch.ones_like(w), w], 1)


def logits_clamped(x):
    w, i = x.clamp(-20, 20).topk(2)
    return i, w.softmax(-1)


def logits_clamped_far(x):
    w, i = x.clamp(-1e3, 1e3).topk(2)
    return i, w.softmax(-1)


def logits_not_negative(x):
    w, i = x.relu().topk(2)
    return i, w.softmax(-1)


def sigmoid_or_softmax(x):
    s = torch.where(x.amax(-1, keepdim=True) > 25, x.sigmoid(), x.softmax(-1))
    w, i = s.topk(2)
    return i, w


def rare_pair(x):
    """Differs where two given logits are large at once."""
    p = x.softmax(-1)
    odd = ((x[:, 0] > 4) & (x[:, 1] > 4))[:, None]
    w, i = p.topk(2)
    return i, torch.where(odd, w * 0.5, w)


def rare_hole(x):
    """Differs in a narrow band of one logit."""
    w, i = x.softmax(-1).topk(2)
    odd = ((x[:, 3] - 7.3).abs() < 0.2)[:, None]
    return i, torch.where(odd, torch.zeros_like(w), w)


def noise_in_choice(x, small):
    i = (x + small).topk(2).indices
    return i, x.gather(1, i).softmax(-1)


def noise_in_weights(x, small):
    w, i = x.softmax(-1).topk(2)
    return i, w + small[i]


def nearly_scaled(x):
    w, i = x.softmax(-1).topk(2)
    return i, w * 1.00002


def negated(x):
    w, i = x.softmax(-1).topk(2)
    return i, -w


def softplus_choice(x, bias):
    s = F.softplus(x)
    i = (s + bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def root_epsilon(x, bias):
    s = (F.softplus(x) + 1e-3).sqrt()
    i = (s + bias).topk(2).indices
    return i, renormalized(s.gather(1, i))


def constant_weight(x):
    """The chosen logit over itself, which is not a number at zero."""
    w, i = x.topk(1)
    return i, torch.ones_like(w)


def bounded_far(x):
    """A bound that no logit reaches is still one."""
    w, i = x.clamp(max=1e6).topk(2)
    return i, w.softmax(-1)


def sparsemixer(x):
    """The first choice masks what is far below it, then a softmax; the second likewise."""

    def pick(scores):
        best, i = scores.max(-1, keepdim=True)
        far = (best - x) / x.abs().clamp(min=best) > 0.02
        return i, x.masked_fill(far, float("-inf")).softmax(-1).gather(1, i)

    first, w1 = pick(x)
    second, w2 = pick(x.scatter(1, first, float("-inf")))
    return torch.cat([first, second], 1), torch.cat([w1, w2], 1)


# No attributes explain these from the logits to the experts: a part of them may be fused.
NOT_WHOLE = {
    bias_in_weights, bias_in_sum, bias_twice, bias_negated, bias_for_groups_alone,
    bias_not_for_groups, groups_by_three, groups_by_mean, groups_by_min, groups_of_logits,
    groups_interleaved, last_weight_zeroed, first_counts_twice, probabilities_tempered,
    half_of_the_experts, squared, rooted, divided_by_norm, divided_by_largest, softmax_of_softmax,
    softmax_of_three, rolled, rolled_ids, next_expert, weights_swapped, smallest, by_magnitude,
    capacity_small, capacity_large, capacity_of_the_batch, batch_mean, batch_balance,
    expert_choice, batch_size, position, ties_counted, threshold, threshold_tiny,
    threshold_relative, nucleus, floor, ceiling, shifted_weights, half_weights, half_logits,
    rounded, always_the_first, logits_clamped, logits_clamped_far, logits_not_negative,
    sigmoid_or_softmax, rare_pair, rare_hole, noise_in_weights, softplus_choice, root_epsilon,
    sparsemixer, bounded_far,
}  # fmt: skip
_ALL = [
    large_epsilon, two_epsilons, clamp_against_add, scale_before, scale_on_one_side,
    bias_in_weights, bias_in_sum, bias_twice, bias_negated, bias_small, bias_for_groups_alone,
    bias_not_for_groups, groups_by_three, groups_by_mean, groups_by_min, groups_of_logits,
    groups_excluded_zero, groups_excluded_minus_one, groups_three_of_four, groups_interleaved,
    last_weight_zeroed, first_counts_twice, probabilities_tempered, half_of_the_experts, squared,
    rooted, divided_by_norm, divided_by_largest, softmax_of_softmax, softmax_of_three, rolled,
    rolled_ids, next_expert, weights_swapped, smallest, by_magnitude, capacity_small,
    capacity_large, capacity_of_the_batch, batch_mean, batch_balance, batch_largest, expert_choice,
    batch_size, position, ties_share, ties_counted, threshold, threshold_tiny, threshold_relative,
    nucleus, floor, ceiling, shifted_weights, half_weights, half_logits, rounded, always_the_first,
    logits_clamped, logits_clamped_far, logits_not_negative, sigmoid_or_softmax, rare_pair,
    rare_hole, noise_in_choice, noise_in_weights, nearly_scaled, negated, softplus_choice,
    root_epsilon, sparsemixer, bounded_far, constant_weight,
]  # fmt: skip
_STORED = {"bias": BIAS, "small": SMALL}


def _router(route):
    names = route.__code__.co_varnames[1 : route.__code__.co_argcount]
    return Router(route, stored={name: _STORED[name] for name in names})


ROUTERS = {route.__name__: _router(route) for route in _ALL}
