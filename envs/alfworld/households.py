"""What homes look like: which rooms hold which furniture, where things belong, and where they usually lie.

Types are ALFRED's names (AI2-THOR object types). Counted over the 3,693 games of ALFWorld's train and valid_seen splits
(json_2.1.1, MIT licence): `HABITS` is the share, in percent, of an object type's instances that lie on each receptacle type
in that kind of room; `CAN_CONTAIN` is the union of the games' `canContain` facts. The generator furnishes rooms by these
tables; the explorer searches by them, as a person knows that apples are kept in fridges.
"""

from __future__ import annotations

from typing import NamedTuple


def _table(text: str) -> dict[str, list[str]]:
    """`Key: word word` entries (a word that ends in a colon starts the next one) as a dict of word lists."""
    table: dict[str, list[str]] = {}
    words: list[str] = []
    for word in text.split():
        if word.endswith(":"):
            words = table.setdefault(word[:-1], [])
        else:
            words.append(word)
    return table


# Which object types may be put in or on a receptacle type.
_CAN_CONTAIN = """
    ArmChair: Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
    BathtubBasin: Cloth DishSponge HandTowel SoapBar
    Bed: BaseballBat BasketBall Book CellPhone Laptop Pillow TennisRacket
    Cabinet: Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug Newspaper Pan
        PepperShaker Plate Plunger Pot SaltShaker SoapBar SoapBottle SprayBottle TissueBox ToiletPaper Vase
        WateringCan WineBottle
    Cart: Candle Cloth DishSponge HandTowel Plunger SoapBar SoapBottle SprayBottle TissueBox ToiletPaper
    CoffeeMachine: Mug
    CoffeeTable: Book Bowl Box Candle CellPhone CreditCard KeyChain Laptop Newspaper Pen Pencil Plate
        RemoteControl Statue TissueBox Vase Watch WateringCan
    CounterTop: AlarmClock Apple Book Bowl Bread ButterKnife CD Candle CellPhone Cloth CreditCard Cup DishSponge
        Egg Fork Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug Pan Pen Pencil
        PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle
        Statue TissueBox ToiletPaper Tomato Vase WineBottle
    Desk: AlarmClock BasketBall Book Bowl Box CD CellPhone Cloth CreditCard KeyChain Laptop Mug Pen Pencil
        RemoteControl Statue TennisRacket TissueBox Vase Watch WateringCan
    DiningTable: AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone
        Cloth CreditCard Cup DishSponge Egg Fork Glassbottle Kettle KeyChain Knife Ladle Laptop Lettuce Mug
        Newspaper Pan Pen Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBottle Spatula Spoon
        SprayBottle Statue TennisRacket TissueBox Tomato Vase Watch WateringCan WineBottle
    Drawer: Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain Knife Ladle
        Newspaper Pen Pencil PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle
        TissueBox ToiletPaper Watch WateringCan
    Dresser: AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard KeyChain Laptop Mug
        Newspaper Pen Pencil Plate RemoteControl SprayBottle Statue TennisRacket TissueBox ToiletPaper Vase
        Watch WateringCan
    Fridge: Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle
    GarbageCan: Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper Pen Pencil Potato SoapBar
        SoapBottle SprayBottle TissueBox ToiletPaper Tomato WineBottle
    HandTowelHolder: HandTowel
    LaundryHamper: Cloth
    Microwave: Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato
    Ottoman: Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
    Safe: CD CellPhone CreditCard KeyChain Statue Vase
    Shelf: AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle HandTowel
        Kettle KeyChain Mug Newspaper Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker SoapBar
        SoapBottle SprayBottle Statue TissueBox ToiletPaper Vase Watch WateringCan WineBottle
    SideTable: AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle CellPhone Cloth
        CreditCard Cup DishSponge Egg Fork HandTowel Kettle KeyChain Knife Laptop Lettuce Mug Newspaper Pan Pen
        Pencil PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon
        SprayBottle Statue TennisRacket TissueBox ToiletPaper Tomato Vase Watch WateringCan WineBottle
    SinkBasin: Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle Knife Ladle
        Lettuce Mug Pan Plate Pot Potato SoapBar Spatula Spoon Tomato
    Sofa: Book Box CellPhone CreditCard KeyChain Laptop Newspaper Pillow RemoteControl
    StoveBurner: Kettle Pan Pot
    TVStand: TissueBox
    Toilet: Candle Cloth DishSponge HandTowel SoapBar SoapBottle SprayBottle TissueBox ToiletPaper
    ToiletPaperHanger: ToiletPaper
    TowelHolder: Towel
"""
CAN_CONTAIN: dict[str, frozenset[str]] = {place: frozenset(things) for place, things in _table(_CAN_CONTAIN).items()}

