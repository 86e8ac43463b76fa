"""Characters, and how much one knows of another."""

from __future__ import annotations

import dataclasses
import enum

UNKNOWN = "Unknown"
_ADJECTIVES = {"Man": "male", "Woman": "female", "Nonbinary": "nonbinary"}


class Relationship(enum.IntEnum):
    """How two characters stand to each other; the numbers are those of SOTOPIA's files."""

    STRANGER = 0
    KNOWN_BY_NAME = 1
    ACQUAINTANCE = 2
    FRIEND = 3
    ROMANTIC = 4
    FAMILY = 5


@dataclasses.dataclass(frozen=True)
class Character:
    """One character. Fields that a file leaves out are empty (age: None). secret: for nobody else to read, ever."""

    id: str
    first_name: str
    last_name: str = ""
    age: int | None = None
    occupation: str = ""
    gender: str = ""
    pronouns: str = ""
    public_info: str = ""
    personality: str = ""
    secret: str = ""

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}".strip()

    def own_background(self) -> str:
        """The biography as the character itself reads it."""
        parts = [self._public(), self._personality()]
        if self.secret:
            parts.append(f"{self.first_name}'s secrets: {self.secret}")
        return " ".join(part for part in parts if part)

    def background_for(self, relationship: Relationship) -> str:
        """What one who stands in `relationship` to this character knows of it.

        A stranger: nothing; one who knows the name: the name; an acquaintance: public information; friends and closer: personality too.
        """
        if relationship == Relationship.STRANGER:
            return UNKNOWN
        if relationship == Relationship.KNOWN_BY_NAME:
            return self.name
        if relationship == Relationship.ACQUAINTANCE:
            return self._public()
        return " ".join(part for part in (self._public(), self._personality()) if part)

    def _public(self) -> str:
        kind = " ".join(
            part for part in (f"{self.age}-year-old" if self.age else "", _ADJECTIVES.get(self.gender, ""), self.occupation.lower()) if part
        )
        article = "an" if kind[:1] in tuple("aeio") or kind.startswith(("8", "11-", "18-")) else "a"
        parts = [f"{self.name} is {article} {kind}." if kind else f"{self.name}."]
        if self.pronouns:
            parts.append(f"{self.pronouns} pronouns.")
        if self.public_info:
            parts.append(self.public_info)
        return " ".join(parts)

    def _personality(self) -> str:
        return f"Personality and values description: {self.personality}" if self.personality else ""
