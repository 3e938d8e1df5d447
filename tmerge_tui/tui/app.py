"""The application that `tmerge` opens. torch is never imported in this process.

It knows the recipe, the event stream and the worker; model work is done by a helper process (`probe.Probe`), merges by
the worker. The first screen needs neither, so it paints at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from tmerge_tui import bundle, stopping
from tmerge_tui.errors import TmergeError
from tmerge_tui.system import HANGUP, has_terminal
from tmerge_tui.tui import storage
from tmerge_tui.tui.draft import Draft
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.theme import DARK, THEMES

if TYPE_CHECKING:
    from tmerge_tui.worker.spawn import Handle

SAVE_AFTER = 0.4  # seconds without a change before the draft is written


class TmergeApp(App[int]):
    """Home at the bottom of the stack; one wizard step, run or result above it."""

    TITLE = "tmerge"
    CSS_PATH = "tmerge.tcss"
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] = [(0, "-tiny"), (80, "-narrow"), (116, "-wide"), (144, "-broad")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] = [(0, "-flat"), (24, "-short"), (36, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "keys", "Help", id="app.help", key_display="?", tooltip="Keys of this screen"),
        Binding(
            "q", "leave", "Quit", id="app.quit", tooltip="Quit; a run in progress goes on unless you say otherwise"
        ),
        Binding("ctrl+q", "leave", "Quit", id="app.quit.anywhere", show=False, priority=True),
    ]

    def __init__(self, open_run: Path | None = None, probe: Probe | None = None) -> None:
        super().__init__()
        self.open_run = open_run
        self.probe = probe or Probe()
        self.draft = Draft.load(storage.read("draft"))
        self.attached: Path | None = None  # the live run that a screen shows
        self.started: list[Handle] = []  # workers of this process: kept, since only their parent sees how they end
        self.unpacked: float | None = 1.0  # share of the engine, 1 when there is nothing to unpack, None: it failed
        self._interrupted = 0.0
        for theme in THEMES:
            self.register_theme(theme)
        chosen = storage.read("settings").get("theme")
        self.theme = chosen if chosen in self.available_themes else DARK.name

    def on_mount(self) -> None:
        from tmerge_tui.tui.screens.home import Home

        self.push_screen(Home())
        self._leave_tidily()
        if not bundle.is_ready():
            self.unpacked = 0.0
            self.run_worker(self.engine_ready(), exit_on_error=False)
        if self.open_run is not None:
            self.show_run(self.open_run)
        self.theme_changed_signal.subscribe(self, lambda theme: self._keep("settings", {"theme": theme.name}))
        self._save_timer = self.set_timer(SAVE_AFTER, self.save_draft, pause=True)

    def _leave_tidily(self) -> None:
        """A kill or a closed terminal ends the wizard as quitting does, with the terminal restored."""
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP, and no handlers in the loop
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                if number is not None:
                    loop.add_signal_handler(number, partial(self.exit, return_code=128 + number))

    # the wizard's one piece of state

    def change(self, name: str, value: object) -> None:
        """Records a choice; it is written to disk when typing pauses."""
        self.draft.set(name, value)
        self._save_timer.stop()
        self._save_timer = self.set_timer(SAVE_AFTER, self.save_draft)

    def save_draft(self) -> None:
        self._keep("draft", self.draft.dump() if self.draft else {})

    def forget_draft(self) -> None:
        """The draft has become a run."""
        self.draft = Draft()
        self.save_draft()

    @work(thread=True, exit_on_error=False, group="storage")
    def _keep(self, name: str, data: dict) -> None:
        try:
            storage.write(name, data)
        except OSError as error:
            self.call_from_thread(
                self.notify, f"{error.strerror}: {storage.folder()}", title="Cannot remember this", severity="warning"
            )

    # the engine of a one-file executable

    async def engine_ready(self) -> bool:
        """Waits until the engine is unpacked; False, and said on the screen, when it cannot be."""
        try:
            await asyncio.to_thread(bundle.unpack, self._count)
        except TmergeError as error:
            self.unpacked = None
            self.notify(str(error), title="The engine cannot be unpacked", severity="error", timeout=20)
            return False
        self.unpacked = 1.0
        return True

    def _count(self, done: int, total: int) -> None:
        self.unpacked = min(done / total, 0.99)

    # where to go

    def goto(self, step: str) -> None:
        """One step of the wizard, in place of the one that is open. The draft carries what was typed."""
        from tmerge_tui.tui.screens import wizard_screen

        self.probe.start()
        self.draft.go(step)
        screen = wizard_screen(step)
        self.switch_screen(screen) if len(self.screen_stack) > 2 else self.push_screen(screen)

    @work(thread=True, exit_on_error=False, group="storage")
    def remember(self, path: Path) -> None:
        """Puts a run on the list of recent ones, named after its recipe."""
        from tmerge_tui.errors import RecipeError
        from tmerge_tui.recipe import load_recipe

        names = ["?", "?"]
        with contextlib.suppress(RecipeError):
            recipe = load_recipe(path / "recipe.yaml")
            names = [recipe.source.model, recipe.target.model]
        with contextlib.suppress(OSError):
            storage.remember_run(path.absolute(), *names)

    async def launch(self, path: Path) -> None:
        """Starts a worker for the recipe in `path` and shows its run. Raises RunFolderError, StorageError."""
        from tmerge_tui.run_folder import RunDir
        from tmerge_tui.tui.screens.run import RunScreen
        from tmerge_tui.worker.follow import Follower

        follower = Follower(
            RunDir(path), from_start=False
        )  # made first: it must not take an earlier end for this one's
        follower.worker = await self.start_worker(path)
        self._above_home(RunScreen(path, follower))

    async def start_worker(self, path: Path) -> Handle:
        """Raises RunFolderError, StorageError; waits for an engine that is being unpacked."""
        from tmerge_tui.run_folder import RunDir
        from tmerge_tui.worker import spawn

        await asyncio.to_thread(bundle.unpack, self._count)
        self.unpacked = 1.0
        self.started.append(spawn.start(RunDir(path)))
        return self.started[-1]

    def show_run(self, path: Path) -> None:
        """The run screen of a run folder: live, finished or dead."""
        from tmerge_tui.tui.screens.run import RunScreen

        self._above_home(RunScreen(path))

    def show_result(self, path: Path) -> None:
        from tmerge_tui.tui.screens.result import ResultScreen

        self._above_home(ResultScreen(path))

    def go_home(self) -> None:
        while len(self.screen_stack) > 2:
            self.pop_screen()

    def _above_home(self, screen: Screen) -> None:
        self.switch_screen(screen) if len(self.screen_stack) > 2 else self.push_screen(screen)

    @work(thread=True, exit_on_error=False, group="cancel")
    def cancel_run(self, path: Path) -> None:
        """Stops the worker of a run; takes up to a second and a half, so in a thread."""
        from tmerge_tui.run_folder import RunDir
        from tmerge_tui.worker import follow

        try:
            follow.cancel(RunDir(path))
        except TmergeError as error:
            self.call_from_thread(self.notify, str(error), title="Not cancelled", severity="error")

    # keys that work everywhere

    def action_keys(self) -> None:
        from tmerge_tui.tui.screens.help import KeysScreen

        if not isinstance(self.screen, KeysScreen):
            self.push_screen(KeysScreen(self.screen))

    @work(group="quit", exclusive=True)
    async def action_leave(self) -> None:
        """Quits; asks first when a run that this screen follows is still going."""
        if self.attached is not None:
            from tmerge_tui.tui.screens.ask import Ask

            answer = await self.push_screen_wait(
                Ask(
                    "A merge is running",
                    "It does not need this window: it goes on, and Home lists it when you come back.",
                    [("leave", "Leave it running"), ("cancel", "Cancel the merge"), ("stay", "Stay")],
                )
            )
            if answer == "cancel":
                self.cancel_run(self.attached)
            elif answer != "leave":
                return
        with contextlib.suppress(OSError):
            storage.write("draft", self.draft.dump() if self.draft else {})
        self.probe.kill()
        self.exit(0)

    def stop(self) -> NoReturn:
        """Ends this process, which is told to: runs go on, the draft is kept, the terminal is restored.

        Not by way of `exit`: a screen that is just being opened would then be closed half made, with a traceback.
        """
        with contextlib.suppress(OSError):
            storage.write("draft", self.draft.dump() if self.draft else {})
        if self._driver is not None:
            self._driver.suspend_application_mode()
        while True:  # until no thread is writing
            stopping.leave()
            time.sleep(0.01)

    def action_help_quit(self) -> None:
        """ctrl+c: says how to quit; pressed again at once, quits."""
        if time.monotonic() - self._interrupted < 2:
            self.action_leave()
            return
        self._interrupted = time.monotonic()
        self.notify("Press ctrl+c again to quit", timeout=2)

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        yield SystemCommand("Home", "Recent runs and this machine", self.go_home)
        for step, title in (("models", "Models"), ("data", "Data"), ("method", "Method"), ("review", "Review")):
            yield SystemCommand(f"Wizard: {title}", f"Go to the {title} step", lambda step=step: self.goto(step))
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.description and active.node is screen and active.enabled:
                yield SystemCommand(
                    binding.description, binding.tooltip or "", lambda a=binding.action: screen.run_action(a)
                )


def main(open_run: Path | None = None) -> int:
    """Opens the wizard, or one run of it; the exit code."""
    app = TmergeApp(open_run)
    with stopping.undone(app.probe.kill):
        return asyncio.run(_shown(app))


async def _shown(app: TmergeApp) -> int:
    """Shows the wizard until it is left, or until SIGINT, SIGTERM or SIGHUP: then the terminal is restored first."""
    loop = asyncio.get_running_loop()

    def stop(_: int) -> None:
        if has_terminal():
            loop.call_soon_threadsafe(app.stop)
        else:  # it has hung up: nothing to restore, and whoever writes to it waits forever
            stopping.leave()

    with stopping.handed(stop, *HANGUP):
        return await app.run_async() or 0
