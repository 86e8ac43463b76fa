"""Reading PDDL: text to nested lists, and the typed problem inside a game.

Only data comes out; nothing of a file is ever run. Limits stop a hostile file early:
the length of the text, the depth of its brackets and the number of its words.
"""

from __future__ import annotations

import dataclasses
import re

from epo_jax.errors import UserError

MAX_CHARACTERS = 4_000_000
MAX_WORDS = 500_000
MAX_DEPTH = 40

_WORD = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")
_IDENTIFIER = re.compile(r"[a-z0-9_][a-z0-9_+\-.|]{0,199}")

Node = list  # a bracket: its words (str) and inner brackets (Node), in order


def words(text: str) -> list[str]:
    """The words and brackets of a PDDL text, lower-cased, comments left out. PDDL ignores case."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"the PDDL text has {len(text)} characters, more than {MAX_CHARACTERS}: it is no ALFWorld game")
    found = _WORD.findall(_COMMENT.sub("", text).lower())
    if len(found) > MAX_WORDS:
        raise UserError(f"the PDDL text has {len(found)} words, more than {MAX_WORDS}: it is no ALFWorld game")
    return found


def parse(text: str) -> Node:
    """The one outermost bracket of a PDDL text as nested lists. Raises UserError when brackets do not match."""
    stack: list[Node] = []
    current: Node = []
    for word in words(text):
        if word == "(":
            if len(stack) >= MAX_DEPTH:
                raise UserError(f"the PDDL text nests more than {MAX_DEPTH} brackets: it is no ALFWorld game")
            stack.append(current)
            current = []
        elif word == ")":
            if not stack:
                raise UserError("the PDDL text closes a bracket that was never opened")
            closed, current = current, stack.pop()
            current.append(closed)
        else:
            current.append(word)
    if stack:
        raise UserError("the PDDL text ends inside a bracket: the file is cut short")
    if len(current) != 1 or not isinstance(current[0], list):
        raise UserError("the PDDL text is not one bracketed definition")
    return current[0]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The parts of a PDDL problem.

    types: declared name -> its type. facts: predicate -> its argument tuples in the order of the
    file, each once. goal: the nested list of the goal formula.
    """

    types: dict[str, str]
    facts: dict[str, dict[tuple[str, ...], None]]
    goal: Node


def read_problem(text: str, domain: str, signatures: dict[str, tuple[str, ...]]) -> Problem:
    """Reads a PDDL problem of `domain` and checks each initial fact against `signatures`.

    signatures: predicate -> the types of its arguments ("" takes any type).
    Raises UserError on anything that such a problem cannot hold.
    """
    tree = parse(text)
    if len(tree) < 2 or tree[0] != "define":
        raise UserError("the problem does not start with (define (problem …))")
    sections: dict[str, Node] = {}
    for part in tree[1:]:
        if not isinstance(part, list) or not part or not isinstance(part[0], str):
            raise UserError("the problem holds something that is not a section")
        if part[0] in sections:
            raise UserError(f"the problem has two sections named {part[0][:40]!r}")
        sections[part[0]] = part[1:]
    unknown = set(sections) - {"problem", ":domain", ":objects", ":init", ":goal", ":requirements", ":metric"}
    if unknown:
        raise UserError(f"the problem has an unknown section {min(unknown)[:40]!r}")
    for needed in (":domain", ":objects", ":init", ":goal"):
        if needed not in sections:
            raise UserError(f"the problem has no {needed} section")
    if sections[":domain"] != [domain]:
        raise UserError(f"the problem belongs to another domain than {domain!r}")
    if len(sections[":goal"]) != 1 or not isinstance(sections[":goal"][0], list):
        raise UserError("the problem's goal is not one formula")
    types = _declared(sections[":objects"], {kind for kinds in signatures.values() for kind in kinds if kind})
    return Problem(types, _facts(sections[":init"], types, signatures), sections[":goal"][0])


def _declared(section: Node, known: set[str]) -> dict[str, str]:
    """`a b - type c - type` as {name: type}."""
    types: dict[str, str] = {}
    waiting: list[str] = []
    entries = iter(section)
    for entry in entries:
        if isinstance(entry, list):
            raise UserError("the problem's objects hold a bracket")
        if entry == "-":
            kind = next(entries, None)
            if not isinstance(kind, str) or kind not in known:
                raise UserError(f"the problem declares objects of an unknown type {str(kind)[:40]!r}")
            for name in waiting:
                if name in types:
                    raise UserError(f"the problem declares {name[:60]!r} twice")
                types[name] = kind
            waiting = []
        else:
            if not _IDENTIFIER.fullmatch(entry):
                raise UserError(f"the problem declares an object with an unusable name: {entry[:60]!r}")
            waiting.append(entry)
    if waiting:
        raise UserError(f"the problem declares {waiting[0][:60]!r} without a type")
    return types


def _facts(section: Node, types: dict[str, str], signatures: dict[str, tuple[str, ...]]) -> dict:
    facts: dict[str, dict[tuple[str, ...], None]] = {name: {} for name in signatures}
    for fact in section:
        if not isinstance(fact, list) or not fact or not isinstance(fact[0], str):
            raise UserError("the problem's initial state holds something that is not a fact")
        name, arguments = fact[0], fact[1:]
        if name == "=":  # a cost; costs change nothing in play
            continue
        signature = signatures.get(name)
        if signature is None:
            raise UserError(f"the problem's initial state has an unknown predicate {name[:40]!r}")
        if len(arguments) != len(signature):
            raise UserError(f"the fact {name!r} takes {len(signature)} arguments, here it has {len(arguments)}")
        for argument, kind in zip(arguments, signature):
            declared = types.get(argument) if isinstance(argument, str) else None
            if declared is None or (kind and declared != kind):
                raise UserError(f"the fact {name!r} names {str(argument)[:60]!r}, which is no declared {kind or 'object'}")
        facts[name][tuple(arguments)] = None
    return facts
