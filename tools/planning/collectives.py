"""What chips send each other in a compiled program, read from its HLO text: how often, and how many bytes, by kind.

A loop's body stands in the text once and runs many times: where the compiler knows how often (a scan over layers), so does the count. Loops of
unknown length (decoding, which may end early) count once, and both branches of a condition count.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) (" + "|".join(KINDS) + r")(?:-start)?\(")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^\]]*)\] \{([^}]*)\})")


@dataclasses.dataclass(frozen=True)
class Collective:
    """count: executions in one run of the program. bytes: over all of them, on one chip, of the larger side: the gathered, or the not yet
    scattered, array. A ring sends about as much (twice as much for an all-reduce)."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Collective) -> Collective:
        return Collective(self.count + other.count, self.bytes + other.bytes)

    def times(self, number: int) -> Collective:
        return Collective(self.count * number, self.bytes * number)


def collectives(text: str) -> dict[str, Collective]:
    """Kind -> what one run of the program does of it; kinds that do not occur are left out."""
    computations, entry = _computations(text)
    known: dict[str, dict[tuple[str, str], Collective]] = {}

    def total(name: str) -> dict[tuple[str, str], Collective]:
        if name in known:
            return known[name]
        found: dict[tuple[str, str], Collective] = {}
        own: dict[tuple[str, str], Collective] = {}  # all that comes from `shard_map` has one channel: what stands side by side adds up
        for line in computations.get(name, []):
            for key, amount in _own(line, computations[name]):
                own[key] = own.get(key, Collective()) + amount
            for called, times in _calls(line, computations):
                _join(found, {key: amount.times(times) for key, amount in total(called).items()})
        _join(found, own)
        known[name] = found
        return found

    sums: dict[str, Collective] = {}
    for (kind, _), amount in total(entry).items():
        sums[kind] = sums.get(kind, Collective()) + amount
    return dict(sorted(sums.items()))


def _join(found: dict[tuple[str, str], Collective], more: dict[tuple[str, str], Collective]) -> None:
    """One channel is one collective: TPU's compiler spreads it over several computations, to send while others compute."""
    for key, amount in more.items():
        found[key] = max(found.get(key, amount), amount, key=lambda one: one.count)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY")
    return computations, entry


def _own(line: str, beside: list[str]) -> Iterator[tuple[tuple[str, str], Collective]]:
    """The collective that a line is, if it is one, under its kind and channel. `beside`: the lines of its computation."""
    match = _OPERATION.match(line)
    if match is None:
        return
    kind, sizes = match[2], [_bytes(*array) for array in _ARRAY.findall(match[1])]
    size = max(sizes) if "-start(" in line else sum(sizes)  # a start also names its operand
    if kind == "reduce-scatter" and "-start(" not in line:
        size *= _group_size(line)
    if kind == "all-reduce" and len(beside) < 8 and any("ROOT" in other and "dynamic-slice(" in other for other in beside):
        kind = "reduce-scatter"  # TPU's compiler fuses it so
    channel = re.search(r"channel_id=(\d+)", line)
    yield (kind, channel[1] if channel else line), Collective(1, size)


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """The computations that a line runs, and how often."""
    trips = _trips(line, computations) if " while(" in line else 1
    for name in _CALLED.findall(line):
        yield name, trips
    for names in _BRANCHES.findall(line):
        for name in names.split(","):
            yield name.strip().lstrip("%"), 1


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """As the compiler notes it, or, where it does not (TPU), from a counter that starts at 0 and is compared with a constant; 1 if unknown."""
    if match := _TRIPS.search(line):
        return int(match[1])
    condition, body = (re.search(rf"\b{name}=%?([\w.\-]+)", line) for name in ("condition", "body"))
    if condition is None or body is None:
        return 1
    compared = _operands(_root(computations[condition[1]], "compare")) if "direction=LT" in _root(computations[condition[1]], "compare") else []
    limits = [number for name in compared if (number := _constant(computations[condition[1]], name))]
    place = next((int(match[1]) for name in compared if (match := re.search(r"index=(\d+)", _definition(computations[condition[1]], name)))), None)
    if not limits or place is None:
        return 1
    carried = _operands(_root(computations[body[1]], "tuple"))
    raised = _definition(computations[body[1]], carried[place]) if place < len(carried) else ""
    steps = [number for name in _operands(raised) if (number := _constant(computations[body[1]], name))] if " add(" in raised else []
    return math.ceil(limits[0] / (steps[0] if steps else 1))


def _root(lines: list[str], operation: str) -> str:
    return next((line for line in lines if line.lstrip().startswith("ROOT") and f" {operation}(" in line), "")


def _definition(lines: list[str], name: str) -> str:
    return next((line for line in lines if re.match(rf"\s+(?:ROOT )?%?{re.escape(name)} = ", line)), "")


def _constant(lines: list[str], name: str) -> int:
    match = re.search(r" constant\((\d+)\)", _definition(lines, name))
    return int(match[1]) if match else 0


def _operands(line: str) -> list[str]:
    match = re.search(r" (?:compare|tuple|add)\((.*?)\)(?:,|$)", line)
    return re.findall(r"%([\w.\-]+)", match[1]) if match else []


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return math.ceil(math.prod(int(size) for size in shape.split(",") if size) * bits / 8)


def _group_size(line: str) -> int:
    """Over how many chips a collective goes: replica_groups=[groups,size]<=..., {{0,1},...}, or mesh['a'=2,'b'=4] {'b'}."""
    match = _GROUPS.search(line)
    if match is None:
        return 1
    if match[3] is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[3])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", match[4]))
    return int(match[1]) if match[1] else len(match[2].split(","))
