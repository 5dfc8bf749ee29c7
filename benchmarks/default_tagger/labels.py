"""What the default tagger can say, and what each training clip teaches it.

Every name is a display name of the AudioSet ontology. `judge` turns a clip's source and category
into the labels that are present and those that were judged at all; what nobody judged stays
unknown (target -1) and adds nothing to the loss.
"""

from __future__ import annotations

from collections.abc import Mapping

ESC10 = {
    "dog_bark": "Dog",
    "rain": "Rain",
    "sea_waves": "Waves, surf",
    "baby_cry": "Baby cry, infant cry",
    "clock_tick": "Tick-tock",
    "person_sneeze": "Sneeze",
    "helicopter": "Helicopter",
    "chainsaw": "Chainsaw",
    "rooster": "Chicken, rooster",
    "fire_crackling": "Fire",
}
URBANSOUND8K = {
    "air_conditioner": "Air conditioning",
    "car_horn": "Vehicle horn, car horn, honking",
    "children_playing": "Children playing",
    "dog_bark": "Dog",
    "drilling": "Drill",
    "engine_idling": "Idling",
    "gun_shot": "Gunshot, gunfire",
    "jackhammer": "Jackhammer",
    "siren": "Siren",
    "street_music": "Music",
}
WIND, BRASS = "Wind instrument, woodwind instrument", "Brass instrument"
BOWED, PLUCKED, PERCUSSION = "Bowed string instrument", "Plucked string instrument", "Percussion"
FAMILY = {  # instrument: its family; all are Music too
    "Banjo": PLUCKED,
    "Mandolin": PLUCKED,
    "Guitar": PLUCKED,
    "Harp": PLUCKED,
    "Violin, fiddle": BOWED,
    "Cello": BOWED,
    "Double bass": BOWED,
    "Flute": WIND,
    "Clarinet": WIND,
    "Saxophone": WIND,
    "Oboe": WIND,
    "Bassoon": WIND,
    "French horn": BRASS,
    "Trombone": BRASS,
    "Trumpet": BRASS,
    "Drum": PERCUSSION,
    "Cymbal": PERCUSSION,
    "Marimba, xylophone": PERCUSSION,
    "Piano": "",
    "Organ": "",
    "Accordion": "",
}
TAUGHT = ("Bird", "Thunder")  # by few names, and for the rest by the teacher's scores

LABELS: list[str] = list(
    dict.fromkeys(
        (
            *("Speech", "Music", *ESC10.values(), *URBANSOUND8K.values(), *FAMILY),
            *(WIND, BRASS, BOWED, PLUCKED, PERCUSSION, *TAUGHT),
        )
    )
)
SURE, DOUBT = 0.6, 0.1  # teacher's scores: above the first it is there, below the second it is not

PHILHARMONIA = {
    "banjo": "Banjo",
    "mandolin": "Mandolin",
    "guitar": "Guitar",
    "cello": "Cello",
    "double_bass": "Double bass",
    "flute": "Flute",
    "clarinet": "Clarinet",
    "bass_clarinet": "Clarinet",
    "saxophone": "Saxophone",
    "oboe": "Oboe",
    "cor_anglais": WIND,
    "bassoon": "Bassoon",
    "contrabassoon": "Bassoon",
    "french_horn": "French horn",
    "trombone": "Trombone",
    "percussion": PERCUSSION,
}
DRUMS = ("bass-drum", "djembe", "djundjun", "snare-drum", "surdo", "tom-toms")
CYMBALS = ("Thai-gong", "sizzle-cymbal", "suspended-cymbal", "tam-tam")
GM = {  # General MIDI programs, numbered from 0
    **dict.fromkeys(range(0, 4), "Piano"),
    **dict.fromkeys(range(11, 14), "Marimba, xylophone"),
    **dict.fromkeys(range(16, 21), "Organ"),
    **dict.fromkeys((21, 23), "Accordion"),
    **dict.fromkeys(range(24, 31), "Guitar"),
    **dict.fromkeys((32, 43), "Double bass"),
    **dict.fromkeys((41, 44, 48, 49), BOWED),
    **dict.fromkeys(range(64, 68), "Saxophone"),
    **{40: "Violin, fiddle", 42: "Cello", 46: "Harp", 56: "Trumpet", 57: "Trombone", 61: BRASS},
    **{60: "French horn", 68: "Oboe", 69: WIND, 70: "Bassoon", 71: "Clarinet", 73: "Flute"},
    105: "Banjo",
}


def with_parents(label: str) -> set[str]:
    """The label, its family, and Music where it is an instrument."""
    if label in FAMILY:
        return {label, "Music"} | ({FAMILY[label]} - {""})
    return {label, "Music"} if label in FAMILY.values() else {label}


def named(source: str, category: str) -> set[str] | None:
    """Labels that the data set, or the file's name, gives; None where neither says anything."""
    if source == "esc10":
        return {ESC10[category]}
    if source == "urbansound8k":
        return {URBANSOUND8K[category]}
    if source == "philharmonia":
        instrument, _, kind = category.partition(":")
        if kind in DRUMS or kind in CYMBALS:
            return with_parents("Drum" if kind in DRUMS else "Cymbal") - {"Music"}
        return with_parents(PHILHARMONIA[instrument]) - {"Music"}
    if source == "soundfont":
        if category == "drums":
            return with_parents("Drum")
        return with_parents(GM[int(category)]) if int(category) in GM else None
    if source == "silence":
        return set()
    return with_parents(category) if category in LABELS else None


def judge(source: str, category: str, heard: Mapping[str, float]) -> tuple[set[str], set[str]]:
    """(labels present, labels judged) of one clip.

    heard: the teacher's highest score over the clip for each label that it knows. Where the data
    set or the file's name speaks, it rules; for the rest the teacher may say that a label is
    absent (below DOUBT) and, where nobody else speaks, that it is present (above SURE).
    """
    given = named(source, category)
    if source == "philharmonia":  # whether a single note is music already, nobody can say
        return given or set(), set(LABELS) - {"Music"}
    if source in ("soundfont", "silence") and given is not None:
        return given, set(LABELS)
    music = heard.get("Music", 0.0)
    quiet = {label for label in LABELS if heard.get(label, music) < DOUBT}
    if given is None:
        present = {label for label, score in heard.items() if score > SURE and label in TAUGHT}
        present |= {name for name in ("Speech", "Music") if heard.get(name, 0) > SURE}
        return present, quiet | present
    ruled = set(ESC10.values()) if source == "esc10" else set()
    if source == "urbansound8k":
        ruled = set(URBANSOUND8K.values())
    return given, given | ruled | quiet
