"""Every sound that the default tagger learns from, as 16 kHz mono WAV files and one table.

Labelled sets come from the data folder. Sounds without labels come from Debian packages, which
`packages` downloads and unpacks without installing them, from espeak-ng reading captions, from two
General MIDI soundfonts and from formulas (silence, noise, tones: sounds that no label fits).

    clips.csv   path,source,category,fold,group
"""

from __future__ import annotations

import csv
import hashlib
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000  # Hz
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
VOICES = ("en-us", "en-gb", "de", "fr-fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "cs")
VARIANTS = ("", "+f2", "+f4", "+f5", "+m3", "+m7", "+croak", "+whisper")
HELD_OUT = ("wesnoth-1.16-data", "scratch")  # unknown sounds: the fold models never hear these


@dataclass(frozen=True)
class Package:
    """A Debian package: at most `files` of its sounds that lie below `below`, `seconds` each."""

    name: str
    files: int
    seconds: float = 25.0
    category: str = "other"
    keep: str = ""  # part of the file's name that must be there


PACKAGES = (
    Package("sonic-pi-samples", 999, 15),
    Package("lmms-common", 999, 10),
    Package("ktuberling-data", 350, 4, "Speech"),
    Package("tuxpaint-stamps-default", 450, 5, "Speech", "_desc"),
    Package("tuxpaint-stamps-default", 999, 12),
    Package("asterisk-core-sounds-en-wav", 250, 6, "Speech"),
    Package("klettres-data", 200, 4, "Speech"),
    Package("colobot-common-sounds", 300),
    Package("hedgewars-data", 250),
    Package("lincity-ng-data", 300),
    Package("megaglest-data", 400),
    Package("minetest-data", 300),
    Package("ri-li-data", 300),
    Package("scratch", 300),
    Package("searchandrescue-data", 300),
    Package("supertux-data", 140),
    Package("unknown-horizons", 250),
    Package("wesnoth-1.16-data", 300),
    Package("widelands-data", 150),
)
SOUNDFONTS = {
    "fluid-soundfont-gm": "usr/share/sounds/sf2/FluidR3_GM.sf2",
    "timgm6mb-soundfont": "usr/share/sounds/sf2/TimGM6mb.sf2",
}
NAMED = {  # package: beginnings of the names of its files that tell what is heard
    "sonic-pi-samples": {
        **dict.fromkeys(("drum_cymbal_", "drum_splash_"), "Cymbal"),
        **dict.fromkeys(("drum_bass_", "drum_heavy_", "drum_roll", "drum_snare_"), "Drum"),
        **dict.fromkeys(("drum_tom_", "bd_", "sn_", "tabla_", "loop_tabla"), "Drum"),
        **dict.fromkeys(("loop_amen", "loop_breakbeat"), "Drum"),
        **{"guit_": "Guitar", "ambi_piano": "Piano", "misc_crow": "Bird"},
    },
    "scratch": {
        **{"BabyCry": "Baby cry, infant cry", "Dog": "Dog", "Rooster": "Chicken, rooster"},
        **{"Sneeze": "Sneeze", "Bird": "Bird", "Owl": "Bird", "Goose": "Bird", "Duck": "Bird"},
        **{"CymbalCrash": "Cymbal", "RideCymbal": "Cymbal", "Drum": "Drum", "Guitar": "Guitar"},
        **{"Trumpet": "Trumpet", "Xylo": "Marimba, xylophone", "xylo": "Marimba, xylophone"},
    },
    "searchandrescue-data": {"thunder_": "Thunder", "helicopter_engine_": "Helicopter"},
    "minetest-data": {"fire_fire": "Fire", "fire_small": "Fire", "fire_large": "Fire"},
}
LICENCES = {  # of a package: what its copyright file says of its sounds, or of the whole
    "ESC-10": "CC BY 3.0 (clips CC0, CC BY 3.0, Sampling+)",
    "UrbanSound8K": "CC BY-NC 3.0",
    "Philharmonia Orchestra samples": "CC BY-SA 3.0, not to be made available as is",
    "Speech Commands": "CC BY 4.0",
    "Free Spoken Digit Dataset": "CC BY-SA 4.0",
    "librosa example audio": "CC BY, CC BY-NC, CC0, public domain by file",
    "AudioCaps captions (read by espeak-ng)": "MIT",
    "YAMNet (teacher)": "Apache-2.0",
    "Debian asterisk-core-sounds-en-wav": "CC BY-SA 3.0",
    "Debian colobot-common-sounds": "GPL-3+",
    "Debian fluid-soundfont-gm": "MIT",
    "Debian hedgewars-data": "GFDL 1.3, CC BY-SA 3.0",
    "Debian klettres-data": "GPL-2+",
    "Debian ktuberling-data": "GPL-2+",
    "Debian lincity-ng-data": "GPL-2+",
    "Debian lmms-common": "GPL-2+",
    "Debian megaglest-data": "CC BY-SA 3.0",
    "Debian minetest-data": "CC BY-SA 3.0, CC0",
    "Debian ri-li-data": "GPL-2, GPL-3",
    "Debian scratch": "CC BY-SA 3.0",
    "Debian searchandrescue-data": "GPL",
    "Debian sonic-pi-samples": "CC0",
    "Debian supertux-data": "GPL-3+, CC BY-SA",
    "Debian timgm6mb-soundfont": "GPL-2",
    "Debian tuxpaint-stamps-default": "GPL-2",
    "Debian unknown-horizons": "GPL-2+, CC BY-SA 3.0",
    "Debian wesnoth-1.16-data": "GPL-2+",
    "Debian widelands-data": "GPL-2+",
}


@dataclass(frozen=True)
class Clip:
    """A sound: where it comes from, what its source calls it, and with what it must stay."""

    path: Path
    source: str
    category: str
    fold: int  # 1-4 in the labelled sets, 0 elsewhere
    group: str
    seconds: float


def unpack(folder: Path) -> None:
    """Download and unpack every package into `folder`/NAME, without installing anything."""
    for name in dict.fromkeys([p.name for p in PACKAGES] + list(SOUNDFONTS)):
        place = folder / name
        if (place / "done").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", name], cwd=place, check=True)
        (archive,) = place.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(place)], check=True)
        archive.unlink()
        (place / "done").touch()


