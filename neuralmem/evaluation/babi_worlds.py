"""Small worlds of persons, places and things, told in sentences, with a question whose answer follows from them.

Special: the answer comes from the simulated world and not from the sentences, so that a reader of the sentences alone
can check it (the tests have one); every story says which of its sentences the answer needs.
Source: the tasks are those of bAbI qa1-qa5 (Weston et al., 1502.05698); the worlds, and how they are told, are our own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")
THINGS = ("apple", "football", "milk")
MOVE = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
GRAB = ("picked up", "took", "grabbed", "got")
DROP = ("dropped", "put down", "left", "discarded")
GIVE = ("gave", "handed", "passed")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_TRIES = 10_000


class Story(NamedTuple):
    """Sentences in order, a question, its answer, and the numbers of the sentences that the answer needs."""

    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


class Task(NamedTuple):
    """How a task's stories are made, and what an answer can be."""

    make: Callable[[Random], Story]
    labels: tuple[str, ...]


class Event(NamedTuple):
    """What happened: a move to a place, a grab or drop of a thing at a place, or its gift to another person."""

    kind: str
    who: str
    what: str
    place: str
    other: str = ""


@dataclass
class World:
    """Where everybody and everything is. Persons are nowhere until they move; things lie at places nobody told of.

    Nobody takes and leaves the same thing at the same place again and again, for that would go nowhere.
    """

    random: Random
    people: tuple[str, ...]
    can_give: bool = False
    at: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)
    handled: dict[str, tuple[str, str]] = field(default_factory=dict)  # who had a thing in hands last, and where
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lies = {thing: self.random.choice(PLACES) for thing in THINGS}

    def step(self) -> None:
        """One more event: a move half of the time, else whatever else can happen."""
        handled = list(self._handling())
        if handled and self.random.random() < 0.5:
            event = self.random.choice(handled)
        else:
            who = self.random.choice(self.people)
            event = Event("move", who, "", self.random.choice([p for p in PLACES if p != self.at.get(who)]))
        self._do(event)
        self.events.append(event)

    def _handling(self) -> Iterator[Event]:
        for who, place in self.at.items():
            for thing in THINGS:
                again = self.handled.get(thing) == (who, place)
                if self.lies.get(thing) == place and not again:
                    yield Event("grab", who, thing, place)
                elif self.holder.get(thing) == who:
                    if not again:
                        yield Event("drop", who, thing, place)
                    yield from (
                        Event("give", who, thing, place, other)
                        for other in self.people
                        if self.can_give and other != who and self.at.get(other) == place
                    )

    def _do(self, event: Event) -> None:
        if event.kind == "move":
            self.at[event.who] = event.place
            return
        self.handled[event.what] = (event.other or event.who, event.place)
        if event.kind == "drop":
            del self.holder[event.what]
            self.lies[event.what] = event.place
        else:
            self.lies.pop(event.what, None)
            self.holder[event.what] = event.other or event.who

    def told(self) -> tuple[str, ...]:
        """The events as sentences."""
        return tuple(self._tell(event) for event in self.events)

    def _tell(self, event: Event) -> str:
        pick = self.random.choice
        if event.kind == "move":
            return f"{event.who} {pick(MOVE)} the {event.place}."
        if event.kind == "give":
            return f"{event.who} {pick(GIVE)} the {event.what} to {event.other}."
        return f"{event.who} {pick(GRAB if event.kind == 'grab' else DROP)} the {event.what}{pick(('', ' there'))}."

    def last(self, kind: str, who: str, before: int, what: str = "") -> int:
        """Number of the last such event before an event.

        Raises:
            ValueError: there is none.
        """
        for i in range(before - 1, -1, -1):
            event = self.events[i]
            if (event.kind, event.who) == (kind, who) and event.what == what:
                return i
        raise ValueError(f"{who} did not {kind} {what} before event {before}")


def _lived(random: Random, events: tuple[int, int], people: tuple[str, ...], can_give: bool = False) -> World:
    world = World(random, people, can_give)
    for _ in range(random.randint(*events)):
        world.step()
    return world


def _until(make: Callable[[], Story | None]) -> Story:
    """The first story that has a question."""
    for _ in range(_TRIES):
        if story := make():
            return story
    raise AssertionError("worlds without a question only")


def where_is_person(random: Random) -> Story:
    """qa1: one sentence tells where a person is."""
    at: dict[str, str] = {}
    events = []
    for _ in range(random.randint(2, 10)):
        person = random.choice(PEOPLE)
        at[person] = random.choice([place for place in PLACES if place != at.get(person)])
        events.append((person, at[person]))
    who = random.choice([person for person, _ in events])
    last = max(i for i, (person, _) in enumerate(events) if person == who)
    facts = tuple(f"{person} {random.choice(MOVE)} the {place}." for person, place in events)
    return Story(facts, f"Where is {who}?", at[who], (last,))


