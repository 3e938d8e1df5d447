"""The two models under their names."""

from __future__ import annotations

import pytest

from tmerge_tui.models.pair import Pair


def test_roles_have_names_and_no_order() -> None:
    pair = Pair(source="big", target="small")
    assert pair.items() == (("target", "small"), ("source", "big"))
    assert pair.each(len) == Pair(target=5, source=3)
    with pytest.raises(TypeError):
        Pair("small", "big")  # type: ignore[misc]
