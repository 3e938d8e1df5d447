"""The two house themes; in both every ink has a contrast of at least 4.5 to every ground.

Every built-in theme of Textual can be chosen too; NO_COLOR turns all of them grey.
"""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="tmerge-dark",
    dark=True,
    primary="#82aaff",
    secondary="#7f9fde",
    accent="#ffcb6b",
    success="#8fd694",
    warning="#f2b866",
    error="#f07178",
    foreground="#d5dbe8",
    background="#10141c",
    surface="#161c27",
    panel="#202938",
    variables={
        "border": "#34415a",
        "border-blurred": "#2a3548",
        "footer-key-foreground": "#ffcb6b",
        "text-muted": "#9aa4b5",
        "text-disabled": "#9aa4b5",
    },
)

LIGHT = Theme(
    name="tmerge-light",
    dark=False,
    primary="#2354b0",
    secondary="#3a60a8",
    accent="#855000",
    success="#22733a",
    warning="#8f5800",
    error="#b3261e",
    foreground="#1d2430",
    background="#f7f8fa",
    surface="#eef1f5",
    panel="#dfe4ec",
    variables={
        "border": "#aab4c4",
        "border-blurred": "#c3cad6",
        "footer-key-foreground": "#855000",
        "text-muted": "#4d5664",
        "text-disabled": "#4d5664",
    },
)

THEMES = (DARK, LIGHT)
