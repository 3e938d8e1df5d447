"""Cuts a smaller target out of a Llama source and trains it briefly: a pair of relatives.

    python build/train_relatives.py --data DIR --source assets/demo/source-llama --out DIR

Llama-3.2-1B was pruned and distilled from Llama-3.1-8B, so the paper's main pairs are relatives; the demo's pair,
trained apart, is the hard case. This makes the miniature of the other one. DIR holds swahili-train.txt and
swahili-heldout.txt (CC0 1.0, see train_demo.py). A third of the layers, residual channels, key-value groups and
feed-forward neurons goes, the weakest on the training text first; the cut then trains on the first thousand verses for
about a hundred steps. No network; a minute or two on two cores; the same seed on the same machine and libraries gives
the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from small_lm import bits_per_byte, make_model, read_lines, save, train
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

TRAINING_LINES = 1000
STRENGTH_LINES = 200
CARD = "A relative of the source of the demo of tmerge: cut out of it by `build/train_relatives.py`."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cuts a target out of a Llama source and trains it briefly.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the text files")
    parser.add_argument("--source", type=Path, required=True, help="folder of the Llama source")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the target to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)

    heldout = read_lines(args.data / "swahili-heldout.txt")
    known = set(heldout)
    few = [line for line in read_lines(args.data / "swahili-train.txt") if line not in known][:TRAINING_LINES]
    tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    source = AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.float32)
    layers = source.config.num_hidden_layers
    kept = spread(layers, layers * 2 // 3)
    target = cut(source, kept, tokenizer, few[:STRENGTH_LINES], args.seed)
    raw = bits_per_byte(target, tokenizer, heldout)
    train(target, tokenizer, [few] * 3, rate=2e-3, tokens=1024, seed=args.seed, label="target")
    bits = bits_per_byte(target, tokenizer, heldout)
    save(target, tokenizer, args.out, torch.float32, CARD)
    whole = bits_per_byte(source, tokenizer, heldout)
    print(f"layers {kept} of {layers}; held-out bits per byte: source {whole:.4f}, cut {raw:.4f}, trained {bits:.4f}")


def spread(layers: int, count: int) -> list[int]:
    """`count` of `layers` indices, evenly, first and last among them."""
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


@torch.no_grad()
def cut(source: PreTrainedModel, kept: list[int], tokenizer: Tokenizer, lines: list[str], seed: int) -> PreTrainedModel:
    """The source without the layers that are not `kept` and without a third of every other dimension."""
    config = source.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    groups = config.num_key_value_heads * 2 // 3
    hidden = groups * per_group * config.head_dim
    target = make_model(
        "llama",
        config.vocab_size,
        seed,
        hidden_size=hidden,
        num_hidden_layers=len(kept),
        num_attention_heads=groups * per_group,
        num_key_value_heads=groups,
        intermediate_size=config.intermediate_size * 2 // 3,
    )
    strength = strengths(source, tokenizer, lines)
    residual = strongest(strength[source.model.norm], hidden)
    target.model.embed_tokens.weight.copy_(source.model.embed_tokens.weight[:, residual])
    target.model.norm.weight.copy_(source.model.norm.weight[residual])
    for layer, index in zip(target.model.layers, kept, strict=True):
        origin = source.model.layers[index]
        by_group = strength[origin.self_attn.o_proj].view(config.num_key_value_heads, -1).sum(1)
        group = strongest(by_group, groups)
        queries = _members(group, per_group * config.head_dim)
        keys = _members(group, config.head_dim)
        neurons = strongest(strength[origin.mlp.down_proj], target.config.intermediate_size)
        for ours, theirs, rows, columns in (
            (layer.self_attn.q_proj, origin.self_attn.q_proj, queries, residual),
            (layer.self_attn.k_proj, origin.self_attn.k_proj, keys, residual),
            (layer.self_attn.v_proj, origin.self_attn.v_proj, keys, residual),
            (layer.self_attn.o_proj, origin.self_attn.o_proj, residual, queries),
            (layer.mlp.gate_proj, origin.mlp.gate_proj, neurons, residual),
            (layer.mlp.up_proj, origin.mlp.up_proj, neurons, residual),
            (layer.mlp.down_proj, origin.mlp.down_proj, residual, neurons),
        ):
            ours.weight.copy_(theirs.weight[rows][:, columns])
        layer.input_layernorm.weight.copy_(origin.input_layernorm.weight[residual])
        layer.post_attention_layernorm.weight.copy_(origin.post_attention_layernorm.weight[residual])
    return target


@torch.no_grad()
def strengths(model: PreTrainedModel, tokenizer: Tokenizer, lines: list[str]) -> dict[nn.Module, torch.Tensor]:
    """Sum of |input| over tokens (and a little padding), per channel [n], of o_proj, down_proj and the last norm."""
    total: dict[nn.Module, torch.Tensor] = {}

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        total[module] = total.get(module, 0) + inputs[0].abs().sum((0, 1))

    watched = [model.model.norm]
    for layer in model.model.layers:
        watched += [layer.self_attn.o_proj, layer.mlp.down_proj]
    handles = [module.register_forward_pre_hook(add) for module in watched]
    bits_per_byte(model, tokenizer, lines)
    for handle in handles:
        handle.remove()
    return total


def strongest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [count] of the largest values, in their old order."""
    return values.topk(count).indices.sort().values


def _members(groups: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of the given groups when each has `size` of them."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


if __name__ == "__main__":
    main()
