"""Step 1: source and target side by side, and between them whether they can be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Input

from tmerge_tui.errors import TmergeError
from tmerge_tui.recipe import PROJECTIONS
from tmerge_tui.recipe.paths import GGUF
from tmerge_tui.tui import catalog
from tmerge_tui.tui.screens.page import WizardPage
from tmerge_tui.tui.screens.pick import PickFolder
from tmerge_tui.tui.widgets.card import ModelCard
from tmerge_tui.tui.widgets.verdict import Verdict

ROLES = ("source", "target")


class ModelsScreen(WizardPage):
    heading = "Models"
    sub_heading = "which model learns from which"
    step = "models"
    tips = (
        "Type to search the Hub, or the path of a folder; a page of the Hub can be pasted. Down goes into the list, "
        "enter takes a model, escape closes the list. Nothing is downloaded here."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "browse", "Browse", id="models.browse", tooltip="Open a model folder on this machine"),
        Binding("f3", "swap", "Swap", id="models.swap", tooltip="Source becomes target and target source"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, catalog.Found | None] = {}
        self.pending: set[str] = set()

    def body(self) -> ComposeResult:
        with Horizontal(id="pair"):
            yield ModelCard("source", self.wizard.probe)
            yield Verdict()
            yield ModelCard("target", self.wizard.probe)
        yield from self.buttons()

    def on_mount(self) -> None:
        for role in ROLES:
            self.card(role).choose(str(self.wizard.draft.get(f"{role}.model") or ""))
        self.card("source" if not self.wizard.draft.get("source.model") else "target").input.focus()

    def card(self, role: str) -> ModelCard:
        return self.query_one(f"#{role}", ModelCard)

    def on_model_card_typed(self, event: ModelCard.Typed) -> None:
        self.wizard.change(f"{event.role}.model", event.text)
        if event.text != self.card(event.role).chosen:
            self.workers.cancel_group(self, "verdict")
            self.query_one(Verdict).wait(f"choose the {event.role}: enter takes what is typed")
        else:
            self.judge()
        self.check_step()

    def on_model_card_named(self, event: ModelCard.Named) -> None:
        self.wizard.change(f"{event.role}.model", event.name)
        self.found.pop(event.role, None)
        if event.name:
            self.pending.add(event.role)
        self.query_one(Verdict).wait("reading …" if event.name else "choose a source and a target")
        self.check_step()

    def on_model_card_chosen(self, event: ModelCard.Chosen) -> None:
        self.found[event.role] = event.found
        self.pending.discard(event.role)
        self.judge()

    @work(exclusive=True, group="verdict", exit_on_error=False)
    async def judge(self) -> None:
        """Asks the helper process as soon as both models are known."""
        verdict = self.query_one(Verdict)
        named = [role for role in ROLES if self.wizard.draft.get(f"{role}.model")]
        if len(named) < 2:
            missing = [role for role in ROLES if role not in named]
            verdict.wait("choose a " + " and a ".join(missing))
            return
        if self.pending:
            return
        found = {role: self.found.get(role) for role in ROLES}
        bad = [role for role in ROLES if found[role] is None]
        if bad:
            said = f"the {' and the '.join(bad)} cannot be used"
            verdict.refuse(said, "its card says why")
            self._judged(said)
            return
        models: dict[str, Any] = {role: catalog.model_args(one) for role, one in found.items() if one is not None}
        try:
            said = await self.wizard.probe.ask("match", kinds=list(PROJECTIONS), **models)
        except TmergeError as error:
            verdict.refuse(error.found, error.hint)
            self._judged(error.found)
            return
        verdict.show(said)
        self._judged("" if said["kinds"] else "the two models have no projection in common")

    def _judged(self, wrong: str) -> None:
        self.wizard.draft.checked("models", wrong)
        self.check_step()

    def action_swap(self) -> None:
        names = {role: self.card(role).chosen for role in ROLES}
        self.card("source").choose(names["target"])
        self.card("target").choose(names["source"])

    @work
    async def action_browse(self) -> None:
        """For the card that has the focus."""
        role = next((r for r in ROLES if self.card(r).has_focus_within), "source")
        chosen = Path(self.card(role).chosen).expanduser()
        start = chosen.parent if self.card(role).chosen and chosen.is_dir() else Path.cwd()
        file = role == "source"  # a target is a folder, a source may be a GGUF file
        suffixes = (GGUF,) if file else ()
        picker = PickFolder(f"Folder of the {role} model", start, folders=True, suffixes=suffixes, either=file)
        path = await self.app.push_screen_wait(picker)
        if path is not None:
            self.card(role).choose(str(path))

    def action_next(self) -> None:
        for role in ROLES:  # a name still being typed counts
            card = self.card(role)
            if catalog.tidy(card.query_one(Input).value) != card.chosen:
                card.choose(card.query_one(Input).value)
        super().action_next()
