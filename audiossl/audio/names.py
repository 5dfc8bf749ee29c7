"""Names that mean sound: `-` for stdin, and the suffixes by which folders are searched."""

from __future__ import annotations

STDIN = "-"
AUDIO = "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 bwf"
VIDEO = "m4a m4b aac mp4 m4v mov mkv webm avi wma amr 3gp"  # opened by the [video] extra
SUFFIXES = frozenset(f".{name}" for name in f"{AUDIO} {VIDEO}".split())
