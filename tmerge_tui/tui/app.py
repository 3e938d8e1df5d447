"""The application that `tmerge` opens. torch is never imported in this process.

It knows the recipe, the event stream and the worker; model work is done by a helper process (`probe.Probe`), merges by
the worker. The first screen needs neither, so it paints at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.notifications import SeverityLevel
from textual.screen import Screen

from tmerge_tui import bundle, stopping
from tmerge_tui.errors import TmergeError
from tmerge_tui.system import HANGUP, has_terminal
from tmerge_tui.tui import storage
from tmerge_tui.tui.draft import Draft
from tmerge_tui.tui.helper import Probe
from tmerge_tui.tui.plain import Plain
from tmerge_tui.tui.theme import DARK, THEMES
from tmerge_tui.visible import visible

if TYPE_CHECKING:
    from tmerge_tui.recipe import Recipe
    from tmerge_tui.worker.spawn import Handle

SAVE_AFTER = 0.4  # seconds without a change before the draft is written
PLAIN = Plain()


class TmergeApp(App[int]):
    """Home at the bottom of the stack; one wizard step, run or result above it."""

    TITLE = "tmerge"
    CSS_PATH = "tmerge.tcss"
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] = [(0, "-tiny"), (60, "-narrow"), (116, "-wide"), (144, "-broad")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS: list[tuple[int, str]] = [(0, "-flat"), (20, "-short"), (36, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "keys", "Help", id="app.help", tooltip="Keys of this screen"),
        Binding("question_mark", "keys", "Help", id="app.help.too", show=False),
        Binding("q", "quit_from_here", "Quit", id="app.quit", tooltip="Quit; asks unless Home is open"),
        Binding("ctrl+q", "leave", "Quit", id="app.quit.anywhere", show=False, priority=True),
    ]

    def __init__(self, open_run: Path | None = None, probe: Probe | None = None) -> None:
        super().__init__()
        self.open_run = open_run
        self.probe = probe or Probe()
        self.draft = Draft.load(storage.read("draft"))
        self.scouted: tuple[dict[str, object], dict[str, Any]] | None = None  # (models and text, what scout found)
        self.attached: Path | None = None  # the live run that a screen shows
        self.started: list[Handle] = []  # workers of this process: kept, since only their parent sees how they end
        self.launched: list[Path] = []  # their runs
        self.left_running: list[Path] = []  # set on leaving, for the shell to say
        self.unpacked: float | None = 1.0  # share of the engine, 1 when there is nothing to unpack, None: it failed
        self._interrupted = 0.0
        for theme in THEMES:
            self.register_theme(theme)
        chosen = storage.read("settings").get("theme")
        self.theme = chosen if chosen in self.available_themes else DARK.name

    def on_mount(self) -> None:
        from tmerge_tui.tui.screens.home import Home

        self.push_screen(Home())
        if not bundle.is_ready():
            self.unpacked = 0.0
            self.run_worker(self.engine_ready(), exit_on_error=False)
        if self.open_run is not None:
            self.show_run(self.open_run)
        self.theme_changed_signal.subscribe(self, lambda theme: self._keep("settings", {"theme": theme.name}))
        self._save_timer = self.set_timer(SAVE_AFTER, self.save_draft, pause=True)

    # what is shown is text, wherever it came from

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), PLAIN]

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Messages name paths, models and errors: no markup unless it is asked for."""
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=markup)

    # the wizard's one piece of state

    def change(self, name: str, value: object) -> None:
        """Records a choice."""
        self.draft.set(name, value)
        self.changed()

    def changed(self) -> None:
        """The draft is written when typing pauses."""
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
        """Puts a run that was opened on the list of this machine."""
        from tmerge_tui.worker import run_index

        try:
            run_index.remember(path)
        except TmergeError as error:
            self.call_from_thread(self.notify, error.found, title="Cannot remember this", severity="warning")

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

    async def may_run(self, recipe: Recipe) -> bool:
        """Whether the code that comes with the recipe's models may run; asks when nobody has said so yet."""
        from tmerge_tui.tui.screens.ask import Ask
        from tmerge_tui.worker import trust

        names = trust.untrusted(recipe)
        if not names:
            return True
        text = f"{', '.join(names)}: it can do all that you can do on this machine. Allow it only if you have read it."
        title, answers = "Run Python code that comes with a model?", [("allow", "Allow it"), ("stay", "Do not run it")]
        if await self.push_screen_wait(Ask(title, text, answers, danger="allow")) != "allow":
            return False
        await asyncio.to_thread(trust.trust, names)
        return True

    async def start_worker(self, path: Path) -> Handle:
        """Raises RunFolderError, StorageError; waits for an engine that is being unpacked."""
        from tmerge_tui.run_folder import RunDir
        from tmerge_tui.worker import spawn

        await asyncio.to_thread(bundle.unpack, self._count)
        self.unpacked = 1.0
        self.started.append(spawn.start(RunDir(path)))
        self.launched.append(path)
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
    async def action_quit_from_here(self) -> None:
        """`q`: quits from Home; elsewhere a stray letter must not, so it asks."""
        from tmerge_tui.tui.screens.ask import Ask
        from tmerge_tui.tui.screens.home import Home

        if not isinstance(self.screen, Home) and not self.running():
            answers = [("leave", "Quit"), ("stay", "Stay")]
            text = "What you chose is kept for the next time. ctrl+q quits without asking."
            if await self.push_screen_wait(Ask("Quit tmerge?", text, answers, danger="")) != "leave":
                return
        await self.leave()

    @work(group="quit", exclusive=True)
    async def action_leave(self) -> None:
        await self.leave()

    def running(self) -> list[Path]:
        """Runs that are going on: those started here, and the one that is on the screen."""
        going = [path for path, handle in zip(self.launched, self.started, strict=True) if handle.returncode is None]
        attached = [self.attached] if self.attached is not None and self.attached not in going else []
        return going + attached

    async def leave(self) -> None:
        """Quits; asks first when a run is still going."""
        going = self.running()
        if going:
            from tmerge_tui.tui.screens.ask import Ask

            one = len(going) == 1
            answer = await self.push_screen_wait(
                Ask(
                    "A merge is running" if one else f"{len(going)} merges are running",
                    f"{'It does' if one else 'They do'} not need this window: tmerge watch shows "
                    f"{'it' if one else 'them'} in a shell, Home when you come back.",
                    [("leave", "Leave running"), ("cancel", "Cancel the merge"), ("stay", "Stay")],
                )
            )
            if answer == "cancel":
                for path in going:
                    await self.cancel_run(path).wait()
                going = []
            elif answer != "leave":
                return
        with contextlib.suppress(OSError):
            storage.write("draft", self.draft.dump() if self.draft else {})
        self.probe.kill()
        self.left_running = going
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
        """This screen's own keys first, then places, in the wizard's order, then what every screen has."""
        named: set[str] = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            told = binding.description in named or not binding.description
            if active.node is screen and active.enabled and not told:
                named.add(binding.description)
                yield SystemCommand(
                    binding.description, binding.tooltip or "", lambda a=binding.action: screen.run_action(a)
                )
        yield SystemCommand("Home", "Runs of this machine, and where to start", self.go_home)
        for number, step in enumerate(("models", "data", "method", "review"), 1):
            title = f"Wizard {number}: {step.capitalize()}"
            yield SystemCommand(title, f"Go to the {step.capitalize()} step", lambda step=step: self.goto(step))
        yield from (one for one in super().get_system_commands(screen) if one.title not in ("Keys", "Screenshot"))
        yield SystemCommand("Help", "Keys of this screen", self.action_keys)
        yield SystemCommand("Screenshot", "Save the screen as a picture (SVG) in this folder", self.action_picture)

    def action_picture(self) -> None:
        """Into the current folder, which every machine has; says where, or why not."""
        path = Path.cwd() / time.strftime("tmerge-%Y-%m-%d-%H%M%S.svg")
        try:
            path.write_text(self.export_screenshot(title="tmerge"), encoding="utf-8")
        except OSError as error:
            self.notify(f"{path}: {error.strerror}", title="No picture", severity="error")
            return
        self.notify(str(path), title="Saved")


def main(open_run: Path | None = None) -> int:
    """Opens the wizard, or one run of it; the exit code. What goes on without it is said in the shell."""
    app = TmergeApp(open_run)
    with stopping.undone(app.probe.kill):
        code = asyncio.run(_shown(app))
    for path in app.left_running:
        print(visible(f"a merge is still running: tmerge watch {shlex.quote(str(path))}"))
    return code


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