def labelled(data: Path) -> Iterator[Clip]:
    """The labelled sets, with the fold that each clip's group falls into."""
    for row in _table(data / "esc10" / "esc10.csv"):
        path, group = data / "esc10" / "audio" / row["filename"], f"freesound{row['src_file']}"
        yield Clip(path, "esc10", row["category"], int(row["fold"]), group, 5)
    for row in _table(data / "urbansound8k" / "urbansound8k.csv"):
        path, group = data / "urbansound8k" / "audio" / row["filename"], f"freesound{row['fsID']}"
        yield Clip(path, "urbansound8k", row["category"], int(row["fold"]), group, 5)
    for row in _table(data / "philharmonia_notes" / "notes.csv"):
        path = data / "philharmonia_notes" / "audio" / row["filename"]
        kind = path.stem.split("_")[0] if row["instrument"] == "percussion" else row["note"]
        group = f"{row['instrument']}:{kind}"  # one pitch in all its articulations stays together
        category = group if row["instrument"] == "percussion" else row["instrument"]
        yield Clip(path, "philharmonia", category, fold_of(group), group, 6)
    for row in _table(data / "speech_commands" / "speech_commands.csv"):
        path, group = data / "speech_commands" / "audio" / row["filename"], row["speaker"]
        yield Clip(path, "speech_commands", "Speech", fold_of(group), group, 2)
    paths = sorted((data / "fsdd" / "recordings").glob("*.wav"))
    speakers = sorted({path.stem.split("_")[1] for path in paths})
    for path in paths[::5]:
        speaker = path.stem.split("_")[1]
        yield Clip(path, "fsdd", "Speech", 1 + speakers.index(speaker) % 4, speaker, 2)


