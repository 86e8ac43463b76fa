"""Products and goals, and how one record of the original files becomes a product."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from epo_jax.errors import UserError

# What a product costs whose listing names no price, in dollars.
PRICE_UNKNOWN = 100.0
# An id longer than this is no product of the catalogue: the original leaves such records out.
MAX_ASIN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """What a person asked for when shown a product. options: the values they want, such as ("7.5",)."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """One listing.

    prices: dollars; one price, or the two ends of a range. price_tag: as pages show it.
    options: name -> values, all in lower case, in the listing's order. attributes: mined from the texts; shoppers do not see them.
    instruction: the synthetic one, without options and price; None where there is none.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[Instruction, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """What a shopper is sent for. options: the values wanted; option_names: whose they are, where that is known.

    price_upper: dollars; 1,000,000 where no limit is named. title, query, product_category: of the product it was made from.
    """

    asin: str
    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    option_names: tuple[str, ...] | None
    price_upper: float
    title: str
    query: str
    product_category: str


def product_of(record: Any, *, attributes: Any = None, human: Any = None) -> Product | None:
    """The product in a record of `items_shuffle*.json`; None for records that the original leaves out.

    attributes: the product's entry in `items_ins_v2*.json`; human: in `items_human_ins*.json`.
    Raises UserError (a clause without the file's name) for a record that is no product.
    """
    if not isinstance(record, dict):
        raise UserError("is no JSON object")
    asin = _text(record, "asin")
    if asin == "nan" or len(asin) > MAX_ASIN:
        return None
    prices, price_tag = _prices(record.get("pricing"))
    mined = attributes if isinstance(attributes, dict) else {}
    bullets = record.get("small_description", "")
    instructions = human if human is not None else record.get("instructions")
    return Product(
        asin=asin,
        title=_text(record, "name"),
        description=_text(record, "full_description"),
        bullets=_strings(bullets) if isinstance(bullets, list) else (str(bullets or ""),),
        prices=prices,
        price_tag=price_tag,
        options=_options(record.get("customization_options")),
        attributes=_strings(mined.get("attributes", ["DUMMY_ATTR"])),
        category=_text(record, "category"),
        query=_text(record, "query").lower().strip(),
        product_category=_text(record, "product_category"),
        instruction=mined.get("instruction"),
        instruction_attributes=_strings(mined.get("instruction_attributes")),
        human=_instructions(instructions),
    )


def _text(record: dict, field: str) -> str:
    if field not in record:
        raise UserError(f"has no {field!r}")
    value = record[field]
    return value if isinstance(value, str) else "" if value is None else str(value)


def _strings(values: Any) -> tuple[str, ...]:
    return tuple(str(value) for value in values) if isinstance(values, list) else ()


def _prices(pricing: Any) -> tuple[tuple[float, ...], str]:
    """The prices in "$12.99" or "$19.99 $27.99", and the tag that pages show."""
    found = []
    for part in pricing.split("$")[1:] if isinstance(pricing, str) else ():
        digits = re.sub(r"[^\d.]", "", part)
        try:
            found.append(float(digits))
        except ValueError:
            continue
    if not found:
        return (PRICE_UNKNOWN,), f"${PRICE_UNKNOWN}"
    if len(found) == 1:
        return (found[0],), f"${found[0]}"
    return tuple(found[:2]), f"${found[0]} to ${found[1]}"


def _options(customization: Any) -> dict[str, tuple[str, ...]]:
    """Option name -> values, as pages name them: lower case, "/" set apart as " | "."""
    options: dict[str, tuple[str, ...]] = {}
    if not customization:
        return options
    if not isinstance(customization, dict):
        raise UserError("has 'customization_options' that are no JSON object")
    for name, contents in customization.items():
        if contents is None:
            continue
        try:
            values = tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"has an option {name!r} without a 'value'") from None
        options[name.lower()] = values
    return options


def _instructions(human: Any) -> tuple[Instruction, ...]:
    found = []
    for entry in human if isinstance(human, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("instruction"), str):
            attributes, options = _strings(entry.get("instruction_attributes")), _strings(entry.get("instruction_options"))
            found.append(Instruction(entry["instruction"], attributes, options))
    return tuple(found)
