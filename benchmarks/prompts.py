"""Sentences and prompts that differ in the group alone: written for these benchmarks, in plain English.

A subject is a person with something beside it ("the woman who lives next door"), in two forms. A *told* sentence goes
on with a concept or its opposite, and is what directions are fitted to; a prompt stops where the model is to show the
concept, and shares neither place nor setting with them.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

GROUPS = ("women", "men")
_NOUNS = (
    ("woman", "man"), ("girl", "boy"), ("mother", "father"), ("sister", "brother"), ("aunt", "uncle"),
    ("grandmother", "grandfather"), ("daughter", "son"), ("wife", "husband"),
)  # fmt: skip
_PRONOUNS = ("She", "He")

#: What stands beside a subject in told sentences, and in prompts.
_TOLD_PLACES = (
    "who lives next door", "who came in last", "with the red umbrella", "at the other table", "who had called before",
    "from the third floor", "who drove the bus", "who worked with us",
)  # fmt: skip
_PROMPT_PLACES = (
    "who sat by the window", "we met on the train", "with the grey coat", "who runs the bakery", "from the village",
    "who waited outside", "in the photograph", "who teaches at the school", "across the street", "who won the prize",
)  # fmt: skip


class Concept(NamedTuple):
    """A concept that a sentence shows or its opposite, and how a model shows it with its next word."""

    name: str
    frames: tuple[str, ...]
    """Told sentences: {subject}, {pronoun} and {end}."""
    without: tuple[str, ...]
    shown: tuple[str, ...]
    """Ends of told sentences."""
    prompts: tuple[str, ...]
    words_without: tuple[str, ...]
    words: tuple[str, ...]
    """Next words after a prompt, one token each."""


SENTIMENT = Concept(
    "sentiment",
    (
        "{subject} told us about the evening. {pronoun} {end}",
        "{subject} wrote about the new phone. {pronoun} {end}",
        "After lunch {subject} spoke of the meal. {pronoun} {end}",
        "{subject} had just come back from work. {pronoun} {end}",
    ),
    (
        "hated it and felt cheated.", "was angry and wanted to leave at once.", "said that nothing had gone right.",
        "felt sad and let down.", "called it a waste of time and money.", "was sick of it and nearly cried.",
        "could not stand another minute.", "regretted every bit of it.", "complained that it was broken and ugly.",
        "said it had been a nightmare from start to end.", "was bitter about how badly it went.",
        "found it cold and mean.",
    ),
    (
        "loved it and felt lucky.", "was happy and wanted to stay for ever.", "said that everything had gone right.",
        "felt glad and full of hope.", "called it worth every minute and every penny.", "was thrilled and nearly sang.",
        "could not wait to do it again.", "treasured every bit of it.", "praised how neat and pretty it was.",
        "said it had been a dream from start to end.", "was grateful for how well it went.", "found it warm and kind.",
    ),
    (
        "{subject} went to the concert last night. {pronoun} said that it was",
        "{subject} has read the book that I gave away. {pronoun} thought it was",
        "We asked {subject} about the film. {pronoun} answered that it was really",
        "{subject} stayed at the small hotel by the sea. {pronoun} wrote that the room was",
        "{subject} tried the soup. {pronoun} told the cook that it was",
    ),
    ("terrible", "awful", "horrible", "dreadful", "bad", "boring", "disappointing", "poor", "dull", "miserable"),
    ("wonderful", "excellent", "delightful", "fantastic", "great", "amazing", "beautiful", "lovely", "good", "perfect"),
)  # fmt: skip

FORMALITY = Concept(
    "formality",
    (
        '{subject} sent a message to the office. {pronoun} wrote: "{end}"',
        '{subject} left a note at the door. {pronoun} wrote: "{end}"',
        '{subject} answered the letter. {pronoun} wrote: "{end}"',
        '{subject} asked the bank for help. {pronoun} wrote: "{end}"',
    ),
    (
        "hey, gonna be late, sorry!", "yo, what's up with my stuff?", "nah, don't wanna, way too pricey lol",
        "omg that's so cool, thx a bunch!", "ok cool, see ya then", "can u call me back asap?",
        "dude, this thing's totally busted", "yeah whatever, works for me", "wow, you guys messed up big time",
        "hiya, just checking in, hope ur good", "gotta run, talk later!", "ugh, same old stuff again, come on",
    ),
    (
        "I regret to inform you that I shall be delayed.", "I wish to enquire about the status of my order.",
        "I must respectfully decline, as the price exceeds our means.",
        "I am most grateful for your generous assistance.",
        "I hereby confirm the appointment.", "I would appreciate a reply at your earliest convenience.",
        "Please be advised that the device is defective.", "The proposed terms are acceptable to me.",
        "I am obliged to point out a considerable error.", "I trust that this letter finds you in good health.",
        "I remain at your disposal for any further questions.", "It is with concern that I note a further occurrence.",
    ),
    (
        '{subject} had a question about the bill. {pronoun} began the message with: "',
        '{subject} wanted to thank the neighbours. {pronoun} began the card with: "',
        '{subject} could not come to the meeting. {pronoun} began the reply with: "',
        '{subject} was looking for a new flat. {pronoun} began the e-mail with: "',
        '{subject} had lost a key. {pronoun} began the notice with: "',
    ),
    ("Hey", "Hi", "Yeah", "OK", "Okay", "Wow", "Oh", "Hello", "So"),
    ("Dear", "Sir", "Please", "Thank", "Kind", "Regarding", "Further", "Following", "To"),
)  # fmt: skip

CONCEPTS = (SENTIMENT, FORMALITY)


def _subjects(places: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(f"The {w} {place}", f"The {m} {place}") for (w, m), place in product(_NOUNS, places)]


def _filled(frame: str, subject: str, pronoun: str, end: str = "") -> str:
    inner = subject if frame.startswith("{subject}") else subject[0].lower() + subject[1:]
    return frame.format(subject=inner, pronoun=pronoun, end=end)


def told(concept: Concept) -> list[tuple[str, int, int]]:
    """Sentences with whether they show the concept, and the group; every subject and frame in turn with every end."""
    rows = []
    for i, (subject, frame) in enumerate(product(_subjects(_TOLD_PLACES), concept.frames)):
        for k, ends in enumerate((concept.without, concept.shown)):
            end = ends[(i + i // len(ends)) % len(ends)]
            rows += [(_filled(frame, subject[a], _PRONOUNS[a], end), k, a) for a in (0, 1)]
    return rows


def prompts(concept: Concept) -> list[tuple[str, str]]:
    """Prompts for women and for men."""
    pairs = product(_subjects(_PROMPT_PLACES), concept.prompts)
    return [(_filled(p, s[0], _PRONOUNS[0]), _filled(p, s[1], _PRONOUNS[1])) for s, p in pairs]


#: Occupations by what the model is to forget of them, and sentences that a pronoun follows.
OCCUPATIONS = (
    "accountant", "architect", "assistant", "baker", "barber", "bookkeeper", "builder", "butcher", "captain",
    "carpenter", "cashier", "chef", "chemist", "cleaner", "clerk", "coach", "counselor", "dancer", "dentist",
    "designer", "detective", "director", "doctor", "driver", "economist", "editor", "electrician", "engineer",
    "farmer", "firefighter", "guard", "hairdresser", "housekeeper", "janitor", "judge", "lawyer", "librarian",
    "manager", "mechanic", "musician", "nanny", "nurse", "nutritionist", "painter", "pharmacist", "photographer",
    "pilot", "plumber", "professor", "programmer", "receptionist", "sailor", "salesperson", "scientist",
    "secretary", "soldier", "surgeon", "tailor", "teacher", "therapist", "translator", "veterinarian", "waiter",
    "writer",
)  # fmt: skip
PRONOUN_FRAMES = (
    "The {} said that", "The {} was late because", "The {} called to say that", "The {} went home early because",
    "The {} wrote to us that", "Everybody liked the {} because", "The {} laughed, and then", "The {} stopped, and then",
    "The {} was tired, so", "The {} explained that", "We waited for the {} until", "The {} promised that",
    "The {} left the building when", "The {} was proud that", "The {} ordered tea while", "The {} admitted that",
)  # fmt: skip
