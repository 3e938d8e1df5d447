"""Weights that an alignment may not read: embeddings, last layer, last norm, head. What is not finite there would show
only at the end."""

from __future__ import annotations

from tmerge_tui.engine.prepared import Party
from tmerge_tui.models.config import build_on_meta, read_config
from tmerge_tui.models.file_names import file_names
from tmerge_tui.models.projections import decoder_layers


def check_ends(party: Party) -> None:
    """Raises NumericsError naming the first tensor outside the decoder layers, or in the last of them, that holds NaN
    or Inf where it is read.

    Other layers are not looked at: activations show what is wrong there. Nor are tensors that the model does not have,
    and of an embedding that is not the head too only the rows of the tokenizer's tokens.
    """
    facts, checkpoint = party.facts, party.checkpoint
    config = read_config(facts.folder, facts.name, facts.trust_remote_code)
    model = build_on_meta(config, facts.name, facts.trust_remote_code)
    in_files, _ = file_names(model, checkpoint.names)
    path, _ = decoder_layers(model, facts.layers)
    there = model.state_dict()
    last = f"{path}.{facts.layers - 1}."
    ends = [f for name, f in in_files.items() if name in there and (not name.startswith(f"{path}.") or last in name)]
    embedding = model.get_input_embeddings().weight
    known = max(party.tokenizer.get_vocab().values(), default=-1) + 1
    rows = {
        in_files[name]: known
        for name, value in model.named_parameters(remove_duplicate=False)
        if value is embedding and not facts.tied and name in in_files
    }
    checkpoint.check_finite(ends, lambda count: None, rows)
