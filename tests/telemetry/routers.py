"""Routers of every kind, each with the distribution that its telemetry must be the mean of.

They take logits ``[T, E]`` and return ids and weights ``[T, K]``, as those of ``tests.optimize``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.optimize.exported import Router

E = 8
OF_WEIGHTS = "each token's expert weights over their sum: its router scores no others"
SOFTMAX = "softmax of the router's logits"


def over_sum(scores):
    return scores / scores.sum(-1, keepdim=True)


def softmax_top2(logits):
    weights, ids = logits.softmax(-1).topk(2)
    return ids, over_sum(weights)


def softmax_of_chosen(logits):
    best, ids = logits.topk(3)
    return ids, best.softmax(-1)


def sigmoid_with_bias(logits, bias):
    scores = logits.sigmoid()
    ids = (scores + bias).topk(2).indices
    return ids, over_sum(scores.gather(1, ids))


def sqrt_softplus(logits):
    weights, ids = torch.nn.functional.softplus(logits).sqrt().topk(2)
    return ids, over_sum(weights)


def sigmoid_of_chosen(logits):
    best, ids = logits.topk(1)
    return ids, best.sigmoid()


def by_sample(logits):
    weights, ids = logits.reshape(-1, E).softmax(-1).topk(2)
    return ids, weights


def capacity(logits):
    """An expert takes the first three tokens that choose it."""
    probability = logits.softmax(-1)
    weights, ids = probability.max(-1, keepdim=True)
    chosen = (ids == torch.arange(E)).long()
    position = ((chosen.cumsum(0) - chosen) * chosen).sum(-1, keepdim=True)
    return torch.where(position < 3, ids, E), weights


def negative_ids(logits):
    """A choice below a threshold is dropped by an id of -1."""
    weights, ids = logits.softmax(-1).topk(2)
    return torch.where(weights > 0.25, ids, -1), weights


def expert_choice(logits):
    """Every expert takes its best two tokens, by softmax over the experts."""
    probability = logits.softmax(-1)
    best, tokens = probability.T.topk(2)
    dense = torch.zeros_like(probability.T).scatter(1, tokens, best).T
    ids = torch.arange(E).expand(dense.shape)
    return torch.where(dense != 0, ids, E), dense


def softmax_over_tokens(logits):
    """No distribution over the experts."""
    dense = logits.softmax(0)
    best, ids = dense.topk(2)
    return ids, best


def coupled_sigmoid(logits):
    """Not fused: the threshold depends on all tokens."""
    scores = logits.sigmoid()
    weights, ids = scores.topk(2)
    return torch.where(weights > scores.mean(), ids, E), weights


def hashed(logits, table):
    """Ids from a table by position, as from token ids."""
    rows = torch.arange(logits.shape[0]) % len(table)
    return table[rows], torch.ones(logits.shape[0], 2)


def renamed(logits, table):
    """Column c is expert table[c]."""
    weights, ids = logits.softmax(-1).topk(2)
    return table[ids], weights


def shuffled(logits, table):
    """Column c of what is chosen from is column table[c] of the probabilities."""
    weights, ids = logits.softmax(-1)[:, table].topk(2)
    return ids, weights


def two_softmaxes(logits):
    """One chooses, another weighs."""
    ids = logits.softmax(-1).topk(2).indices
    return ids, (logits * 0.5).softmax(-1).gather(1, ids)


def masked_softmax(logits):
    """Its only softmax is of what was chosen already, and the tokens depend on each other."""
    ids = (logits - logits.mean()).abs().topk(2).indices
    masked = torch.full_like(logits, float("-inf")).scatter(1, ids, logits.gather(1, ids))
    return ids, masked.softmax(-1).gather(1, ids)


@dataclass(frozen=True)
class Case:
    """A router under test.

    Attributes:
        router: It.
        scores: ``[T, E]`` logits to its distribution; None for its weights' own.
        words: What the record says when the router is fused where it can be.
        plain_words: The same before routers are fused.
        by_token: Whether dropped tokens are counted, not choices.
    """

    router: Router
    scores: Callable | None
    words: str
    plain_words: str
    by_token: bool = False


def _case(route, scores, words, plain_words, *, by_token=False, samples=None, **stored):
    return Case(Router(route, E, stored or None, samples), scores, words, plain_words, by_token)


def softmax(logits):
    return logits.softmax(-1)


def sigmoid(logits):
    return over_sum(logits.sigmoid())


_INSIDE = "softmax among the router's operators"
_SIGMOID = "sigmoid {} the router's {}, each token's over their sum"
_OPERATORS, _LOGITS = (_SIGMOID.format(*w) for w in (("among", "operators"), ("of", "logits")))
_TABLE = torch.tensor([3, 1, 4, 0, 5, 7, 2, 6])

CASES = {
    "softmax_top2": _case(softmax_top2, softmax, SOFTMAX, _INSIDE),
    "softmax_of_chosen": _case(softmax_of_chosen, softmax, SOFTMAX, OF_WEIGHTS),
    "sigmoid_with_bias": _case(
        sigmoid_with_bias, sigmoid, _LOGITS, _OPERATORS, bias=torch.linspace(-0.2, 0.2, E)
    ),
    "sqrt_softplus": _case(
        sqrt_softplus,
        lambda x: over_sum(torch.nn.functional.softplus(x).sqrt()),
        "sqrt_softplus of the router's logits, each token's over their sum",
        OF_WEIGHTS,
    ),
    "sigmoid_of_chosen": _case(sigmoid_of_chosen, sigmoid, _LOGITS, OF_WEIGHTS),
    "by_sample": _case(by_sample, softmax, SOFTMAX, _INSIDE, samples=3),
    "capacity": _case(capacity, softmax, SOFTMAX, _INSIDE),
    "negative_ids": _case(negative_ids, softmax, SOFTMAX, _INSIDE),
    "expert_choice": _case(expert_choice, softmax, _INSIDE, _INSIDE, by_token=True),
    "softmax_over_tokens": _case(softmax_over_tokens, None, OF_WEIGHTS, OF_WEIGHTS),
    "coupled_sigmoid": _case(coupled_sigmoid, sigmoid, _OPERATORS, _OPERATORS),
    "hashed": _case(hashed, None, OF_WEIGHTS, OF_WEIGHTS, table=torch.randint(0, E, (5, 2))),
    "renamed": _case(renamed, None, OF_WEIGHTS, OF_WEIGHTS, table=_TABLE),
    "shuffled": _case(shuffled, None, OF_WEIGHTS, OF_WEIGHTS, table=_TABLE),
    "two_softmaxes": _case(two_softmaxes, None, OF_WEIGHTS, OF_WEIGHTS),
    "masked_softmax": _case(masked_softmax, None, OF_WEIGHTS, OF_WEIGHTS),
}