def unlabelled(data: Path, packages: Path) -> Iterator[Clip]:
    """Music examples and the packages' sounds."""
    for path in sorted((data / "music_examples").glob("*.ogg")):
        category = {"198": "Speech", "343": "Speech", "570": "Speech", "pib": "Dog"}
        yield Clip(path, "music_examples", category.get(path.name[:3], "other"), 0, path.stem, 60)
    for package in PACKAGES:
        paths = sorted(
            path
            for path in (packages / package.name).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and _wanted(path, package)
        )
        random.Random(1).shuffle(paths)
        for path in paths[: package.files]:
            category = category_of(package, path.name)
            yield Clip(path, package.name, category, 0, path.name, package.seconds)


def category_of(package: Package, name: str) -> str:
    """What the file's name says, or else its package."""
    for start, label in NAMED.get(package.name, {}).items():
        if name.startswith(start):
            return label
    return package.category


def speak(data: Path, folder: Path, clips: int) -> Iterator[Clip]:
    """espeak-ng reads AudioCaps captions in many voices."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    captions = [row["caption"] for row in _table(data / "text" / "audiocaps" / "train.csv")]
    for number in range(clips):
        path = folder / f"{number}.wav"
        voice = rng.choice(VOICES) + rng.choice(VARIANTS)
        speed, pitch = str(rng.randint(110, 220)), str(rng.randint(15, 85))
        text = ". ".join(rng.sample(captions, 2))
        command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(path), text]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        yield Clip(path, "espeak-ng", "Speech", 0, path.stem, 30)


def play(packages: Path, folder: Path) -> Iterator[Clip]:
    """Every General MIDI program plays a melody and chords, and drum kits play patterns."""
    import tinysoundfont  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    for font, place in SOUNDFONTS.items():
        synth = tinysoundfont.Synth(samplerate=RATE, gain=-3)
        number = synth.sfload(str(packages / font / place))
        for program in range(128):
            synth.program_select(0, number, 0, program)
            for kind in ("melody", "chords"):
                path = folder / f"{program}-{font}-{kind}.wav"
                _save(path, _phrase(synth, rng, program, kind))
                yield Clip(path, "soundfont", str(program), 0, path.stem, 30)
        for take in range(12):
            synth.program_select(9, number, 128, rng.choice([0, 8, 16, 24, 25, 32, 40]))
            path = folder / f"drums-{font}-{take}.wav"
            _save(path, _beat(synth, rng))
            yield Clip(path, "soundfont", "drums", 0, path.stem, 30)


def compute(folder: Path, clips: int) -> Iterator[Clip]:
    """Sounds without a name: silence, hum, tones, sweeps, clicks and coloured noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        path = folder / f"{number}.wav"
        soundfile.write(path, formula(number), RATE, subtype="PCM_16")
        yield Clip(path, "silence", "none", 1 + number % 4, f"formula{number}", 5)


def formula(number: int) -> np.ndarray:
    """(80000,): the `number`-th sound without a name, 5 s."""
    rng = np.random.default_rng((7, number))
    time = np.arange(5 * RATE) / RATE
    kind = number % 6
    if kind == 0:
        wave = rng.normal(size=len(time)) * (number % 12 > 0)
    elif kind == 1:  # noise whose power falls as 1 / f^a
        spectrum = np.fft.rfft(rng.normal(size=len(time)))
        spectrum *= np.maximum(np.arange(len(spectrum)), 20) ** -rng.uniform(0.2, 1.2)
        wave = np.fft.irfft(spectrum, len(time))
    elif kind == 2:
        wave = np.sin(2 * np.pi * rng.uniform(60, 6000) * time)
    elif kind == 3:
        wave = np.sin(2 * np.pi * (rng.uniform(50, 500) + rng.uniform(20, 600) * time) * time)
    elif kind == 4:  # mains hum
        hum = [np.sin(2 * np.pi * 50 * k * time) / k for k in range(1, 8)]
        wave = np.sum(hum, axis=0) + 0.1 * rng.normal(size=len(time))
    else:
        wave = np.zeros(len(time))
        wave[rng.integers(0, len(time), 8)] = 1.0
    peak = np.abs(wave).max() or 1.0
    return (wave / peak * 10 ** rng.uniform(-2.5, -0.1)).astype(np.float32)


