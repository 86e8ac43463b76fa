"""ALFRED's rules as the games carry them: predicates, the known rule texts, and the goals.

Every real game repeats one PDDL domain and one grammar (only the task's sentence differs), so the
engine implements that domain directly and recognises its texts by their fingerprint. A game with
other rules is refused rather than played wrongly.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re

from envs.alfworld import pddl
from epo_jax.errors import UserError

# predicate -> types of its arguments, lower-cased as in all of this package ("" takes any type)
SIGNATURES: dict[str, tuple[str, ...]] = {
    "atlocation": ("agent", "location"),
    "receptacleatlocation": ("receptacle", "location"),
    "objectatlocation": ("object", "location"),
    "openable": ("receptacle",),
    "opened": ("receptacle",),
    "inreceptacle": ("object", "receptacle"),
    "isreceptacleobject": ("object",),
    "inreceptacleobject": ("object", "object"),
    "isreceptacleobjectfull": ("object",),
    "wasinreceptacle": ("object", "receptacle"),
    "checked": ("",),
    "examined": ("location",),
    "receptacletype": ("receptacle", "rtype"),
    "cancontain": ("rtype", "otype"),
    "objecttype": ("object", "otype"),
    "full": ("receptacle",),
    "isclean": ("object",),
    "cleanable": ("object",),
    "ishot": ("object",),
    "heatable": ("object",),
    "iscool": ("object",),
    "coolable": ("object",),
    "pickupable": ("object",),
    "moveable": ("object",),
    "toggleable": ("object",),
    "ison": ("object",),
    "istoggled": ("object",),
    "sliceable": ("object",),
    "issliced": ("object",),
}

# ALFWorld json_2.1.1: sha256 of the domain's words (pddl.words, joined by blanks), and of the grammar's
# lines without the task sentence. Generated games carry the same texts.
ALFWORLD_DOMAIN = "e733dcfa5154f9d53cbe57f3a9538fac6258eb371abd658b6a15de4c28faa85f"
ALFWORLD_GRAMMAR = "8683da215098696e424be66148374f7451f86904207f95b43d4e5570af657dcd"

_SENTENCE = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*("(?:[^"\\\n]|\\[^\n])*")')
_ACTIVE = frozenset('#{}[]<>|;"\\')  # characters that a TextWorld grammar would act on
MAX_SENTENCE = 400

_OTHER_RULES = "which this engine does not know: use the games of ALFWorld's json_2.1.1 (alfworld-download)"


@functools.lru_cache(maxsize=8)
def check_domain(text: str) -> None:
    """Raises UserError unless `text` is a PDDL domain that the engine implements."""
    if _fingerprint(" ".join(pddl.words(text))) != ALFWORLD_DOMAIN:
        raise UserError(f"its pddl_domain is a set of rules {_OTHER_RULES}")


def task_sentence(grammar: str) -> str:
    """The task's sentence ("Your task is to: …") in a game's grammar; UserError on any other grammar."""
    found = _SENTENCE.search(grammar)
    if found is None:
        raise UserError(f"its grammar holds no task sentence and is one {_OTHER_RULES}")
    _check_grammar(grammar[: found.start(1)] + grammar[found.end(1) :])
    try:
        sentence = json.loads(found.group(1))
    except ValueError as error:
        raise UserError("its task sentence is no valid JSON string") from error
    return _check_sentence(sentence)


@functools.lru_cache(maxsize=8)
def _check_grammar(without_sentence: str) -> None:
    lines = (line.rstrip() for line in without_sentence.splitlines())
    if _fingerprint("\n".join(lines).strip()) != ALFWORLD_GRAMMAR:
        raise UserError(f"its grammar is one {_OTHER_RULES}")


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _check_sentence(sentence: str) -> str:
    """The sentence itself if it is plain, printable text; UserError otherwise."""
    if len(sentence) > MAX_SENTENCE or not sentence.strip() or not sentence.isprintable() or _ACTIVE & set(sentence):
        raise UserError(
            f"its task sentence is not plain text of at most {MAX_SENTENCE} characters: {sentence[:60]!r}"
        )
    return sentence


# --- goals -------------------------------------------------------------------------------------

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)


@dataclasses.dataclass(frozen=True)
class Goal:
    """What wins a game. Types are lower-case words without "type": "apple", "countertop".

    task_type: one of TASK_TYPES. target: the object's type. receptacle: where it must lie
    ("" when looking in light). lamp: the light's type ("" otherwise).
    """

    task_type: str
    target: str
    receptacle: str = ""
    lamp: str = ""

    @property
    def treatment(self) -> str:
        """"clean", "heat" or "cool" when the object must be treated first, else ""."""
        word = self.task_type.split("_")[1]
        return word if word in ("clean", "heat", "cool") else ""


def _treated(condition: str, able: str) -> str:
    return f"""(and (exists (?r - receptacle) (exists (?o - object) (and ({able} ?o) (objecttype ?o $target)
                (receptacletype ?r $receptacle) ({condition} ?o) (inreceptacle ?o ?r)))))"""


_TEMPLATES = {
    "pick_and_place_simple": """(and (exists (?r - receptacle) (exists (?o - object) (and
        (inreceptacle ?o ?r) (objecttype ?o $target) (receptacletype ?r $receptacle)))))""",
    "look_at_obj_in_light": """(and
        (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objecttype ?ot $lamp) (toggleable ?ot)
            (istoggled ?ot) (receptacleatlocation ?r ?l) (atlocation ?a ?l) (inreceptacle ?ot ?r)))
        (exists (?o - object ?a - agent) (and (objecttype ?o $target) (holds ?a ?o))))""",
    "pick_clean_then_place_in_recep": _treated("isclean", "cleanable"),
    "pick_heat_then_place_in_recep": _treated("ishot", "heatable"),
    "pick_cool_then_place_in_recep": _treated("iscool", "coolable"),
    "pick_two_obj_and_place": """(and (exists (?r - receptacle) (exists (?o1 - object) (and
        (objecttype ?o1 $target) (receptacletype ?r $receptacle) (inreceptacle ?o1 ?r) (exists (?o2 - object) (and
            (not (= ?o1 ?o2)) (objecttype ?o2 $target) (receptacletype ?r $receptacle) (inreceptacle ?o2 ?r)))))))""",
}
_PARSED_TEMPLATES = {name: pddl.parse(text) for name, text in _TEMPLATES.items()}


def recognise_goal(formula: pddl.Node) -> Goal:
    """The goal that a PDDL formula states; UserError when it is none of the six task types."""
    for task_type, template in _PARSED_TEMPLATES.items():
        holes: dict[str, str] = {}
        if _matches(template, formula, holes):
            return Goal(task_type, **{name: kind_word(value) for name, value in holes.items()})
    raise UserError("its goal is none of ALFWorld's six task types (tasks with slices or movable receptacles are not played)")


def _matches(template: pddl.Node | str, formula: pddl.Node | str, holes: dict[str, str]) -> bool:
    """Whether the formula is the template, its conjuncts in any order; fills the $holes."""
    if isinstance(template, str):
        if not isinstance(formula, str):
            return False
        if not template.startswith("$"):
            return template == formula
        return holes.setdefault(template[1:], formula) == formula
    if not isinstance(formula, list) or len(template) != len(formula):
        return False
    if template[0] != "and":
        return all(_matches(part, other, holes) for part, other in zip(template, formula))
    waiting = list(formula)
    for part in template:
        for index, other in enumerate(waiting):
            trial = dict(holes)
            if _matches(part, other, trial):
                holes.update(trial)
                del waiting[index]
                break
        else:
            return False
    return True


def kind_word(type_name: str) -> str:
    """"appletype" -> "apple": the word that the texts use for a type."""
    return type_name.removesuffix("type")