def where_is_thing(random: Random) -> Story:
    """qa2: one sentence tells who took or left a thing, another where that was or where it was carried."""

    def make() -> Story | None:
        world = _lived(random, (4, 20), PEOPLE)
        things = sorted({event.what for event in world.events if event.what})
        if not things:
            return None
        thing, end = random.choice(things), len(world.events)
        handled = max(i for i, event in enumerate(world.events) if event.what == thing)
        who = world.events[handled].who
        moved = world.last("move", who, end if world.events[handled].kind == "grab" else handled)
        answer = world.lies.get(thing) or world.at[who]
        return Story(world.told(), f"Where is the {thing}?", answer, tuple(sorted((handled, moved))))

    return _until(make)


def where_was_thing(random: Random) -> Story:
    """qa3: a thing was carried from one place to another; where was it before?"""

    def make() -> Story | None:
        world = _lived(random, (6, 40), PEOPLE)
        thing = random.choice(THINGS)
        been = list(_path(world, thing))  # (place, number of the event that brought it there)
        places = [place for place, _ in been]
        asked = [i for i in range(1, len(been)) if places.count(places[i]) == 1]
        if not asked:
            return None
        i = random.choice(asked)
        place, arrived = been[i]
        who = world.events[arrived].who
        support = {arrived, world.last("move", who, arrived), world.last("grab", who, arrived, thing)}
        return Story(world.told(), f"Where was the {thing} before the {place}?", places[i - 1], tuple(sorted(support)))

    return _until(make)


def _path(world: World, thing: str) -> Iterator[tuple[str, int]]:
    """Places where a thing has been, as far as it was told, each another than the one before."""
    held, place = "", ""
    for i, event in enumerate(world.events):
        if event.what == thing:
            held = event.who if event.kind == "grab" else ""
            now = event.place
        elif event.kind == "move" and event.who == held:
            now = event.place
        else:
            continue
        if now != place:
            yield now, i
        place = now


def which_direction(random: Random) -> Story:
    """qa4: two places lie around a third; what lies in a direction of one of them?"""
    middle, *around = random.sample(PLACES, 3)
    ways = random.sample(list(OPPOSITE), 2)  # around[i] lies ways[i] of the middle
    facts = tuple(_beside(place, way, middle, random) for place, way in zip(around, ways, strict=True))
    i = random.randrange(2)
    # Of three places in a line an outer one has two on its other side, so there the middle is asked from.
    if ways[0] == OPPOSITE[ways[1]] or random.random() < 0.5:
        anchor, answer, way = middle, around[i], ways[i]
    else:
        anchor, answer, way = around[i], middle, OPPOSITE[ways[i]]
    question = random.choice((f"What is {way} of the {anchor}?", f"What is the {anchor} {OPPOSITE[way]} of?"))
    return Story(facts, question, answer, (i,))


def _beside(place: str, way: str, middle: str, random: Random) -> str:
    told = (place, way, middle) if random.random() < 0.5 else (middle, OPPOSITE[way], place)
    return f"The {told[0]} is {told[1]} of the {told[2]}."


def who_gave_what(random: Random) -> Story:
    """qa5: a gift; what, by whom, or to whom."""

    def make() -> Story | None:
        world = _lived(random, (4, 20), GIVERS, can_give=True)
        gifts = [i for i, event in enumerate(world.events) if event.kind == "give"]
        if not gifts:
            return None
        at = random.choice(gifts)
        event = world.events[at]
        who, what, other = event.who, event.what, event.other
        question, known, answer = random.choice(
            (
                (f"What did {who} give to {other}?", {"who": who, "other": other}, what),
                (f"Who gave the {what} to {other}?", {"what": what, "other": other}, who),
                (f"Who did {who} give the {what} to?", {"who": who, "what": what}, other),
                (f"Who gave the {what}?", {"what": what}, who),
                (f"Who received the {what}?", {"what": what}, other),
            )
        )
        fitting = [i for i in gifts if all(getattr(world.events[i], name) == value for name, value in known.items())]
        return Story(world.told(), question, answer, (at,)) if fitting == [at] else None

    return _until(make)


TASKS = {
    "qa1": Task(where_is_person, PLACES),
    "qa2": Task(where_is_thing, PLACES),
    "qa3": Task(where_was_thing, PLACES),
    "qa4": Task(which_direction, PLACES),
    "qa5": Task(who_gave_what, (*GIVERS, *THINGS)),
}