_HABITS = {
    "kitchen": """
        Apple: CounterTop 24 Fridge 24 DiningTable 15 Microwave 13 GarbageCan 12 SinkBasin 9 SideTable 2
        Book: CounterTop 64 Cabinet 15 DiningTable 12 Drawer 6 Shelf 4
        Bowl: Cabinet 36 CounterTop 21 Fridge 21 DiningTable 15 SinkBasin 3 Microwave 3 Shelf 2
        Bread: CounterTop 56 DiningTable 31 Fridge 12 SideTable 1 GarbageCan 1
        ButterKnife: CounterTop 58 DiningTable 27 Drawer 8 SinkBasin 6 SideTable 1
        CellPhone: Drawer 43 CounterTop 40 DiningTable 17
        CreditCard: CounterTop 46 Drawer 37 Shelf 17
        Cup: Cabinet 23 CounterTop 21 Fridge 21 DiningTable 15 SinkBasin 10 Microwave 7 SideTable 2 Shelf 2
        DishSponge: CounterTop 26 Cabinet 24 Drawer 21 DiningTable 13 SinkBasin 8 GarbageCan 6 Shelf 3 SideTable 1
        Egg: Fridge 25 CounterTop 24 SinkBasin 13 GarbageCan 13 DiningTable 12 Microwave 12 SideTable 2
        Fork: CounterTop 44 DiningTable 24 Drawer 22 SinkBasin 9 SideTable 2
        Glassbottle: Cabinet 33 CounterTop 29 DiningTable 15 SinkBasin 10 Fridge 9 Shelf 4
        Kettle: StoveBurner 42 CounterTop 26 Cabinet 24 DiningTable 7 SinkBasin 2
        Knife: CounterTop 49 DiningTable 25 Drawer 21 SinkBasin 5 SideTable 1
        Ladle: CounterTop 42 Cabinet 25 Drawer 17 DiningTable 14 SinkBasin 2
        Lettuce: CounterTop 41 DiningTable 29 Fridge 23 SinkBasin 5 SideTable 1 GarbageCan 1
        Mug: CounterTop 28 CoffeeMachine 17 Cabinet 15 Fridge 14 DiningTable 10 Microwave 7 SinkBasin 6 Shelf 1 SideTable 1
        Pan: StoveBurner 52 CounterTop 33 Cabinet 7 DiningTable 4 Fridge 4
        Pen: CounterTop 40 DiningTable 35 Drawer 20 GarbageCan 5
        Pencil: Drawer 40 CounterTop 30 DiningTable 20 GarbageCan 9
        PepperShaker: Cabinet 33 CounterTop 31 DiningTable 16 Drawer 15 Shelf 3 SideTable 2
        Plate: Cabinet 40 CounterTop 30 DiningTable 16 Fridge 9 SinkBasin 2 Shelf 2 Microwave 1
        Pot: StoveBurner 73 CounterTop 14 Fridge 4 DiningTable 4 Cabinet 3
        Potato: CounterTop 29 Fridge 26 DiningTable 16 SinkBasin 11 Microwave 10 GarbageCan 6 SideTable 1
        SaltShaker: CounterTop 32 Cabinet 32 DiningTable 17 Drawer 14 Shelf 3 SideTable 2
        SoapBottle: CounterTop 32 Cabinet 30 DiningTable 21 GarbageCan 10 Shelf 3 SideTable 1 Drawer 1
        Spatula: CounterTop 45 DiningTable 25 Drawer 21 SinkBasin 9 SideTable 1
        Spoon: CounterTop 37 Drawer 28 DiningTable 22 SinkBasin 11 SideTable 2
        SprayBottle: Cabinet 33 CounterTop 33 DiningTable 22 GarbageCan 12
        Statue: CounterTop 51 Shelf 44 DiningTable 5
        Tomato: Fridge 33 CounterTop 30 DiningTable 20 GarbageCan 9 SinkBasin 7 SideTable 2
        Vase: CounterTop 34 Shelf 32 Cabinet 31 DiningTable 3
        WineBottle: CounterTop 37 Cabinet 25 DiningTable 24 GarbageCan 9 Shelf 3 Fridge 2
    """,
    "bathroom": """
        Candle: CounterTop 31 Toilet 30 Cabinet 13 Drawer 13 Shelf 7 SideTable 2 Cart 2 Dresser 1
        Cloth: BathtubBasin 30 Cabinet 20 CounterTop 16 Drawer 15 SinkBasin 8 Shelf 5 Toilet 3 Cart 2 Dresser 1
        DishSponge: CounterTop 19 Drawer 19 BathtubBasin 19 SinkBasin 11 Shelf 9 Toilet 8 Cart 6 Cabinet 5 GarbageCan 4
        HandTowel: HandTowelHolder 96 CounterTop 4
        SoapBar: CounterTop 20 Toilet 15 SinkBasin 15 Cabinet 12 BathtubBasin 12 Drawer 11 GarbageCan 7 Shelf 4 SideTable 2 Cart 1
        SoapBottle: CounterTop 30 Toilet 24 Cabinet 21 Shelf 10 GarbageCan 9 Drawer 3 Cart 1 SideTable 1
        SprayBottle: CounterTop 32 Toilet 26 Cabinet 16 GarbageCan 10 Shelf 7 Cart 4 SideTable 3 Dresser 2
        TissueBox: CounterTop 35 Shelf 30 Drawer 20 Cabinet 5 Cart 4 SideTable 4 Toilet 2
        ToiletPaper: Toilet 23 CounterTop 22 ToiletPaperHanger 12 Cabinet 12 Drawer 11 GarbageCan 9 Shelf 6 Dresser 2 Cart 2 SideTable 1
        Towel: TowelHolder 100
    """,
    "bedroom": """
        AlarmClock: Desk 34 Shelf 21 SideTable 19 Dresser 17 DiningTable 7 CounterTop 1
        Book: Bed 51 Desk 19 Drawer 12 Dresser 5 SideTable 4 Cabinet 3 DiningTable 2 ArmChair 2 Shelf 2
        Bowl: Desk 43 Shelf 30 Dresser 14 DiningTable 6 SideTable 4 CounterTop 2
        Box: Desk 57 Shelf 43
        CD: Drawer 29 Desk 20 Dresser 14 SideTable 13 GarbageCan 8 Shelf 7 DiningTable 6 Cabinet 2 Safe 1
        CellPhone: Bed 29 Desk 18 Drawer 17 SideTable 10 Dresser 10 Shelf 8 DiningTable 3 ArmChair 3 Safe 2 CounterTop 1
        CreditCard: Drawer 30 Shelf 18 Desk 17 SideTable 16 Dresser 12 DiningTable 3 ArmChair 3 CounterTop 1
        DeskLamp: Desk 36 SideTable 29 Dresser 25 Shelf 11
        KeyChain: Drawer 26 Desk 18 Shelf 16 SideTable 16 Dresser 13 DiningTable 4 Safe 4 ArmChair 3
        Laptop: Bed 74 Desk 18 Dresser 4 DiningTable 2 ArmChair 1 CounterTop 1
        Mug: Desk 36 Shelf 18 SideTable 16 Dresser 15 DiningTable 10 Cabinet 4 CounterTop 2
        Pen: Desk 28 Drawer 18 Shelf 16 Dresser 15 SideTable 14 DiningTable 7 GarbageCan 2 CounterTop 1
        Pencil: Desk 24 Drawer 18 SideTable 18 Shelf 17 Dresser 12 DiningTable 6 GarbageCan 5 CounterTop 1
        Pillow: Bed 99 ArmChair 1
        RemoteControl: Drawer 34 Desk 29 SideTable 14 CounterTop 8 ArmChair 6 DiningTable 5 Dresser 3 Shelf 1
        Statue: Shelf 44 Dresser 26 Desk 25 SideTable 5
        TissueBox: Desk 38 Drawer 25 DiningTable 15 Shelf 12 SideTable 9 Dresser 2
        Vase: Shelf 45 Dresser 35 Desk 11 SideTable 9
        Watch: Drawer 31 Shelf 20 DiningTable 16 Desk 15 Dresser 12 SideTable 6
    """,
    "living room": """
        Book: CoffeeTable 29 Dresser 24 Sofa 16 ArmChair 11 SideTable 9 DiningTable 9 Drawer 2
        Bowl: DiningTable 48 CoffeeTable 33 SideTable 10 Shelf 9
        Box: DiningTable 26 Sofa 25 CoffeeTable 23 SideTable 9 Cabinet 4 Dresser 4 Shelf 4 ArmChair 3 Desk 1 Ottoman 1
        Candle: SideTable 43 CoffeeTable 30 DiningTable 22 Drawer 3 Dresser 2
        CellPhone: Dresser 19 CoffeeTable 17 SideTable 17 Drawer 14 Sofa 14 DiningTable 9 ArmChair 5 Ottoman 3 Shelf 2 Desk 1
        CreditCard: Sofa 21 CoffeeTable 16 ArmChair 14 Drawer 14 SideTable 12 DiningTable 10 Dresser 7 Shelf 6 Ottoman 1
        DeskLamp: SideTable 100
        KeyChain: CoffeeTable 22 Drawer 17 SideTable 17 Sofa 14 ArmChair 9 DiningTable 8 Dresser 6 Shelf 5 Ottoman 1
        Laptop: Sofa 29 CoffeeTable 26 DiningTable 22 Dresser 8 SideTable 8 ArmChair 5 Ottoman 2
        Newspaper: Sofa 20 CoffeeTable 18 DiningTable 18 SideTable 15 Shelf 11 Dresser 8 ArmChair 7 Drawer 2 Ottoman 1
        Pen: CoffeeTable 36 SideTable 23 Dresser 22 Drawer 6 DiningTable 4 GarbageCan 4 Shelf 4
        Pencil: SideTable 35 CoffeeTable 31 Drawer 10 Dresser 7 GarbageCan 6 Shelf 6 DiningTable 4
        Pillow: Sofa 80 ArmChair 19
        Plate: DiningTable 51 CoffeeTable 23 Shelf 13 SideTable 11 Dresser 1
        RemoteControl: CoffeeTable 26 Sofa 21 SideTable 14 DiningTable 12 Dresser 9 ArmChair 9 Drawer 4 Shelf 4 Ottoman 1
        Statue: CoffeeTable 27 DiningTable 22 Shelf 21 SideTable 21 Dresser 8
        TissueBox: CoffeeTable 36 DiningTable 20 SideTable 19 Shelf 11 TVStand 7 Drawer 3 Dresser 2 GarbageCan 2
        Vase: Shelf 38 CoffeeTable 21 DiningTable 16 SideTable 12 Dresser 11 Cabinet 2
        Watch: CoffeeTable 29 Drawer 23 SideTable 21 DiningTable 12 Dresser 11 Shelf 4
        WateringCan: CoffeeTable 53 Shelf 38 SideTable 9
    """,
}
# room -> object type -> receptacle type -> percent of its instances found there.
HABITS: dict[str, dict[str, dict[str, int]]] = {
    room: {
        thing: {place: int(share) for place, share in zip(words[::2], words[1::2], strict=True)}
        for thing, words in _table(text).items()
    }
    for room, text in _HABITS.items()
}

