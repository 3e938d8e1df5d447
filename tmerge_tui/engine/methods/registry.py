"""Every merge method that a recipe can name."""

from __future__ import annotations

from tmerge_tui.engine.methods.ls_merge.stage import LatentSpaceMerge
from tmerge_tui.engine.methods.method import Method
from tmerge_tui.engine.methods.ot_fusion.stage import OtFusionMethod
from tmerge_tui.engine.methods.transport_merge.stage import TransportMerge

METHODS: dict[str, Method] = {
    method.name: method for method in (TransportMerge(), OtFusionMethod(), LatentSpaceMerge())
}
