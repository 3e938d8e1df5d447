"""Trains the demo pair from scratch and writes all of the demo but its recipe: models, text and README.

    python build/train_demo.py --data DIR --out assets/demo

DIR holds three plain text files, one verse a line: swahili-train.txt, swahili-heldout.txt and zulu.txt, the Swahili
(1891) and Zulu (1883) New Testaments of github.com/christos-c/bible-corpus, all CC0 1.0. The Swahili verses are
shuffled and split, so the held-out ones are spread over the whole book. No network; some ten minutes on two cores;
the same seed and threads on the same machine and libraries give the same files.

The two models share nothing: family, width, depth and tokenizer differ. The source has read all Swahili training verses
and the Zulu ones, the target only the first thousand Swahili ones, so there is something to gain. Nothing trains on the
held-out verses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from small_lm import bits_per_byte, make_model, read_lines, save, train, train_tokenizer
from transformers import PreTrainedModel

TARGET_LINES = 1000
CALIBRATION_LINES = 2000
HOLDOUT_LINES = 600

SOURCE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 512,
}
TARGET = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
}

CARD = "The {role} of the demo of tmerge: a toy, trained by `build/train_demo.py` on CC0 1.0 text."

README = """\
# The demo: a Swahili source, a smaller Swahili target, and text

Everything `tmerge demo` needs, so that it runs without a network. Made by `build/train_demo.py`.

| folder | what | trained on | held-out bits per byte |
|---|---|---|---|
| source-llama | {source} | {trained} Swahili and {zulu} Zulu verses | {source_bits:.4f} |
| target-qwen2 | {target} | the first {target_lines} of the Swahili verses | {target_bits:.4f} |

Bits per byte: token losses in bits, begin-of-text prepended, over the UTF-8 bytes of the {holdout} verses in
`holdout.txt`; the weights as stored here (source bfloat16, target float32), computed in float32.

| file | what |
|---|---|
| calibration.txt | Swahili training verses {first} to {last}, each once: the source has read them, the target has not |
| holdout.txt | held-out verses: no model trained on them, no plan aligns on them, no strength is tuned on them |
| recipe.yaml | the recipe that `tmerge demo` runs |

The models are toys, made to show what a merge does in a minute. They are of no use for Swahili.

## Licence
The verses are those of the Swahili (1891) and Zulu (1883) New Testaments in
[christos-c/bible-corpus](https://github.com/christos-c/bible-corpus), CC0 1.0 (public domain). The two models, trained
on nothing else, and the text files here are CC0 1.0 too.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains the demo pair and writes models, text and README.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the text files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)

    heldout = read_lines(args.data / "swahili-heldout.txt")
    known = set(heldout)
    swahili = [line for line in read_lines(args.data / "swahili-train.txt") if line not in known]
    zulu = read_lines(args.data / "zulu.txt")
    few = swahili[:TARGET_LINES]
    last = TARGET_LINES + CALIBRATION_LINES
    holdout = heldout[:HOLDOUT_LINES]

    everything = swahili + zulu
    source_tokenizer = train_tokenizer(everything, 2048)
    source = make_model("llama", 2048, args.seed, **SOURCE)
    passes = [everything, everything, swahili, swahili, swahili]
    train(source, source_tokenizer, passes, rate=3e-3, tokens=2048, seed=args.seed, label="source")
    save(source, source_tokenizer, args.out / "source-llama", torch.bfloat16, CARD.format(role="source"))

    torch.set_num_threads(1)  # a model this small gains nothing from a second core
    target_tokenizer = train_tokenizer(few, 1024)
    target = make_model("qwen2", 1024, args.seed, **TARGET)
    train(target, target_tokenizer, [few] * 12, rate=3e-3, tokens=512, seed=args.seed, label="target")
    save(target, target_tokenizer, args.out / "target-qwen2", torch.float32, CARD.format(role="target"))

    unseen = dict.fromkeys(swahili[TARGET_LINES:last])  # some verses come twice
    (args.out / "calibration.txt").write_text("\n".join(unseen) + "\n", encoding="utf-8")
    (args.out / "holdout.txt").write_text("\n".join(holdout) + "\n", encoding="utf-8")

    source_bits = bits_per_byte(source.float(), source_tokenizer, holdout)
    target_bits = bits_per_byte(target, target_tokenizer, holdout)
    text = README.format(
        source=describe("Llama", source),
        target=describe("Qwen2 (biases on q, k, v)", target),
        trained=len(swahili),
        zulu=len(zulu),
        target_lines=TARGET_LINES,
        source_bits=source_bits,
        target_bits=target_bits,
        holdout=len(holdout),
        first=TARGET_LINES + 1,
        last=last,
    )
    (args.out / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(
        f"held-out bits per byte: source {source_bits:.4f}, target {target_bits:.4f}; {size / 1e6:.1f} MB in {args.out}"
    )


def describe(family: str, model: PreTrainedModel) -> str:
    config = model.config
    heads = f"{config.num_attention_heads} heads / {config.num_key_value_heads} kv"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{family}, {config.num_hidden_layers} layers, hidden {config.hidden_size}, {heads}, "
        f"vocabulary {config.vocab_size:,}; {millions:.1f} M parameters"
    )


if __name__ == "__main__":
    main()
