"""Method: every option of the recipe, simple and expert, checked while typing."""

from __future__ import annotations

from textual.widgets import Input, Static

from tests.tui.doubles import FakeProbe, screen_text, settle
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import OPTIONS
from tmerge_tui.tui.screens.method import MethodScreen
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.widgets.field import OptionField


def field(app: TmergeApp, name: str) -> OptionField:
    return next(f for f in app.screen.query(OptionField) if f.option == name)


async def test_every_option_has_a_field_with_its_meaning_and_equation(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        await pilot.press("f2")
        await settle(pilot)
        shown = {f.option for f in app.screen.query(OptionField)}
        elsewhere = ("source.", "target.", "calibration.", "output")
        assert shown == {name for name in OPTIONS if not name.startswith(elsewhere)}
        epsilon = field(app, "transport.epsilon")
        assert "entropic regularisation" in str(epsilon.query_one(".field-help", Static).render())
        assert "eq. 8" in str(epsilon.query_one(".field-note", Static).render())


async def test_expert_view_toggles(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        simple = {f.option for f in app.screen.query(OptionField)}
        assert "transport.epsilon" in simple and "transport.solver" not in simple
        await pilot.press("f2")
        await settle(pilot)
        assert {f.option for f in app.screen.query(OptionField)} > simple
        await pilot.press("f2")
        await settle(pilot)
        assert {f.option for f in app.screen.query(OptionField)} == simple


async def test_a_wrong_value_is_told_and_blocks(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        alpha = field(app, "fusion.alpha")
        alpha.query_one(Input).focus()
        await pilot.press("ctrl+u", *"0.1,2")
        await settle(pilot)
        assert "expected 1 or less" in str(alpha.query_one(".field-help", Static).render())
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, MethodScreen)
        await pilot.press("backspace", *"0.2")
        await settle(pilot)
        assert not alpha.has_class("-wrong")
        assert app.draft.data()["fusion"]["alpha"] == ["0.1", "0.2"]


async def test_toggles_by_keyboard(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        field(app, "transport.projections").query("AnyOf").first().focus()
        await pilot.press("space")  # q off
        await pilot.press("left", "space")  # down on
        assert app.draft.get("transport.projections") == ["k", "v", "o", "down"]
        field(app, "fusion.coupling").query("OneOf").first().focus()
        await pilot.press("right")
        assert app.draft.get("fusion.coupling") == "barycentric"
        await pilot.press("right")
        assert "fusion.coupling" not in app.draft.values, "back at the default"


async def test_defaults_take_everything_back(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.draft.set("fusion.k", "12")
        app.draft.set("source.model", "org/a")
        app.goto("method")
        await settle(pilot)
        await pilot.press("f3")
        await settle(pilot)
        assert app.draft.values == {"source.model": "org/a"}
        assert field(app, "fusion.k").query_one(Input).value == "128"


async def test_the_estimate_follows(app: TmergeApp, probe: FakeProbe, models) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.draft.set("source.model", models["source"])
        app.draft.set("target.model", models["target"])
        app.goto("method")
        await settle(pilot, 0.2)
        assert "about 3:07 on cpu   memory 1.2 GB   disk 340 MB" in screen_text(app)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