def decode(clips: list[Clip], out: Path, jobs: int) -> None:
    """Write every clip that can be read to `out`/clips and the table of them."""
    places = [out / "clips" / clip.source / f"{n:05d}.wav" for n, clip in enumerate(clips)]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs) as pool:
        done = list(pool.map(_decode, clips, places, chunksize=64))
    with (out / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "source", "category", "fold", "group"])
        for clip, place, kept in zip(clips, places, done, strict=True):
            if kept:
                path = place.relative_to(out).as_posix()
                table.writerow([path, clip.source, clip.category, clip.fold, clip.group])


def fold_of(group: str) -> int:
    """1-4, by a hash of the group's name."""
    return 1 + hashlib.sha256(group.encode()).digest()[0] % 4


def _decode(clip: Clip, place: Path) -> bool:
    try:
        with soundfile.SoundFile(clip.path) as file:
            frames = int(clip.seconds * file.samplerate)
            wave = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
            wave = soxr.resample(wave, file.samplerate, RATE)
    except soundfile.LibsndfileError:
        return False
    measured = clip.source in ("esc10", "urbansound8k", "silence")  # these are kept whatever
    if not measured and (len(wave) < RATE // 10 or np.abs(wave).max(initial=0) < 1e-4):
        return False
    soundfile.write(place, np.clip(wave, -1, 1), RATE, subtype="PCM_16")
    return True


def _wanted(path: Path, package: Package) -> bool:
    if package.name != "tuxpaint-stamps-default":
        return True
    return ("_desc" in path.name) == (package.keep == "_desc")


def _phrase(synth, rng: random.Random, program: int, kind: str) -> np.ndarray:
    low, high = (36, 48) if 32 <= program < 40 else (45, 72)
    root, parts, seconds = rng.randint(low, high), [], 0.0
    scale = rng.choice([(0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12), (0, 3, 5, 7, 10)])
    while seconds < 7:
        if kind == "melody":
            notes, length = [root + rng.choice(scale)], rng.choice([0.15, 0.25, 0.4, 0.8])
        else:
            steps = rng.choice([(0, 4, 7), (0, 3, 7), (0, 7, 12), (0, 4, 7, 11)])
            notes, length = [root + step for step in steps], rng.choice([0.5, 1.0, 2.0])
        for note in notes:
            synth.noteon(0, note, rng.randint(60, 120))
        parts.append(_sound(synth, length))
        for note in notes:
            synth.noteoff(0, note)
        seconds += length
    return np.concatenate([*parts, _sound(synth, 0.7)])


def _beat(synth, rng: random.Random) -> np.ndarray:
    step = 60 / rng.choice([80, 100, 120, 150]) / 4
    chances = {36: 0.3, 38: 0.2, 42: 0.6, 46: 0.1, 49: 0.06, 45: 0.1, 39: 0.05}
    pattern = {drum: [rng.random() < p for _ in range(16)] for drum, p in chances.items()}
    parts = []
    for beat in range(int(8 / step)):
        for drum, hits in pattern.items():
            if hits[beat % 16]:
                synth.noteon(9, drum, rng.randint(60, 120))
        parts.append(_sound(synth, step))
    return np.concatenate(parts)


def _sound(synth, seconds: float) -> np.ndarray:
    stereo = np.frombuffer(synth.generate(int(seconds * RATE)), dtype=np.float32)
    return stereo.reshape(-1, 2).mean(axis=1)


def _save(path: Path, wave: np.ndarray) -> None:
    peak = max(1e-3, float(np.abs(wave).max()))
    soundfile.write(path, 0.7 * wave / peak, RATE, subtype="PCM_16")


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
