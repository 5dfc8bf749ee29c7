"""Label sets and the ontology: what is stored, what a name means, and what a wrong name is told."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiossl import labels
from audiossl.errors import UsageError
from audiossl.labels import ontology

SIZES = {"audioset": 527, "esc10": 10, "esc50": 50, "fsd50k": 200, "urbansound8k": 10}
SIZES |= {"vggsound": 309}


def test_all_sets_are_there_and_whole():
    assert labels.sets() == sorted(SIZES)
    for name, size in SIZES.items():
        entries = labels.load(name)
        assert [entry.index for entry in entries] == list(range(size)), name
        assert len({entry.name for entry in entries}) == size, name
        assert all(entry.name == entry.name.strip() != "" for entry in entries), name


def test_indices_known_from_the_datasets_themselves():
    """Spot values of the published files, so that an order that drifts is noticed."""
    at = {name: {entry.index: entry.name for entry in labels.load(name)} for name in SIZES}
    assert at["audioset"][0] == "Speech"
    assert at["audioset"][137] == "Music"
    assert at["audioset"][526] == "Field recording"
    assert at["esc50"][0] == "dog"
    assert at["esc50"][49] == "hand_saw"
    assert at["urbansound8k"] == dict(
        enumerate(
            [
                "air_conditioner",
                "car_horn",
                "children_playing",
                "dog_bark",
                "drilling",
                "engine_idling",
                "gun_shot",
                "jackhammer",
                "siren",
                "street_music",
            ]
        )
    )
    assert at["fsd50k"][53] == "Crushing"
    assert at["fsd50k"][69] == "Electric_guitar"
    assert at["esc10"][0] == "dog_bark"


def test_every_mapping_is_a_class_of_the_ontology():
    for name in SIZES:
        for entry in labels.load(name):
            if entry.audioset is not None:
                assert entry.audioset in ontology.names(), (name, entry)
                assert entry.mid is not None
                assert ontology.nodes()[entry.mid].name == entry.audioset
    unmapped = [entry.name for entry in labels.load("esc50") if entry.audioset is None]
    assert unmapped == ["drinking_sipping", "can_opening", "washing_machine"]
    assert all(entry.audioset for entry in labels.load("fsd50k"))


def test_no_two_classes_of_a_small_set_share_an_audioset_class():
    """Zero-shot scoring by these names needs them apart."""
    for name in ("esc10", "esc50", "urbansound8k", "fsd50k"):
        mapped = [entry.audioset for entry in labels.load(name) if entry.audioset]
        assert len(mapped) == len(set(mapped)), name


def test_the_same_sound_has_one_name_in_all_sets():
    assert labels.to_audioset("esc10", "dog_bark") == "Dog"
    assert labels.to_audioset("esc50", "dog") == "Dog"
    assert labels.to_audioset("urbansound8k", "dog_bark") == "Dog"
    assert labels.to_audioset("esc50", "can_opening") is None
    for ten in labels.load("esc10"):
        assert ten.audioset in {entry.audioset for entry in labels.load("esc50")}


def test_every_list_names_its_source_and_licence():
    listed = [file for source in labels.sources().values() for file in source["files"]]  # type: ignore[attr-defined]
    stored = [path.name for path in labels.FOLDER.iterdir() if path.suffix in {".csv", ".json"}]
    assert sorted(listed) == sorted(set(stored) - {"sources.json"})
    for name, source in labels.sources().items():
        assert set(source) == {"title", "files", "source", "licence", "attribution", "changes"}, (
            name
        )
    header = json.loads(ontology.FILE.read_text(encoding="utf-8"))
    assert header["licence"] == labels.sources()["ontology"]["licence"] == "CC BY-SA 4.0"


def test_package_data_stays_small():
    assert sum(path.stat().st_size for path in labels.FOLDER.glob("*.[cj]s*")) < 100_000


def test_audioset_csv_has_the_published_header():
    with (labels.FOLDER / "audioset.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ["index", "mid", "display_name"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Dog", "Dog"),
        ("dog", "Dog"),
        ("gunshot_and_gunfire", "Gunshot, gunfire"),
        ("GUNFIRE", "Gunshot, gunfire"),
        ("man speaking", "Male speech, man speaking"),
        ("drumkit", "Drum kit"),
        ("/m/0bt9lr", "Dog"),
        ("Bathtub (filling or washing)", "Bathtub (filling or washing)"),
        ("acoustic-guitar", "Acoustic guitar"),
    ],
)
def test_find_forgives(asked, meant):
    assert labels.find(asked) == meant


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("Dgo", "unknown label 'Dgo': did you mean 'Dog'?"),
        ("inside", "'Inside, small room' or 'Inside, large room or hall'"),
        ("guitarr", "'Guitar'"),
        ("", "unknown label ''"),
        ("qqqqqqqq", "unknown label 'qqqqqqqq'"),
    ],
)
def test_find_suggests(asked, told):
    with pytest.raises(UsageError) as error:
        labels.find(asked)
    assert told in str(error.value)


def test_every_name_finds_itself_in_any_spelling():
    for name in ontology.names():
        assert labels.find(name) == name
        assert labels.find(name.upper().replace(" ", "_")) == name


def test_find_among_a_models_own_labels():
    birds = ["Turdus merula_Common Blackbird", "Corvus corax_Common Raven"]
    assert labels.find("turdus merula common blackbird", birds) == birds[0]
    with pytest.raises(UsageError, match="did you mean 'Corvus corax_Common Raven'"):
        labels.find("raven", birds)


def walk(name: str, step: dict[str, list[str]]) -> set[str]:
    """Slow closure: everything that can be reached."""
    found: set[str] = set()
    for other in step[name]:
        found |= {other} | walk(other, step)
    return found


def test_ancestors_and_descendants_equal_a_slow_closure():
    raw = json.loads(ontology.FILE.read_text(encoding="utf-8"))["nodes"]
    down = {
        node["name"]: [raw[child]["name"] for child in node.get("children", [])]
        for node in raw.values()
    }
    up = {name: [other for other in down if name in down[other]] for name in down}
    assert len(down) == 632
    for name in down:
        assert set(labels.descendants(name)) == walk(name, down), name
        assert set(labels.ancestors(name)) == walk(name, up), name
        assert ontology.children(name) == down[name]
        assert len(labels.descendants(name)) == len(set(labels.descendants(name)))


def test_nearest_come_first():
    assert labels.ancestors("Bark") == ["Dog", "Domestic animals, pets", "Animal"]
    assert labels.descendants("Dog")[0] == "Bark"
    assert labels.ancestors("Music") == []


MODEL = ["Dog", "Cat", "Music", "Speech", "Guitar", "Something else"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Dog", ["Dog"]),
        ("animal", ["Dog", "Cat"]),
        ("music", ["Music"]),  # the model's own label, not all that is below it
        ("musical_instrument", ["Guitar"]),
        ("something ELSE", ["Something else"]),
        ("human voice", ["Speech"]),
    ],
)
def test_matches(asked, meant):
    assert [MODEL[index] for index in labels.matches(asked, MODEL)] == meant


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("bark", "the model has no label 'Bark' and none below it: the nearest is 'Dog'"),
        ("Siren", "the model has no label 'Siren' and none below it"),
        ("dgo", "did you mean 'Dog'?"),
        ("somthing else", "did you mean 'Something else'"),
    ],
)
def test_matches_says_what_is_wrong(asked, told):
    with pytest.raises(UsageError) as error:
        labels.matches(asked, MODEL)
    assert told in str(error.value)


@given(st.text(max_size=30))
def test_any_name_is_found_or_refused(name):
    for call in (labels.find, lambda text: labels.matches(text, MODEL), labels.load):
        try:
            call(name)
        except UsageError as error:
            assert repr(name) in str(error)  # noqa: PT017


def test_unknown_set_is_told_which_there_are():
    with pytest.raises(UsageError, match="no label set 'imagenet': choose from audioset, esc10"):
        labels.load("imagenet")


def test_import_is_light():
    code = "import sys, audiossl.labels; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


CLIPS = Path(__file__).parents[1] / "data" / "clips"


def clip_table() -> list[list[str]]:
    lines = (CLIPS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return rows[2:]


def test_every_test_clip_is_listed_with_its_class_and_licence():
    soundfile = pytest.importorskip("soundfile")
    table = {row[0]: row for row in clip_table()}
    files = {path.name: path for path in CLIPS.iterdir() if path.name != "README.md"}
    assert set(table) == set(files)
    for name, (_, label, _, rate, channels, seconds, *_, licence) in table.items():
        assert labels.find(label) == label
        assert licence == "CC0"
        info = soundfile.info(files[name])
        assert (info.samplerate, info.channels) == (int(rate), int(channels)), name
        assert info.duration == pytest.approx(float(seconds), abs=0.01), name
        assert files[name].stat().st_size < 100_000, name
    assert sum(path.stat().st_size for path in files.values()) < 700_000
