"""The tags in SOTOPIA's texts: who may read what.

Scenarios and goals hold `<extra_info>`, `<clarification_hint>`, `<strategy_hint>` (everyone who may read the goal reads their content) and
`<p viewer="…">` (read by that viewer alone: "agent_0", "agent_1" or "environment"). A tag that is not known hides its content, and so does a
viewer's tag that is never closed: a damaged text shows too little rather than too much. An ampersand or a lone "<" is text.
"""

from __future__ import annotations

import collections
import re

_SHOWN = frozenset({"root", "p", "extra_info", "clarification_hint", "strategy_hint"})
_TAG = re.compile(r"<(/?)([A-Za-z_]\w*)(?:\s+viewer\s*=\s*(?:\"([^\"<>]*)\"|'([^'<>]*)'))?\s*>")


def visible(text: str, viewer: str) -> str:
    """What `viewer` reads of a text. "environment" (and so the evaluator) reads everything."""
    shown: list[str] = []
    open_tags: list[tuple[str, bool]] = []  # (name, whether its content is shown)
    open_names: collections.Counter[str] = collections.Counter()
    hidden = position = 0
    for tag in _TAG.finditer(text):
        if not hidden:
            shown.append(text[position : tag.start()])
        position = tag.end()
        closing, name, double, single = tag.groups()
        if closing:
            # Closes the innermost tag of that name and what was left open inside it; one that was never opened closes nothing.
            closed = None
            while open_names[name] and closed != name:
                closed, shows = open_tags.pop()
                open_names[closed] -= 1
                hidden -= not shows
        else:
            reader = double if double is not None else single
            shows = viewer == "environment" or (name in _SHOWN and reader in (None, viewer))
            open_tags.append((name, shows))
            open_names[name] += 1
            hidden += not shows
    if not hidden:
        shown.append(text[position:])
    return "".join(shown).strip()
