"""What is to be known of a model's attention before its heads are matched."""

from __future__ import annotations

from typing import Any

from tmerge_tui.engine.methods.ot_fusion.heads import HeadSpaces
from tmerge_tui.engine.prepared import Party
from tmerge_tui.models.config import read_config
from tmerge_tui.models.families.rotary import is_sloped, turned_pairs


def attention_of(party: Party) -> tuple[HeadSpaces | None, ...]:
    """Heads of every layer, and what positions do to them; None without attention."""
    facts, text = party.facts, text_config(party)
    sloped, kind = is_sloped(facts.model_type, text), facts.model_type
    return tuple(
        None if h is None else HeadSpaces(h, turned_pairs(kind, text, h.channels) if h.rotary else None, sloped)
        for h in facts.layout.heads
    )


def text_config(party: Party) -> Any:
    """The decoder's part of config.json."""
    facts = party.facts
    return read_config(facts.folder, facts.name, facts.trust_remote_code).get_text_config()
