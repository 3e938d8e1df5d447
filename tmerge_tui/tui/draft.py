"""The half-filled recipe of the wizard: what was typed, and nothing else.

`values` maps the recipe's dotted names to what the person chose (text as typed, lists for sets of choices). A name that
is absent means the default. `recipe()` validates the whole; `problems()` says what is wrong while typing.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from tmerge_tui import bundle
from tmerge_tui.errors import RecipeError

if TYPE_CHECKING:  # the recipe is imported when it is first asked for: the first screen does not wait for pydantic
    from tmerge_tui.recipe import Recipe

ROLES = ("source", "target")
OF_ORIGIN = ("path", "holdout_path", "repo_id", "revision", "config_name", "split", "column")  # of one text, no other
STEPS = ("models", "data", "method", "review", "run", "result")
SWITCHES = {  # sections that may be left out: as fields of their own, on or off
    "adaptation": "train the merged model afterwards, its transported part frozen; costs about what training the "
    "target on that text costs",
    "adaptation.teacher": "distil the source into the result itself: what it says comes next is in the loss",
    "adaptation.synthetic": "let the source write more text, learnt before the real text; needs epochs: auto",
    "adaptation.hints": "add transport hints to the loss of that training",
    "evaluation.general": "what was forgotten: measure on text of another kind than yours too",
    "evaluation.attribution": "where a gain comes from: the share of the gap closed where the source is much better",
    "evaluation.safety": "screen what the merge did to declining: prompts that a careful assistant declines, and "
    "harmless twins that it should answer",
}
BASIC = ("adaptation", "adaptation.teacher")  # switches that the basic view shows


@cache
def options() -> dict[str, Any]:
    """Dotted name -> field, of everything that can be chosen."""
    from tmerge_tui import recipe
    from tmerge_tui.recipe.section import option

    known: dict[str, Any] = {}
    for name, field in recipe.options():
        for switch, meaning in SWITCHES.items():
            if name.startswith(f"{switch}.") and switch not in known:
                known[switch] = option(False, meaning, expert=switch not in BASIC)
                known[switch].annotation = bool
        if name != "resolved":
            known[name] = field
    return known


MISSING = {
    "source: missing": "choose a source model",
    "target: missing": "choose a target model",
    "calibration: missing": "choose a text file or a data set",
    "output: missing": "choose an output folder",
}


class Draft:
    """Mutable on purpose: the wizard's one piece of state."""

    def __init__(self, values: dict[str, Any] | None = None, step: str = "models", reached: str = "models") -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.step = step if step in STEPS else "models"
        self._problems: list[str] | None = None  # of the values as they are; None when they have changed
        self.reached = reached if reached in STEPS else self.step  # the furthest step that was seen
        self._seen: dict[str, tuple[str, str]] = {}  # step -> (its values when it was checked, what was wrong)
        self.preset = ""  # the one that was taken
        self.before: dict[str, Any] = {}  # what it replaced; None where there was nothing

    @classmethod
    def load(cls, data: dict[str, Any]) -> Draft:
        values = data.get("values")
        known = {k: v for k, v in values.items() if k in options()} if isinstance(values, dict) else {}
        draft = cls(known, str(data.get("step")), str(data.get("reached")))
        before = data.get("before")
        if isinstance(before, dict):
            draft.preset = str(data.get("preset") or "")
            draft.before = {name: value for name, value in before.items() if name in options()}
        return draft

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Draft:
        """Everything that differs from the defaults, as a person would have typed it."""
        values: dict[str, Any] = {}
        data = recipe.model_dump(mode="json")
        data["evaluation"]["choices"] = [_short(choice) for choice in data["evaluation"]["choices"]]
        for name in options():
            chosen = _dig(data, name)
            if name in SWITCHES:
                chosen = chosen is not None
            if chosen is not None and chosen != default(name):
                values[name] = chosen
        return cls(values, "review", "review")

    def dump(self) -> dict[str, Any]:
        taken = {"preset": self.preset, "before": self.before} if self.preset else {}
        return {"version": 1, "step": self.step, "reached": self.reached, "values": self.values, **taken}

    def go(self, step: str) -> None:
        self.step = step
        self.reached = max(self.reached, step, key=STEPS.index)

    # what was checked, and with which values

    def checked(self, step: str, wrong: str = "") -> None:
        """The step has been tried as it stands: by reading models, text, or everything; `wrong` says what was found."""
        self._seen[step] = (self._values_of(step), wrong)

    def standing(self, step: str) -> Literal["checked", "refused", "open"]:
        """Whether the step was checked with the values that it has now, and how that went."""
        values, wrong = self._seen.get(step, ("", ""))
        if values != self._values_of(step) or step_problems(self, step):
            return "open"
        return "refused" if wrong else "checked"

    def refusal(self, step: str) -> str:
        """What the check of the step's present values found wrong; empty when it found nothing or was not made."""
        return self._seen[step][1] if self.standing(step) == "refused" else ""

    def _values_of(self, step: str) -> str:
        """Everything that a check of the step depends on."""
        sections = {"models": ("source", "target"), "data": ("calibration", "seed"), "review": ()}.get(step)
        if step == "method":  # the models too: k and layers are theirs
            mine = {n: v for n, v in self.values.items() if n.partition(".")[0] not in ("calibration", "output")}
        elif sections:
            mine = {n: v for n, v in self.values.items() if n.partition(".")[0] in sections}
        else:
            mine = self.values
        return json.dumps(mine, sort_keys=True, default=str)

    # presets

    def take_preset(self, name: str, roles: tuple[str, ...]) -> list[str]:
        """Everything that the preset says, of the models those in `roles`; the names that it has changed.

        What was there before is kept, and `leave_preset` brings it back.
        """
        self.leave_preset()
        from tmerge_tui.recipe.presets import read_preset

        wanted = {n: v for n, v in leaves(read_preset(name)) if n.partition(".")[0] not in ("output", *ROLES)}
        wanted |= {f"{role}.model": read_preset(name)[role] for role in roles}
        for switch in SWITCHES:
            on = any(each.startswith(f"{switch}.") for each in wanted)
            if on or switch.startswith("adaptation"):  # what else is measured is not a preset's to take away
                wanted[switch] = on
        others = [n for n in options() if n.startswith("calibration.") and n.partition(".")[2] in OF_ORIGIN]
        before = {n: self.values.get(n) for n in (*others, *wanted)}
        for other in others:
            self.set(other, None)
        for each, value in wanted.items():
            self.set(each, value)
        changed = [n for n, value in before.items() if self.values.get(n) != value]
        self.preset, self.before = name, {n: before[n] for n in changed}
        return changed

    def leave_preset(self) -> list[str]:
        """Takes back what the preset has set and nobody has changed since; the names of what was taken back."""
        if not self.preset:
            return []
        from tmerge_tui.recipe.presets import read_preset

        said = {n: v for n, v in leaves(read_preset(self.preset))}
        back = []
        for name, value in self.before.items():
            if name in SWITCHES or name not in said or same(self.get(name), said[name]):
                self.set(name, value)
                back.append(name)
        self.preset, self.before = "", {}
        return back

    def __bool__(self) -> bool:
        return bool(self.values)

    def get(self, name: str) -> Any:
        """What was chosen, else the default (None when there is none)."""
        return self.values.get(name, default(name))

    def set(self, name: str, value: Any) -> None:
        """The default itself means "not chosen"; so does nothing at all, unless None is a choice of its own."""
        self._problems = None
        empty = value is None or value == "" or (value == [] and default(name) is None)
        if empty and default(name) is not None and _optional(name):
            self.values[name] = None
        elif empty or value == default(name) or (default(name) != [] and str(value) == as_text(default(name))):
            self.values.pop(name, None)
        else:
            self.values[name] = value

    def data(self) -> dict[str, Any]:
        """The nested mapping that `make_recipe` takes."""
        nested: dict[str, Any] = {}
        for name, value in self.values.items():
            if not self.offers(name):
                continue
            *path, leaf = name.split(".")
            at = nested
            for part in path:
                at = at.setdefault(part, {})
            if name in SWITCHES:
                at.setdefault(leaf, {})
            else:
                at[leaf] = parse(name, value)
        return nested

    def offers(self, name: str) -> bool:
        """Whether every section that the field lies in is switched on; that of a method by the method itself."""
        section = name.partition(".")[0]
        methods = self.get("compare_methods") or [self.get("method")]
        if section in choices("method") and section not in methods:
            return False
        return all(self.values.get(switch) for switch in SWITCHES if name.startswith(f"{switch}."))

    def recipe(self) -> Recipe:
        """Raises RecipeError with every problem."""
        from tmerge_tui.recipe import make_recipe

        return make_recipe(self.data())

    def yaml(self) -> str:
        from tmerge_tui.recipe import dump_recipe

        return dump_recipe(self.recipe())

    def problems(self) -> list[str]:
        """What is wrong with the values as they are; asked several times a key, found once."""
        if self._problems is None:
            try:
                self.recipe()
                self._problems = []
            except RecipeError as error:
                self._problems = list(error.problems)
        return self._problems

    def problem_of(self, name: str) -> str:
        """The problem of one field, without its name; empty when it is well."""
        for problem in self.problems():
            where, _, message = problem.partition(": ")
            if where == name or (name not in SWITCHES and where.startswith(f"{name}.")):
                return message
        return ""


