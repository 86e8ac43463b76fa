"""Accelerators by name: how many chips, how they are wired, and what one of them holds and computes.

    v5p:2x2x1      a TPU topology as its compiler knows it
    v5p-8          the same as Cloud TPU sells it: v5p counts cores, two a chip; v5e and v6e count chips
    h100:8         GPUs of one machine; 8xh100 is the same
"""

from __future__ import annotations

import dataclasses
import math
import re

from epo_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """hbm: bytes that a program can use. flops: peak of dense bfloat16 products, a second."""

    name: str
    hbm: float
    flops: float
    tpu: bool = True
    dimensions: int = 2  # of the network between chips
    cores: int = 1  # that the product's name counts for a chip


# TPUs: bytes as the compiler's own "ran out of memory" names them, FLOP/s as cloud.google.com/tpu/docs gives them. GPUs: data sheets; a
# twentieth is left to the driver and to fragmentation.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 197e12),
        Chip("v5p", 95.73 * GIB, 459e12, dimensions=3, cores=2),
        Chip("v6e", 31.24 * GIB, 918e12),
        Chip("a100", 0.95 * 80e9, 312e12, tpu=False),
        Chip("h100", 0.95 * 80e9, 989e12, tpu=False),
        Chip("h200", 0.95 * 141e9, 989e12, tpu=False),
    )
}

# Cloud TPU's slices, by number of chips; a dimension is 1, 2 or a multiple of 4 (v5p), or a power of 2.
SHAPES_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SHAPES_3D = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`count` chips of one kind. shape: of a TPU's network, "" for GPUs."""

    chip: Chip
    count: int
    shape: str = ""

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{self.shape or self.count}"

    @property
    def host(self) -> Topology:
        """The chips of one machine, which one process has: all, but of a TPU slice of several machines four."""
        if not self.chip.tpu or self.count <= (8 if self.chip.dimensions == 2 else 4):
            return self
        return Topology(self.chip, 4, "2x2" if self.chip.dimensions == 2 else "2x2x1")

    @property
    def processes(self) -> int:
        return self.count // self.host.count


def topology(name: str) -> Topology:
    """The chips that a name stands for. Raises `UserError` for a name of none."""
    text = name.strip().lower()
    if match := re.fullmatch(r"(\d+)\s*[x×]\s*([a-z]+\d+[a-z]?)", text):
        text = f"{match[2]}:{match[1]}"
    if match := re.fullmatch(r"([a-z]+\d+[a-z]?)([:-])(\d+(?:x\d+)*)", text):
        chip, separator, size = CHIPS.get(match[1]), match[2], match[3]
        if chip is None:
            raise UserError(f"no chip {match[1]!r} is known for --topology={name}: choose one of {', '.join(CHIPS)}.")
        if not chip.tpu and "x" not in size and int(size) > 0:
            return Topology(chip, int(size))
        if chip.tpu and separator == "-" and "x" not in size:
            return _slice(name, chip, int(size))
        sizes = [int(part) for part in size.split("x")]
        if chip.tpu and separator == ":" and len(sizes) == chip.dimensions and min(sizes) > 0:
            return Topology(chip, math.prod(sizes), size)
    raise UserError(f"--topology={name} names no chips: write v5p:2x2x1 (a TPU's shape), v5e-16 (a slice by its product name), or h100:8 (GPUs).")


def _slice(name: str, chip: Chip, number: int) -> Topology:
    shapes = SHAPES_2D if chip.dimensions == 2 else SHAPES_3D
    shape = shapes.get(number // chip.cores) if number % chip.cores == 0 else None
    if shape is None:
        sold = ", ".join(f"{chip.name}-{count * chip.cores}" for count in shapes)
        raise UserError(f"there is no slice {name}: choose one of {sold}, or give a shape, as in {chip.name}:{next(iter(shapes.values()))}.")
    return Topology(chip, number // chip.cores, shape)
