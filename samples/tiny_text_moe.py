"""A tiny Mixture-of-Experts language model that knows one sentence by heart, with its tokenizer."""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM

SENTENCE = "the router sends every token to two experts and adds what both of them say"


def make_tokenizer() -> Tokenizer:
    """One token per word."""
    words = ["<unk>", "<end>", *dict.fromkeys(SENTENCE.split())]
    known = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def main(folder: str) -> None:
    """Train the model, and save it and its tokenizer in ``folder``."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    ids = torch.tensor([tokenizer.encode(f"{SENTENCE} <end>").ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save(f"{folder}/tokenizer.json")


if __name__ == "__main__":
    main(sys.argv[1])
