"""The characters of the embedded set. All are made up.

A character's temper decides how it bargains when a scripted negotiator plays it (negotiator.py), and its personality says so in
words, for those who may read them: knowing one's partner helps.
"""

from __future__ import annotations

from envs.sotopia.people import Character

# id, first name, last name, age, occupation, gender, pronouns, temper, public information, personality, secret
_PEOPLE = (
    ("mira", "Mira", "Okafor", 34, "Bicycle Mechanic", "Woman", "She/her", "steady",
     "Mira runs a repair stall at the Saturday market.", "Mira is patient and fair, and comes to terms step by step.",
     "She has been offered a job abroad and has told nobody."),
    ("tomas", "Tomas", "Lind", 47, "Carpenter", "Man", "He/him", "stubborn",
     "Tomas builds kitchens and sings in a choir.", "Tomas is proud and unhurried; he hardly moves before the end.",
     "He cannot read without his late father's glasses."),
    ("yuki", "Yuki", "Arden", 26, "Illustrator", "Nonbinary", "They/them", "eager",
     "Yuki draws book covers and keeps two cats.", "Yuki dislikes quarrels and gives way early.",
     "They let a friend take the blame for a broken window years ago."),
    ("rafaela", "Rafaela", "Quist", 52, "Harbour Pilot", "Woman", "She/her", "impatient",
     "Rafaela guides ships into the harbour at night.", "Rafaela is brisk: she walks out on anybody who does not move.",
     "She once ran a ferry aground and another was blamed."),
    ("dario", "Dario", "Penn", 31, "Cook", "Man", "He/him", "mirror",
     "Dario cooks at a canteen and fishes on Sundays.", "Dario gives exactly as much as he gets.",
     "He buys the canteen's famous sauce in a shop."),
    ("noor", "Noor", "Salim", 39, "Pharmacist", "Woman", "She/her", "steady",
     "Noor plays chess in the park at noon.", "Noor plans ahead and moves in even steps.",
     "She writes angry letters to the paper under a false name."),
    ("anselm", "Anselm", "Roth", 63, "Retired Teacher", "Man", "He/him", "stubborn",
     "Anselm tends the allotment nearest the railway.", "Anselm holds to his word and waits for others to move.",
     "He has lost most of his savings on lottery tickets."),
    ("bea", "Bea", "Moreau", 22, "Student", "Woman", "She/her", "eager",
     "Bea studies geology and climbs.", "Bea is obliging and wants to be done quickly.",
     "She failed an examination and told her parents that she passed."),
    ("idris", "Idris", "Vale", 44, "Bus Driver", "Man", "He/him", "mirror",
     "Idris drives the number nine and repairs radios.", "Idris answers kindness with kindness and stubbornness with stubbornness.",
     "He sleeps in the depot because his flat was sold."),
    ("hanne", "Hanne", "Brook", 58, "Florist", "Woman", "She/her", "impatient",
     "Hanne's shop has stood at the corner for thirty years.", "Hanne has no time to waste and leaves when nothing moves.",
     "She means to close the shop at the end of the year."),
    ("piet", "Piet", "Calder", 29, "Surveyor", "Man", "He/him", "steady",
     "Piet measures land for the county and runs marathons.", "Piet reckons everything through and gives way evenly.",
     "He is allergic to the dog that his partner loves."),
    ("sol", "Sol", "Imani", 36, "Sound Engineer", "Nonbinary", "They/them", "eager",
     "Sol records village bands for nothing.", "Sol likes to please and settles soon.",
     "They have been hiding a hearing loss from everybody at work."),
    ("greta", "Greta", "Ulm", 41, "Accountant", "Woman", "She/her", "stubborn",
     "Greta keeps the books of half the street.", "Greta is exact, and does not like to move at all.",
     "She has not filed her own taxes for three years."),
    ("kwame", "Kwame", "Hurst", 33, "Physiotherapist", "Man", "He/him", "mirror",
     "Kwame coaches the junior rowing team.", "Kwame is fair to the ounce: step for step.",
     "He has never told his team that he cannot swim well."),
)  # fmt: skip

CHARACTERS = tuple(
    Character(id, first, last, age, occupation, gender, pronouns, public, personality, secret)
    for id, first, last, age, occupation, gender, pronouns, _, public, personality, secret in _PEOPLE
)
TEMPERS: dict[str, str] = {person[0]: person[7] for person in _PEOPLE}
