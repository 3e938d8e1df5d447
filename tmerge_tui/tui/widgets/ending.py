"""How a run has ended, and what can be done now."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Button

from tmerge_tui.tui.widgets.static import Static
from tmerge_tui.worker.follow import Ended
from tmerge_tui.worker.state import RunState


class Ending(Vertical):
    """Not there before the end. The buttons are answered by the screen."""

    def compose(self) -> ComposeResult:
        yield Static("", id="ending-text", markup=False)
        with Horizontal(id="ending-buttons"):
            yield Button("See the result", id="to-result", variant="primary", compact=True)
            yield Button("Change the recipe", id="to-edit", compact=True)
            yield Button("Resume", id="to-resume", variant="primary", compact=True)

    def show(self, ended: Ended, state: RunState, done: bool, has_result: bool) -> None:
        """`done`: as it should; `has_result`: there is a report, of this run or of an earlier one in its folder."""
        lines = told(ended, state)
        if has_result and not done:
            lines.append("The result of the earlier run is kept.")
        self.query_one("#ending-text", Static).update("\n".join(lines))
        self.query_one("#to-result").display = has_result
        self.query_one("#to-resume").display = self.query_one("#to-edit").display = not done
        if not self.has_class("-shown"):
            self.add_class("-shown")
            self.set_class(not done, "-bad")
            self.query_one("#to-result" if done else "#to-resume").focus()

    def hide(self) -> None:
        self.remove_class("-shown")


def told(ended: Ended, state: RunState) -> list[str]:
    """The lines that say what happened."""
    if ended.error is not None:
        return [ended.error.found, f"→ {ended.error.hint}"]
    if state.failed is not None:
        failed = state.failed
        lines = [f"{failed.kind}: {failed.message}"]
        lines += [f"expected: {failed.expected}"] if failed.expected else []
        return lines + ([f"→ {failed.hint}"] if failed.hint else [])
    if state.interrupted is not None:
        return ["The run was stopped. Finished pieces are kept: resume goes on where it stopped."]
    return [state.finished.verdict] if state.finished is not None else []
