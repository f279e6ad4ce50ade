"""Answers questions about small worlds from their sentences alone: what the generator's answers are checked against.

It shares nothing with the generator but the language of bAbI: it reads sentence by sentence and keeps who is where, who
holds what, where things have been, who gave what, and where places lie.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

THING = "(apple|football|milk)"
PERSON = "(Bill|Daniel|Fred|Jeff|John|Mary|Sandra)"
PLACE = "(bathroom|bedroom|garden|hallway|kitchen|office)"
MOVE = re.compile(rf"{PERSON} (?:moved|went|went back|journeyed|travelled) to the {PLACE}\.")
TAKE = re.compile(rf"{PERSON} (?:picked up|took|grabbed|got) the {THING}(?: there)?\.")
LEAVE = re.compile(rf"{PERSON} (?:dropped|put down|left|discarded) the {THING}(?: there)?\.")
GIVE = re.compile(rf"{PERSON} (?:gave|handed|passed) the {THING} to {PERSON}\.")
LIES = re.compile(rf"The {PLACE} is (north|south|east|west) of the {PLACE}\.")
ANY = re.compile("|".join(pattern.pattern for pattern in (MOVE, TAKE, LEAVE, GIVE, LIES)))


def sentences(text: str) -> list[str]:
    """The sentences about a world in a longer text, in order."""
    return [found.group() for found in ANY.finditer(text)]


def answer(facts: Iterable[str], question: str) -> str | None:
    """The answer, or None where the sentences do not tell it."""
    at: dict[str, str] = {}
    carries: dict[str, set[str]] = {}
    been: dict[str, list[str]] = {}
    gifts, map_ = [], {}

    def see(thing: str, place: str | None) -> None:
        if place and been.setdefault(thing, [])[-1:] != [place]:
            been[thing].append(place)

    for fact in facts:
        if m := MOVE.fullmatch(fact):
            at[m[1]] = m[2]
            for thing in carries.get(m[1], ()):
                see(thing, m[2])
        elif m := TAKE.fullmatch(fact):
            carries.setdefault(m[1], set()).add(m[2])
            see(m[2], at.get(m[1]))
        elif m := LEAVE.fullmatch(fact):
            carries.get(m[1], set()).discard(m[2])
            see(m[2], at.get(m[1]))
        elif m := GIVE.fullmatch(fact):
            carries.get(m[1], set()).discard(m[2])
            carries.setdefault(m[3], set()).add(m[2])
            gifts.append(m.groups())
        elif m := LIES.fullmatch(fact):
            map_[m[1], m[2]] = m[3]
            map_[m[3], {"north": "south", "south": "north", "east": "west", "west": "east"}[m[2]]] = m[1]
        else:
            raise AssertionError(f"not understood: {fact}")

    def one(found: list[str]) -> str | None:
        assert len(set(found)) <= 1, f"{question} has answers {found}"
        return found[0] if found else None

    if m := re.fullmatch(rf"Where is {PERSON}\?", question):
        return at.get(m[1])
    if m := re.fullmatch(rf"Where is the {THING}\?", question):
        return been.get(m[1], [None])[-1]
    if m := re.fullmatch(rf"Where was the {THING} before the {PLACE}\?", question):
        places = been.get(m[1], [])
        return one([a for a, b in pairwise(places) if b == m[2]])
    if m := re.fullmatch(rf"What is (north|south|east|west) of the {PLACE}\?", question):
        return one([place for (place, way), other in map_.items() if (way, other) == (m[1], m[2])])
    if m := re.fullmatch(rf"What is the {PLACE} (north|south|east|west) of\?", question):
        return one([other for (place, way), other in map_.items() if (place, way) == (m[1], m[2])])
    if m := re.fullmatch(rf"What did {PERSON} give to {PERSON}\?", question):
        return one([thing for who, thing, other in gifts if (who, other) == (m[1], m[2])])
    if m := re.fullmatch(rf"Who gave the {THING} to {PERSON}\?", question):
        return one([who for who, thing, other in gifts if (thing, other) == (m[1], m[2])])
    if m := re.fullmatch(rf"Who did {PERSON} give the {THING} to\?", question):
        return one([other for who, thing, other in gifts if (who, thing) == (m[1], m[2])])
    if m := re.fullmatch(rf"Who (gave|received) the {THING}\?", question):
        return one([who if m[1] == "gave" else other for who, thing, other in gifts if thing == m[2]])
    raise AssertionError(f"not understood: {question}")