def demo_draft() -> Draft:
    """The bundled example; its models and text lie beside its recipe. Raises OSError, RecipeError."""
    from tmerge_tui.recipe import make_recipe
    from tmerge_tui.recipe.demo import demo_mapping

    data = demo_mapping(bundle.assets() / "demo")
    data["output"] = str(_free(Path("runs/demo")))
    return Draft.from_recipe(make_recipe(data))


def step_problems(draft: Draft, step: str) -> list[str]:
    """What still has to be chosen on one screen of the wizard."""
    sections = {
        "models": ("source", "target"),
        "data": ("calibration",),
        "method": tuple({n.partition(".")[0] for n in options()} - {"calibration", "output", *ROLES}),
        "review": ("output",),
    }.get(step, ())
    mine = [p for p in draft.problems() if p.partition(":")[0].partition(".")[0].strip() in sections]
    return [MISSING.get(problem, problem) for problem in mine]


def default(name: str) -> Any:
    """A field's default as JSON knows it; None for fields that must be given."""
    field = options()[name]
    if field.is_required():
        return None
    value = field.default
    return list(value) if isinstance(value, tuple) else value


def kind(name: str) -> str:
    """How a field is edited: "switch", "choice", "set", "list" or "text"."""
    annotation = _bare(options()[name].annotation)
    if annotation is bool:
        return "switch"
    if get_origin(annotation) is Literal:
        return "choice"
    if get_origin(annotation) is tuple:
        return "set" if get_origin(get_args(annotation)[0]) is Literal else "list"
    return "text"


