"""The two house themes. Every built-in theme of Textual can be chosen too; NO_COLOR turns all of them grey."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="tmerge-dark",
    dark=True,
    primary="#82aaff",
    secondary="#5e81c7",
    accent="#ffcb6b",
    success="#8fd694",
    warning="#f2b866",
    error="#f07178",
    foreground="#d5dbe8",
    background="#10141c",
    surface="#161c27",
    panel="#202938",
    variables={"border": "#34415a", "border-blurred": "#2a3548", "footer-key-foreground": "#ffcb6b"},
)

LIGHT = Theme(
    name="tmerge-light",
    dark=False,
    primary="#2456b3",
    secondary="#4a72bd",
    accent="#9a5b00",
    success="#22733a",
    warning="#8f5800",
    error="#b3261e",
    foreground="#1d2430",
    background="#f7f8fa",
    surface="#eef1f5",
    panel="#dfe4ec",
    variables={"border": "#aab4c4", "border-blurred": "#c3cad6", "footer-key-foreground": "#9a5b00"},
)

THEMES = (DARK, LIGHT)