OPENABLE = frozenset("Cabinet Drawer Fridge Microwave Safe".split())
CLEANABLE = frozenset(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato "
    "SoapBar Spatula Spoon Tomato".split()
)
HEATABLE = frozenset("Apple Bread Cup Egg Mug Plate Potato Tomato".split())
COOLABLE = frozenset("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle".split())
SLICEABLE = frozenset("Apple Bread Egg Lettuce Potato Tomato".split())
VESSELS = frozenset("Bowl Box Cup Mug Pan Plate Pot".split())  # ALFRED's `isReceptacleObject`
LAMPS = frozenset(["DeskLamp"])  # cannot be carried

# Every type that ALFRED's problems declare.
OBJECT_TYPES = """
    AlarmClock Apple BaseballBat BasketBall Bathtub Blinds Book Boots Bowl Box Bread ButterKnife CD Candle
    CellPhone Chair Cloth CreditCard Cup Curtains DeskLamp DishSponge Egg FloorLamp Footstool Fork Glassbottle
    HandTowel HousePlant Kettle KeyChain Knife Ladle Laptop LaundryHamperLid Lettuce LightSwitch Mirror Mug
    Newspaper Painting Pan PaperTowel PaperTowelRoll Pen Pencil PepperShaker Pillow Plate Plunger Poster Pot
    Potato RemoteControl SaltShaker ScrubBrush ShowerDoor ShowerGlass Sink SoapBar SoapBottle Spatula Spoon
    SprayBottle Statue StoveKnob TeddyBear Television TennisRacket TissueBox ToiletPaper ToiletPaperRoll Tomato
    Towel Vase Watch WateringCan Window WineBottle
""".split()
RECEPTACLE_TYPES = """
    ArmChair BathtubBasin Bed Cabinet Cart CoffeeMachine CoffeeTable CounterTop Desk DiningTable Drawer Dresser
    Fridge GarbageCan HandTowelHolder LaundryHamper Microwave Ottoman PaintingHanger Safe Shelf SideTable
    SinkBasin Sofa StoveBurner TVStand Toaster Toilet ToiletPaperHanger TowelHolder
""".split()