def is_expert(name: str) -> bool:
    """Whether only the expert view shows it."""
    return bool((options()[name].json_schema_extra or {}).get("expert"))


def choices(name: str) -> tuple[str, ...]:
    """The values of a "choice" or "set"."""
    annotation = _bare(options()[name].annotation)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return tuple(str(value) for value in get_args(annotation))


def parse(name: str, value: Any) -> Any:
    """Text of a list field becomes a list; everything else is left to the recipe's own validation."""
    if isinstance(value, str) and name in options() and kind(name) == "list":
        if name == "evaluation.prompts":
            return [line.strip() for line in value.split("|") if line.strip()]
        if name == "evaluation.choices":
            return [path.strip() for path in value.replace("|", ",").split(",") if path.strip()]
        return [part for part in value.replace(",", " ").split() if part]
    return value


def leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a recipe's mapping; a model in its short form is its name."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield (f"{name}.model" if name in ("source", "target") else name), value


def titles(names: Iterable[str]) -> str:
    """Settings by name, in few words: `training, tasks, alpha`."""
    words = []
    for name in names:
        section, _, leaf = name.partition(".")
        word = "training" if section == "adaptation" else section if section in ROLES else leaf or section
        words.append(word.rpartition(".")[2].replace("_", " "))
    return ", ".join(dict.fromkeys(words))


def same(chosen: Any, said: Any) -> bool:
    """Whether two values mean the same, typed or not: `4` is 4.0, and `0, 1` the list of both."""
    return chosen == said or _plain(chosen) == _plain(said)


def _plain(value: Any) -> Any:
    text = as_text(value)
    try:
        return float(text)
    except ValueError:
        return text


def as_text(value: Any) -> str:
    """A value as it stands in an input."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return (" | " if any(" " in str(v) for v in value) else ", ").join(str(v) for v in value)
    return str(value)


def suggest_output(draft: Draft) -> str:
    """A run folder that does not exist yet, named after the two models."""
    parts = [Path(str(draft.get(f"{role}.model") or role)).name.split("@")[0].lower() for role in ("source", "target")]
    base = Path("runs") / "-into-".join(part[:32] for part in parts)
    return str(_free(base))


def _free(base: Path) -> Path:
    """`base`, or the first of base-2, base-3, ... that does not exist."""
    numbered = (base.with_name(f"{base.name}-{number}") for number in range(2, 1000))
    return next((path for path in (base, *numbered) if not path.exists()), base)


def _optional(name: str) -> bool:
    """Whether None is a value of this field."""
    annotation = options()[name].annotation
    return get_origin(annotation) in (types.UnionType, typing.Union) and type(None) in get_args(annotation)


def _dig(data: Any, name: str) -> Any:
    for part in name.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _short(choice: dict[str, Any]) -> Any:
    """A file of questions as it can be typed: its path, unless more is said about it."""
    return choice if any(value for key, value in choice.items() if key != "path") else choice["path"]


def _bare(annotation: Any) -> Any:
    """Without Annotated, and without an optional None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(rest) == 1:
            return _bare(rest[0])
    return annotation
