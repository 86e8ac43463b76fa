"""Text from models and environments, made fit to stand in a prompt: it can say anything, and change nothing of the prompt's structure.

Servers render messages with a chat template and read the result with a tokenizer that often takes `<|im_end|>`, `</s>` or `[INST]` inside
a message for the real thing. So such markers are broken by a space, which people and models read over. What cannot be seen (control
characters, marks that turn the direction of writing, zero-width and private characters, lone surrogates) is removed, and length is bounded.
The project's own delimiters are tags, which are broken by the same rule.
"""

from __future__ import annotations

import re
import unicodedata

CUT = " … (cut)"

_TAG = re.compile(r"<(?=\S)")  # "<|im_start|>", "</s>", "<strategy>", "<｜User｜>"; "< Prev" and "Next >" stay as they are
_BRACKET_ROLES = re.compile(
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS|THINK|IMG|MODEL_SETTINGS|gMASK|sMASK)\b)",
    re.IGNORECASE,
)
_LINE_ENDS = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})


def plain(text: str, limit: int) -> str:
    """`text` without invisible characters and live markers, at most `limit` characters (and the words that say that it was cut)."""
    cut = len(text) > limit
    text = _LINE_ENDS.sub("\n", text[:limit])
    # Removing what is invisible comes first, so that nothing joins into a marker afterwards.
    text = "".join(character for character in text if character in "\n\t" or unicodedata.category(character) not in _INVISIBLE)
    text = _BRACKET_ROLES.sub("[ ", _TAG.sub("< ", text))
    return text + CUT if cut else text


def one_line(text: str, limit: int) -> str:
    """As `plain`, in one line: every run of white space is one space."""
    return " ".join(plain(text, limit).split())
