"""Which tensor of the source stands where one of the target does, for tensors that are no projections."""

from __future__ import annotations

from tmerge_tui.models.facts import ModelFacts
from tmerge_tui.models.families.norms import OUTSIDE, norm_slot
from tmerge_tui.models.layout import Layout, StoredTensor


def norm_slots(facts: ModelFacts) -> dict[str, str]:
    """Norm tensor -> `space:what it stands before.weight`; empty where that is not known."""
    norms = [tensor for tensor in facts.layout.tensors if tensor.role == "norm"]
    final = any(tensor.layer is None for tensor in norms if OUTSIDE.get(tensor.name.split(".")[-2]) == "final")
    found = {}
    for tensor in norms:
        path, _, suffix = tensor.name.rpartition(".")
        leaf, space = path.rpartition(".")[2], tensor.spaces[0][0].name
        siblings = {t.name.split(".")[-2] for t in norms if t.layer == tensor.layer}
        known = norm_slot(leaf, siblings, tensor.layer, final) if space == "residual" else leaf[:1]
        found[tensor.name] = (
            f"{space}:{known}.{suffix}" if known in ("q", "k") or (space == "residual" and known) else ""
        )
    return found


def counterpart(tensor: StoredTensor, layout: Layout, tied: bool) -> StoredTensor | None:
    """The source's tensor of the same role and number of dimensions; of a tied head the embedding."""
    role = "embedding" if tensor.role == "head" and tied and len(tensor.shape) == 2 else tensor.role
    same = [t for t in layout.tensors if t.role == role and len(t.shape) == len(tensor.shape)]
    spaces = [each[0].name for each in tensor.spaces]
    return next((t for t in same if [each[0].name for each in t.spaces] == spaces), None)
