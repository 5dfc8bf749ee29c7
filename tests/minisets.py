"""Data sets of a few clips in the true layout of each: what the adapters are tested on."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000


def sound(seconds: float = 0.25) -> bytes:
    """A WAV."""
    made = io.BytesIO()
    rng = np.random.default_rng(0)
    soundfile.write(made, rng.uniform(-0.1, 0.1, round(seconds * RATE)), RATE, format="WAV")
    return made.getvalue()


SOUND = sound()


def put(path: Path, content: str | bytes = SOUND) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def esc50(root: Path) -> Path:
    """Two clips a fold of a dog and of a hen; the dogs are in ESC-10. Source 9 is in two folds."""
    folder = root / "ESC-50-master"
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category, ten in ((0, "dog", "True"), (6, "hen", "False")):
            source = 9 if (fold, target) in ((4, 0), (5, 6)) else 100 * fold + target
            name = f"{fold}-{source}-A-{target}.wav"
            lines.append(f"{name},{fold},{target},{category},{ten},{source},A")
            put(folder / "audio" / name)
    put(folder / "meta" / "esc50.csv", "\n".join(lines) + "\n")
    return folder


def esc10_alone(root: Path) -> Path:
    folder = root / "esc10"
    columns = "filename,fold,target,category,src_file,take"
    put(folder / "esc10.csv", f"{columns}\n1-7-B.ogg,1,0,dog_bark,7,B\n")
    put(folder / "audio" / "1-7-B.ogg")
    return folder


def esc10_first(root: Path) -> Path:
    folder = root / "ESC-10-master"
    put(folder / "001 - Dog bark" / "1-30226-A.ogg")
    put(folder / "003 - Sea waves" / "5-28135-B.ogg")
    put(folder / "README.md", "ESC-10")
    return folder


def urbansound8k(root: Path) -> Path:
    folder = root / "UrbanSound8K"
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold, name in ((1, "101415-3-0-2"), (1, "101415-3-0-3"), (10, "99812-1-0-0")):
        source, target, *_ = name.split("-")
        label = {"3": "dog_bark", "1": "car_horn"}[target]
        lines.append(f"{name}.wav,{source},1.5,5.5,2,{fold},{target},{label}")
        put(folder / "audio" / f"fold{fold}" / f"{name}.wav")
    put(folder / "audio" / "fold1" / ".DS_Store", "x")
    put(folder / "metadata" / "UrbanSound8K.csv", "\n".join(lines) + "\n")
    return folder


def urbansound8k_copy(root: Path) -> Path:
    folder = root / "urbansound8k"
    columns = "filename,fold,target,category,fsID,seconds"
    put(folder / "urbansound8k.csv", f"{columns}\nfold2/4-3-0-2.ogg,2,3,dog_bark,4,4.0\n")
    put(folder / "audio" / "fold2" / "4-3-0-2.ogg")
    return folder


def fsd50k(root: Path) -> Path:
    folder = root / "FSD50K"
    truth = folder / "FSD50K.ground_truth"
    put(truth / "vocabulary.csv", "0,Bark,/m/05tny_\n1,Dog,/m/0bt9lr\n2,Rain,/m/06mb1\n")
    put(truth / "dev.csv", 'fname,labels,mids,split\n64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n'
        "16399,Rain,/m/06mb1,val\n")  # fmt: skip
    put(truth / "eval.csv", "fname,labels,mids\n37199,Rain,/m/06mb1\n")
    for name in ("64760", "16399"):
        put(folder / "FSD50K.dev_audio" / f"{name}.wav")
    put(folder / "FSD50K.eval_audio" / "37199.wav")
    return folder


SEGMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids={0}, num_segs={0}, num_unique_labels=527, num_positive_labels=9
# YTID, start_seconds, end_seconds, positive_labels
"""


def segments(*lines: str, count: int | None = None) -> str:
    return SEGMENTS.format(len(lines) if count is None else count) + "\n".join(lines) + "\n"


