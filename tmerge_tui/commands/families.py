"""`tmerge models`: which families can be merged."""

from __future__ import annotations

from tmerge_tui.commands.output import data
from tmerge_tui.models.families.catalogue import FAMILIES, REFUSED


def families() -> int:
    """Prints the tested families with their projections, and what is refused."""
    widths = [max(len(f.model_type) for f in FAMILIES), max(len(" ".join(f.projections)) for f in FAMILIES)]
    for family in FAMILIES:
        remarks = "; ".join(part for part in (" or ".join(family.stored), family.note) if part)
        line = f"{family.model_type:<{widths[0]}}  {' '.join(family.projections):<{widths[1]}}  {family.known_as}"
        data(line + (f" ({remarks})" if remarks else ""))
    data("")
    data("Any of them is a source or a target for any other. Families that are not listed work when their layers are")
    data("under known names: tmerge check MODEL shows what is found. Refused:")
    for what, instead in REFUSED:
        data(f"  {what}: {instead}")
    return 0
