"""Method: every option of the recipe, simple and expert, checked while typing."""

from __future__ import annotations

from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.tui.doubles import FakeProbe, screen_text, settle
from tests.tui.test_draft import BASE
from tests.tui.test_path import put
from tmerge_tui.recipe.adaptation import Hints
from tmerge_tui.recipe.ot_fusion import OtFusion
from tmerge_tui.recipe.safety import Safety
from tmerge_tui.tui.app import TmergeApp
from tmerge_tui.tui.draft import Draft, options
from tmerge_tui.tui.screens.method import MethodScreen
from tmerge_tui.tui.screens.review import ReviewScreen
from tmerge_tui.tui.widgets.field import OptionField
from tmerge_tui.tui.widgets.toggles import OneOf


def field(app: TmergeApp, name: str) -> OptionField:
    return next(f for f in app.screen.query(OptionField) if f.option == name)


async def filled(app: TmergeApp, pilot: Pilot) -> None:
    """Method, with all that the other steps ask for."""
    for name, value in BASE.items():
        app.draft.set(name, value)
    app.goto("method")
    await settle(pilot)


async def test_every_option_has_a_field_with_its_meaning_and_equation(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        await pilot.press("f5")
        await settle(pilot)
        shown = {f.option for f in app.screen.query(OptionField)}
        elsewhere = ("source.", "target.", "calibration.", "output")
        assert shown == {n for n in options() if not n.startswith(elsewhere) and app.draft.offers(n)}
        epsilon = field(app, "transport.epsilon")
        assert "entropic regularisation" in str(epsilon.query_one(".field-help", Static).render())
        assert "eq. 8" in str(epsilon.query_one(".field-note", Static).render())


async def test_a_method_brings_its_section(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.draft.set("ot_fusion.solver", "hard")
        await filled(app, pilot)
        await pilot.press("f5")
        await settle(pilot)
        field(app, "method").query_one(OneOf).focus()
        await pilot.press("right")
        await settle(pilot)
        sections = {f.option.partition(".")[0] for f in app.screen.query(OptionField)}
        assert "ot_fusion" in sections and "ls_merge" not in sections
        assert app.focused is field(app, "method").query_one(OneOf)
        assert app.draft.recipe().ot_fusion.solver == "hard"
        await pilot.press("left")
        await settle(pilot)
        assert app.draft.recipe() == app.draft.recipe().model_copy(update={"ot_fusion": OtFusion()})


async def test_the_safety_screen_is_switched_on_among_what_is_measured(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await filled(app, pilot)
        field(app, "evaluation.safety").query_one(OneOf).focus()  # without the expert view
        await pilot.press("left")
        await settle(pilot)
        assert app.draft.recipe().evaluation.safety == Safety()
        await put(pilot, "evaluation.safety.path", "/prompts.jsonl")
        assert app.draft.recipe().evaluation.safety == Safety(path="/prompts.jsonl")
        again = Draft.from_recipe(app.draft.recipe())
        assert (again.get("evaluation.safety"), again.get("evaluation.safety.path")) == (True, "/prompts.jsonl")


async def test_adaptation_is_a_section_that_is_switched_on(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await filled(app, pilot)
        await pilot.press("f5")
        await settle(pilot)
        for switch, opened in (
            ("adaptation", "adaptation.learning_rate"),
            ("adaptation.hints", "adaptation.hints.sides"),
        ):
            assert not [f for f in app.screen.query(OptionField) if f.option == opened]
            field(app, switch).query_one(OneOf).focus()
            await pilot.press("left")
            await settle(pilot)
            assert field(app, opened).display
            assert app.focused is field(app, switch).query_one(OneOf)
        await put(pilot, "adaptation.learning_rate", "1e-5")
        made = app.draft.recipe().adaptation
        assert made is not None and made.learning_rate == 1e-5 and made.hints == Hints()
        await put(pilot, "adaptation.learning_rate", "-1")
        assert field(app, "adaptation.learning_rate").has_class("-wrong")
        assert not field(app, "adaptation").has_class("-wrong")
        field(app, "adaptation").query_one(OneOf).focus()
        await pilot.press("right")
        await settle(pilot)
        assert app.draft.recipe().adaptation is None, "off, whatever was typed in it"


async def test_questions_that_say_more_than_a_path_are_kept(app: TmergeApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        app.draft.set("evaluation.choices", [{"path": "a.jsonl", "name": "copa"}])
        app.goto("method")
        await settle(pilot)
        assert not [f for f in app.screen.query(OptionField) if f.option == "evaluation.choices"]
        said = [str(line.render()) for line in app.screen.query("Static.field").results(Static)]
        assert said == ["1 file of questions, as the recipe file has it"]
        app.draft.set("evaluation.choices", None)
        app.goto("data")
        await settle(pilot)
        app.goto("method")
        await settle(pilot)
        await put(pilot, "evaluation.choices", "one file.jsonl, /b.jsonl")
        assert app.draft.data()["evaluation"]["choices"] == ["one file.jsonl", "/b.jsonl"]


async def test_expert_view_toggles(app: TmergeApp) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.goto("method")
        await settle(pilot)
        simple = {f.option for f in app.screen.query(OptionField)}
        assert "transport.epsilon" in simple and "transport.solver" not in simple
        await pilot.press("f5")
        await settle(pilot)
        assert {f.option for f in app.screen.query(OptionField)} > simple
        await pilot.press("f5")
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
        await pilot.press("f6", "left", "enter")
        await settle(pilot)
        assert app.draft.values == {"source.model": "org/a"}
        assert field(app, "fusion.k").query_one(Input).value == "128"


async def test_the_estimate_follows(app: TmergeApp, probe: FakeProbe, models) -> None:
    async with app.run_test(size=(160, 50)) as pilot:
        app.draft.set("source.model", models["source"])
        app.draft.set("target.model", models["target"])
        app.goto("method")
        await settle(pilot, 0.2)
        assert "about 3 min 07 s on cpu   memory 1.2 GB   disk 340 MB" in screen_text(app)
        await pilot.press("ctrl+n")
        await settle(pilot)
        assert isinstance(app.screen, ReviewScreen)