def audioset(root: Path) -> Path:
    """One file for each of the usual ways to name one, and one segment that nobody has."""
    folder = root / "AudioSet"
    put(folder / "class_labels_indices.csv", 'index,mid,display_name\n0,/m/09x0r,"Speech"\n'
        '1,/m/05zppz,"Male speech, man speaking"\n506,/t/dd00088,"Gush"\n')  # fmt: skip
    put(folder / "balanced_train_segments.csv", segments(
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"',
        '--aE2O5G5WE, 0.000, 10.000, "/m/05zppz"',
        '-0DLPzsiXXE, 30.500, 40.500, "/m/09x0r"',
        '-0gone-000X, 30.000, 40.000, "/m/09x0r"',
    ))  # fmt: skip
    put(folder / "unbalanced_train_segments.csv", segments(
        '---1_cCGK4M, 0.000, 10.000, "/m/09x0r"',
        '---B_v8ZoBY, 30.000, 40.000, "/m/09x0r"',
    ))  # fmt: skip
    put(folder / "eval_segments.csv", segments('-0RWZT-miFs, 420.000, 430.000, "/t/dd00088"'))
    for name in (
        "balanced_train_segments/Y--PJHxphWEs.wav",
        "balanced_train_segments/--aE2O5G5WE_0_10.flac",
        "balanced_train_segments/-0DLPzsiXXE_30500_40500.m4a",
        "unbalanced/part00/Y---1_cCGK4M_0.000_10.000.wav",
        "unbalanced/part00/---B_v8ZoBY_30.ogg",
        "eval/-0RWZT-miFs.mp3",
        "eval/other.wav",
    ):
        put(folder / name)
    return folder


def set_of(speaker: str) -> str:
    """The README's which_set, written again from its description."""
    digest = int.from_bytes(hashlib.sha1(speaker.encode()).digest(), "big")
    share = (digest % 2**27) * 100 / (2**27 - 1)
    return "valid" if share < 10 else "test" if share < 20 else "train"


def speech_commands(root: Path, version: int = 2, lists: bool = True) -> Path:
    """Six recordings a word, by six speakers, two of each split; noise; the test set of its own."""
    from audiossl.data.datasets.speech_commands import WORDS

    folder = root / f"speech_commands_v0.0{version}"
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    number = 0
    while min(map(len, found.values())) < 2:
        speaker, number = f"{number:08x}", number + 1
        found[set_of(speaker)].append(speaker)
    speakers = {split: names[:2] for split, names in found.items()}
    for word in WORDS[version]:
        for name in (n for names in speakers.values() for n in names):
            put(folder / word / f"{name}_nohash_0.wav")
    if lists:
        for split, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
            lines = [f"{w}/{n}_nohash_0.wav" for w in WORDS[version] for n in speakers[split]]
            put(folder / name, "\n".join(lines) + "\n")
    put(folder / "README.md", "Speech Commands")
    put(folder / "_background_noise_" / "README.md", "noise")
    put(folder / "_background_noise_" / "running_tap.wav", sound(3.0))
    put(folder / "_background_noise_" / "white_noise.wav", sound(2.6))
    return folder


def speech_commands_tests(root: Path, version: int = 2) -> Path:
    folder = root / f"speech_commands_test_set_v0.0{version}"
    put(folder / "yes" / "0a7c2a8d_nohash_0.wav")
    put(folder / "_unknown_" / "0a7c2a8d_nohash_1.wav.wav")
    put(folder / "_silence_" / "0.wav")
    return folder


def speech_commands_copy(root: Path) -> Path:
    folder = root / "speech_commands"
    name = "bed/62581901_nohash_0.wav"
    put(folder / "speech_commands.csv", f"filename,category,speaker\n{name},bed,62581901\n")
    put(folder / "audio" / name)
    return folder


def fsdd(root: Path) -> Path:
    folder = root / "free-spoken-digit-dataset"
    for digit in "07":
        for speaker in ("jackson", "theo"):
            for index in (0, 4, 5, 49):
                put(folder / "recordings" / f"{digit}_{speaker}_{index}.wav")
    put(folder / "metadata.py", "metadata = {}")
    return folder


def nsynth(root: Path) -> Path:
    folder = root / "NSynth"
    for part, family, instrument in (
        ("train", "guitar", "guitar_acoustic_001"),
        ("valid", "organ", "organ_electronic_007"),
        ("test", "organ", "organ_electronic_007"),
    ):
        note = {
            "note": 7,
            "note_str": f"{instrument}-082-050",
            "instrument_str": instrument,
            "pitch": 82,
            "velocity": 50,
            "sample_rate": 16000,
            "instrument_family_str": family,
            "instrument_source_str": "acoustic",
            "qualities_str": ["bright", "fast_decay"],
        }
        place = folder / f"nsynth-{part}"
        put(place / "examples.json", json.dumps({note["note_str"]: note}))
        put(place / "audio" / f"{note['note_str']}.wav")
    return folder


def librispeech(root: Path) -> Path:
    folder = root / "LibriSpeech"
    for part, speaker, chapter in (
        ("train-clean-100", 103, 1240),
        ("dev-clean", 84, 121123),
        ("test-other", 367, 130732),
    ):
        place = folder / part / str(speaker) / str(chapter)
        for number in range(2):
            put(place / f"{speaker}-{chapter}-000{number}.flac")
        put(place / f"{speaker}-{chapter}.trans.txt", f"{speaker}-{chapter}-0000 GO DO YOU HEAR\n")
    put(folder / "SPEAKERS.TXT", "; speakers")
    return folder
