"""The classic systems' formulas, token by token in float64, written apart from the layers."""

from __future__ import annotations

import math

import numpy as np

from tests.zoo.layer import H


def softmax(z, axis=-1):
    z = np.exp(z - z.max(axis=axis, keepdims=True))
    return z / z.sum(axis=axis, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def relu(z):
    return np.maximum(z, 0)


def silu(z):
    return z * sigmoid(z)


def gelu(z):
    return z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


class Weights:
    """A layer's parameters and buffers in float64, by name."""

    def __init__(self, model):
        self.values = {n: v.double().numpy() for n, v in model.state_dict().items()}

    def __getitem__(self, name):
        return self.values[name]

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self.values.get(f"{name}.bias", 0.0)

    def sequential(self, name, x, activation):
        return self.linear(f"{name}.2", activation(self.linear(f"{name}.0", x)))

    def swiglu(self, name, x, gate="w1", up="w3", down="w2"):
        h = silu(self.linear(f"{name}.{gate}", x)) * self.linear(f"{name}.{up}", x)
        return self.linear(f"{name}.{down}", h)


def largest(values, k):
    return sorted(range(len(values)), key=lambda e: -values[e])[:k]


def per_token(function):
    """An oracle for one token, applied to each."""

    def oracle(w, x):
        rows = [function(w, row) for row in x.reshape(-1, H)]
        return np.array(rows).reshape(x.shape)

    return oracle


@per_token
def noisy_top_k(w, x):
    logits = x @ w["w_gate"]
    chosen = largest(logits, 3)
    gates = softmax(logits[chosen])
    return sum(
        g * w.sequential(f"experts.{e}", x, relu) for g, e in zip(gates, chosen, strict=True)
    )


def gshard(w, x, factor):
    """One group ``[S, H]``, at least 2 tokens per expert."""
    size, e = len(x), 6
    capacity = min(size, max(int(factor * size / e), 2))
    probs = softmax(w.linear("gate", x))
    first, second = np.array([largest(p, 2) for p in probs]).T
    filled, y = [0] * e, np.zeros_like(x)
    for choice in (first, second):
        for t in range(size):
            i = choice[t]
            if filled[i] < capacity:
                g = probs[t, i] / (probs[t, first[t]] + probs[t, second[t]] + 1e-9)
                y[t] += g * relu(x[t] @ w["wi"][i]) @ w["wo"][i]
            filled[i] += 1
    return y


def gshard_one_group(w, x):
    return gshard(w, x.reshape(-1, H), 1.0).reshape(x.shape)


def gshard_per_sequence(w, x):
    return np.stack([gshard(w, sequence, 1.5) for sequence in x])


def switch(w, x, minimum=1):
    """The result, the mask of dropped tokens, and the loss."""
    tokens = x.reshape(-1, H)
    capacity = max(int(1.25 * len(tokens) / 6), minimum)
    filled, y, dropped = [0] * 6, tokens.copy(), []
    fraction, mean = np.zeros(6), np.zeros(6)
    for t, row in enumerate(tokens):
        p = softmax(w.linear("router", row))
        e = int(p.argmax())
        dropped.append(filled[e] >= capacity)
        if not dropped[-1]:
            y[t] += p[e] * w.linear(f"experts.{e}.wo", relu(w.linear(f"experts.{e}.wi", row)))
        filled[e] += 1
        fraction[e] += 1 / len(tokens)
        mean += p / len(tokens)
    return y.reshape(x.shape), np.array(dropped).reshape(x.shape[:-1]), 6 * (fraction @ mean)


@per_token
def mixtral(w, x):
    logits = w.linear("gate", x)
    a, b = largest(logits, 2)
    p = 1 / (1 + np.exp(logits[b] - logits[a]))
    return p * w.swiglu(f"experts.{a}", x) + (1 - p) * w.swiglu(f"experts.{b}", x)


@per_token
def deepseek_v2(w, x):
    s = softmax(w["gate.weight"] @ x).reshape(8, 20)
    groups = largest(s.max(axis=1), 3)
    chosen = largest([v if i // 20 in groups else 0 for i, v in enumerate(s.flatten())], 6)
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    y = sum(16.0 * s.flatten()[i] * w.swiglu(f"experts.{i}", x, **names) for i in chosen)
    return y + w.swiglu("shared_experts", x, **names)


@per_token
def deepseek_v3(w, x):
    s = sigmoid(w["gate.weight"] @ x)
    c = s + w["gate.correction_bias"]
    groups = largest([sum(sorted(g)[-2:]) for g in c.reshape(8, 32)], 4)
    chosen = largest([v if i // 32 in groups else -np.inf for i, v in enumerate(c)], 8)
    total = sum(s[i] for i in chosen) + 1e-20
    y = sum(2.5 * s[i] / total * w.swiglu(f"experts.{i}", x) for i in chosen)
    return y + w.swiglu("shared", x)


def expert_choice_mesh(w, x):
    y, (batch, size, _) = np.zeros_like(x), x.shape
    capacity = min(size, max(1, int(2.0 * size / 6)))
    for b in range(batch):
        scores = softmax(x[b] @ w["router"], axis=0)
        for e in range(6):
            for t in largest(scores[:, e], capacity):
                y[b, t] += scores[t, e] * relu(x[b, t] @ w["wi"][e]) @ w["wo"][e]
    return y


def expert_choice_vmoe(w, x):
    tokens = x.reshape(-1, H)
    y, size = np.zeros_like(tokens), len(tokens)
    capacity = min(size, 4 * math.ceil(math.ceil(size / 6) / 4))
    scores = softmax(w.linear("router", tokens), axis=1)
    for e in range(6):
        for t in largest(scores[:, e], capacity):
            y[t] += scores[t, e] * w.sequential(f"experts.{e}", tokens[t], gelu)
    return y.reshape(x.shape)


def soft_moe(w, x):
    phi = w["phi"].reshape(H, -1)
    phi = w["scale"] * phi / np.sqrt((phi**2).sum(0) + 1e-6)
    y = []
    for tokens in x:
        logits = tokens / np.sqrt((tokens**2).sum(1, keepdims=True) + 1e-6) @ phi
        slots = softmax(logits, axis=0).T @ tokens
        out = [
            gelu(slot @ w["w1"][j // 3] + w["b1"][j // 3, 0]) @ w["w2"][j // 3] + w["b2"][j // 3, 0]
            for j, slot in enumerate(slots)
        ]
        y.append(softmax(logits, axis=1) @ np.array(out))
    return np.array(y)


def hash_by_position(w, x):
    y = np.zeros_like(x)
    for s in range(x.shape[1]):
        y[:, s] = w.sequential(f"experts.{int(w['table'][s % 32])}", x[:, s], relu)
    return y


def hash_by_id(w, x, ids):
    choice = w["table"][ids].astype(int)
    y = [
        w.sequential(f"experts.{e}", row, relu)
        for e, row in zip(choice.flatten(), x.reshape(-1, H), strict=True)
    ]
    return np.array(y).reshape(x.shape)


@per_token
def dense_soft(w, x):
    p = softmax(w.linear("gate", x))
    return sum(p[e] * w.sequential(f"experts.{e}", x, np.tanh) for e in range(5))


@per_token
def switch_2048(w, x):
    p = softmax(w.linear("router", x))
    e = int(p.argmax())
    return p[e] * (relu(x @ w["w1"][e]) @ w["w2"][e])


@per_token
def top2_of_16(w, x):
    p, y = softmax(w.linear("router", x)), 0
    for e in largest(p, 2):
        gate, up = np.split(w.linear(f"experts.{e}.gate_up", x), 2)
        y = y + p[e] * w.linear(f"experts.{e}.down", silu(gate) * up)
    return y


ORACLES = {
    "noisy_top_k": noisy_top_k,
    "gshard_top2": gshard_one_group,
    "gshard_top2_per_sequence": gshard_per_sequence,
    "switch_top1": lambda w, x: switch(w, x)[0],
    "mixtral": mixtral,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "expert_choice_mesh": expert_choice_mesh,
    "expert_choice_vmoe": expert_choice_vmoe,
    "soft_moe": soft_moe,
    "hash_by_id": hash_by_id,
    "hash_by_position": hash_by_position,
    "dense_soft": dense_soft,
    "switch_2048": switch_2048,
    "top2_of_16": top2_of_16,
}