class Furniture(NamedTuple):
    """How many of one receptacle type a room has, from `least` to `most`."""

    receptacle: str
    least: int
    most: int


def _furniture(text: str) -> tuple[Furniture, ...]:
    entries = (entry.split() for entry in text.split(","))
    return tuple(Furniture(receptacle, int(least), int(most)) for receptacle, least, most in entries)


# size -> room -> its furniture. `full` follows the counts in the real scenes, `small` suits a model of a few million parameters.
ROOMS: dict[str, dict[str, tuple[Furniture, ...]]] = {
    "small": {
        "kitchen": _furniture(
            "Fridge 1 1, Microwave 1 1, SinkBasin 1 1, CounterTop 1 1, Cabinet 1 3, DiningTable 0 1, Drawer 0 2, "
            "CoffeeMachine 0 1, GarbageCan 0 1"
        ),
        "bathroom": _furniture(
            "SinkBasin 1 1, Toilet 1 1, CounterTop 1 1, Cabinet 1 3, Drawer 0 2, Shelf 0 1, GarbageCan 0 1, "
            "BathtubBasin 0 1, ToiletPaperHanger 0 1"
        ),
        "bedroom": _furniture(
            "Bed 1 1, Desk 1 1, Drawer 2 3, Shelf 0 2, SideTable 0 1, Dresser 0 1, GarbageCan 0 1, ArmChair 0 1, Safe 0 1"
        ),
        "living room": _furniture(
            "Sofa 1 1, CoffeeTable 1 1, SideTable 1 1, Drawer 1 3, ArmChair 0 1, DiningTable 0 1, Shelf 0 1, Dresser 0 1, "
            "GarbageCan 0 1"
        ),
    },
    "full": {
        "kitchen": _furniture(
            "Cabinet 2 20, CoffeeMachine 1 1, CounterTop 1 3, DiningTable 0 2, Drawer 1 12, Fridge 1 1, GarbageCan 1 1, "
            "Microwave 1 1, Shelf 0 3, SideTable 0 1, SinkBasin 1 1, StoveBurner 4 4, Toaster 1 1"
        ),
        "bathroom": _furniture(
            "BathtubBasin 0 1, Cabinet 0 6, CounterTop 1 2, Drawer 0 6, GarbageCan 1 1, HandTowelHolder 1 2, Shelf 0 3, "
            "SinkBasin 1 2, Toilet 1 1, ToiletPaperHanger 1 1, TowelHolder 1 2"
        ),
        "bedroom": _furniture(
            "ArmChair 0 1, Bed 1 2, Cabinet 0 3, Desk 1 1, Drawer 2 9, Dresser 0 1, GarbageCan 1 1, LaundryHamper 0 1, "
            "Safe 0 1, Shelf 0 6, SideTable 0 2"
        ),
        "living room": _furniture(
            "ArmChair 0 2, Cabinet 0 4, CoffeeTable 1 1, DiningTable 0 1, Drawer 0 6, Dresser 0 1, GarbageCan 1 1, "
            "Ottoman 0 1, Shelf 0 6, SideTable 1 3, Sofa 1 2, TVStand 0 1"
        ),
    },
}
