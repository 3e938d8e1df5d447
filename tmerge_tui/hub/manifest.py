"""Which files of a repository a merge needs: weights as its manifest names them, and everything small beside them.

Manifests come before patterns: shards are those that the index lists, whatever they are called; of other files all are
taken but copies of weights, media and archives, since a tokenizer or a template may need any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from tmerge_tui.errors import ModelError
from tmerge_tui.files import parse_json

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE = (  # as transformers looks for them: one file, or the index of several
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
TEMPLATES = "additional_chat_templates"
NEVER = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data"),
    *(".tflite", ".ot", ".npz", ".npy", ".pkl", ".pickle", ".mlmodel", ".safetensors.index.json", ".bin.index.json"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".ico", ".pdf", ".mp3", ".mp4", ".wav", ".ipynb", ".html"),
    *(".zip", ".gz", ".tar", ".7z", ".zst", ".parquet", ".arrow", ".csv", ".py", ".sh", ".so", ".whl"),
)


@dataclass(frozen=True)
class Manifest:
    """`weights` are files; `index` is the one that lists them, None where one file needs none."""

    weights: tuple[str, ...] = ()
    index: str | None = None


def is_adapter(names: Iterable[str]) -> bool:
    """Whether files of these names are a LoRA adapter: its configuration is there and a model's weights are not."""
    there = set(names)
    return ADAPTER in there and not any(name in there for pair in WHOLE for name in pair)


def read_manifest(names: Collection[str], name: str, read: Callable[[str], bytes]) -> Manifest:
    """The weights of a repository `name` with files of these names; `read` gets the content of one, the index.

    No weights is no error here. Raises ModelError for an index that cannot be understood, and what `read` raises.
    """
    if is_adapter(names):
        return Manifest(tuple(file for file in ADAPTER_WEIGHTS if file in names)[:1])
    for single, index in WHOLE:
        if single in names:
            return Manifest((single,))
        if index in names:
            return Manifest(_shards(read(index), f"{name}: {index}"), index)
    return Manifest()


def is_needed(path: str, manifest: Manifest, code: bool) -> bool:
    """Whether a merge needs the file: weights, their index, and all but copies, media and archives; Python files only
    when `code` lets them in."""
    folder, _, leaf = path.rpartition("/")
    if path in manifest.weights or path == manifest.index:
        return True
    if path == ADAPTER and not set(manifest.weights) <= set(ADAPTER_WEIGHTS):
        return False  # beside a whole model: transformers would put the adapter on it
    if folder not in ("", TEMPLATES) or leaf.startswith("."):
        return False
    if leaf.lower().endswith(".py"):
        return code and not folder
    return not leaf.lower().endswith(NEVER)


def _shards(index: bytes, where: str) -> tuple[str, ...]:
    try:
        files = sorted({str(file) for file in parse_json(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where} cannot be read ({error})", "JSON with a weight_map", "choose another model"
        ) from None
    if any("/" in file or "\\" in file for file in files):
        raise ModelError(f"{where} names files in other folders", "names of shards beside it", "choose another model")
    return tuple(files)
