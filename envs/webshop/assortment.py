"""What the project's own shop sells: kinds of products, what can be said of them, what can be chosen, what they cost."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of product. name: plural, as instructions say it; category: the way to it; options: keys of OPTION_VALUES.

    attributes: two-word phrases of which a product has some; prices: lowest and highest, dollars.
    """

    name: str
    category: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    prices: tuple[int, int]


# Values are chosen so that a wanted value counts once it is chosen (see reward.count_options), and no other passes for it.
OPTION_VALUES: dict[str, tuple[str, ...]] = {
    "color": ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow", "navy"),
    "size": ("small", "medium", "large", "3xl", "4xl"),
    "shoe size": ("6", "7", "8", "9", "10", "11", "12"),
    "bed size": ("twin", "full", "queen", "king"),
    "length": ("3 feet", "6 feet", "10 feet", "15 feet"),
    "scent": ("vanilla", "jasmine", "cedar", "citrus", "unscented"),
    "flavor": ("cocoa", "honey", "berry", "ginger", "salted"),
    "pack": ("single", "double", "triple", "dozen"),
}



def shown_name(option: str) -> str:
    """How pages call an option: shoes and beds have a "size" too."""
    return option.rpartition(" ")[2]


# Short words: titles are read by small models.
BRANDS = ("norvik", "alba", "tendo", "lumo", "carran", "pelli", "ostra", "quill", "rovan", "sombra", "tavi", "wexley", "yonda", "zephy")

_WEAR = ("machine wash", "hand wash", "quick drying", "slim fit", "loose fit", "elastic waist", "long sleeve", "short sleeve")
_SHOES = ("anti slip", "memory foam", "rubber sole", "steel toe", "arch support", "water resistant", "day comfort")
_CABLE = ("gold plated", "high speed", "fast charging", "heavy duty", "aluminum alloy", "easy carry")
_SOUND = ("noise cancelling", "long lasting", "fast charging", "hands free", "water resistant", "stereo sound")
_HOME = ("easy clean", "easy assemble", "heavy duty", "solid wood", "space saving", "eco friendly")
_BED = ("machine washable", "super soft", "fade resistant", "breathable cotton", "easy care", "wrinkle free")
_SKIN = ("cruelty free", "paraben free", "sensitive skin", "long lasting", "essential oils", "fragrance free")
_FOOD = ("gluten free", "sugar free", "low sodium", "non gmo", "dairy free", "high protein")

KINDS = (
    Kind("hiking boots", "Clothing › Shoes › Boots", _SHOES, ("color", "shoe size"), (40, 120)),
    Kind("running shoes", "Clothing › Shoes › Athletic", _SHOES, ("color", "shoe size"), (30, 110)),
    Kind("slippers", "Clothing › Shoes › Slippers", _SHOES, ("color", "shoe size"), (10, 40)),
    Kind("rain jackets", "Clothing › Outerwear › Jackets", _WEAR, ("color", "size"), (30, 90)),
    Kind("hoodies", "Clothing › Tops › Hoodies", _WEAR, ("color", "size"), (20, 60)),
    Kind("t-shirts", "Clothing › Tops › Shirts", _WEAR, ("color", "size"), (8, 30)),
    Kind("jeans", "Clothing › Pants › Jeans", _WEAR, ("color", "size"), (20, 70)),
    Kind("shorts", "Clothing › Pants › Shorts", _WEAR, ("color", "size"), (10, 40)),
    Kind("hdmi cables", "Electronics › Cables › Video", _CABLE, ("length", "pack"), (6, 30)),
    Kind("usb cables", "Electronics › Cables › Data", _CABLE, ("length", "color"), (5, 25)),
    Kind("phone chargers", "Electronics › Power › Chargers", _CABLE, ("color",), (10, 40)),
    Kind("headphones", "Electronics › Audio › Headphones", _SOUND, ("color",), (20, 150)),
    Kind("speakers", "Electronics › Audio › Speakers", _SOUND, ("color",), (15, 120)),
    Kind("coffee tables", "Home › Furniture › Tables", _HOME, ("color",), (60, 250)),
    Kind("bookcases", "Home › Furniture › Shelves", _HOME, ("color",), (40, 200)),
    Kind("night stands", "Home › Furniture › Bedroom", _HOME, ("color",), (30, 120)),
    Kind("bed sheets", "Home › Bedding › Sheets", _BED, ("color", "bed size"), (20, 80)),
    Kind("comforters", "Home › Bedding › Comforters", _BED, ("color", "bed size"), (30, 120)),
    Kind("curtains", "Home › Decor › Curtains", _BED, ("color", "length"), (15, 60)),
    Kind("candles", "Home › Decor › Candles", ("soy wax", "long lasting", "eco friendly", "lead free"), ("scent", "pack"), (6, 40)),
    Kind("body lotions", "Beauty › Skin › Lotions", _SKIN, ("scent", "pack"), (6, 35)),
    Kind("shampoos", "Beauty › Hair › Shampoos", _SKIN, ("scent", "pack"), (6, 30)),
    Kind("deodorants", "Beauty › Body › Deodorants", _SKIN, ("scent", "pack"), (4, 20)),
    Kind("protein bars", "Grocery › Snacks › Bars", _FOOD, ("flavor", "pack"), (8, 40)),
    Kind("crackers", "Grocery › Snacks › Crackers", _FOOD, ("flavor", "pack"), (4, 25)),
    Kind("tea bags", "Grocery › Drinks › Tea", _FOOD, ("flavor", "pack"), (4, 25)),
)
