"""Real shapes with random weights: Llama-3.1-8B into Llama-3.2-1B, a few short samples, on this machine.

    python -m tests.benchmarks.shapes [--folder DIR] [--samples 8] [--keep] [--device cpu] [--memory 5GB]

Writes about 19 GB into DIR (made and removed; `--keep` leaves the models for a second run), runs the whole merge as
`tmerge --batch` does, and prints the time of every stage and the peak memory of the worker.
Target: finishes, under 10 GiB of memory, in minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.tiny import make_text, make_tokenizer

SHARED: dict[str, Any] = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "source": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
    "target": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
}
TINY: dict[str, dict[str, Any]] = {
    "source": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "tie_word_embeddings": False},
    "target": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
SHARD = 4 << 30


def make(folder: Path, seed: int, device: str = "cpu", **shape: Any) -> None:
    """A bfloat16 checkpoint in shards, written tensor by tensor: never more than a shard in memory."""
    config = LlamaConfig(**{**SHARED, **shape}, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    make_tokenizer(400).save_pretrained(folder)
    generator = torch.Generator(device).manual_seed(seed)
    shards: list[dict[str, torch.Tensor]] = [{}]
    files: dict[str, str] = {}
    size = total = 0

    def flush() -> None:
        name = f"model-{len(set(files.values())) + 1:05d}.safetensors"
        files.update(dict.fromkeys(shards[0], name))
        save_file(shards[0], folder / name, {"format": "pt"})
        shards[0] = {}

    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            tensor = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            tensor = tensor.normal_(0, 0.02, generator=generator).cpu()
        if size + tensor.nbytes > SHARD:
            flush()
            size = 0
        shards[0][name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def merge(
    folder: Path, samples: int, device: str = "auto", memory: str | None = None, models: dict[str, Any] = MODELS
) -> dict[str, Any]:
    """Makes the models that are not in `folder` yet, merges them, and gives the report. Raises CalledProcessError."""
    made_on = "cuda" if torch.cuda.is_available() else "cpu"  # random numbers come fast there
    for seed, (role, shape) in enumerate(models.items()):
        if not (folder / role).exists():
            began = time.monotonic()
            make(folder / role, seed, made_on, **shape)
            print(f"made {role} in {time.monotonic() - began:.0f} s", flush=True)
    recipe = {
        "source": str(folder / "source"),
        "target": str(folder / "target"),
        "calibration": {
            "path": str(make_text(folder / "text.txt", samples + 4)),
            "samples": samples,
            "holdout": 4,
            "max_length": 64,
        },
        "evaluation": {"controls": ["shrink"], "resamples": 100},
        "fusion": {"coupling": "barycentric", "alpha": 0.1},
        "output": str(folder / "run"),
        "device": device,
        "memory": memory,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.rmtree(folder / "run", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "tmerge_tui", "--batch", str(folder / "recipe.yaml")], check=True)
    report: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", default=None, help="what the weights may take, as in a recipe")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="tmerge-shapes-"))
    try:
        began = time.monotonic()
        try:
            report = merge(folder, options.samples, options.device, options.memory)
        except subprocess.CalledProcessError as error:
            print(f"\nexit {error.returncode} after {time.monotonic() - began:.0f} s")
            return int(error.returncode)
        print(f"\n{time.monotonic() - began:.0f} s")
        for timing in report["timings"]:
            print(f"{timing['stage']:<16} {timing['seconds']:8.1f} s  {timing['outcome']}")
        memory = report["memory"]
        print(f"peak memory {memory['peak_rss'] / 2**30:.2f} GiB, on the GPU {memory['peak_gpu'] / 2**30:.2f} GiB")
        return 0
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
