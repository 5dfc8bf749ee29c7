"""Features of 10 s clips: audiossl.frontend against torchaudio and librosa, one thread, CPU time.

python benchmarks/frontend.py [--rounds 15]
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read by the libraries below when they load

import argparse  # noqa: E402
from collections.abc import Callable  # noqa: E402

import librosa  # noqa: E402
import measure  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from audiossl._torchaudio import torchaudio  # noqa: E402
from audiossl.frontend.fbank import Fbank  # noqa: E402
from audiossl.frontend.logmel import LogMel  # noqa: E402

CLIPS, SECONDS, MELS = 8, 10, 128
OURS = "audiossl"


def make_clips(rate: int) -> Tensor:
    """Noise, a chirp and silence in turn; seed 0. -> (clips, samples)"""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(rate * SECONDS) / rate
    chirp = 0.3 * torch.sin(2 * torch.pi * (200 * time + 0.01 * rate * time**2))
    noise = 0.05 * torch.randn(CLIPS, len(time), generator=generator)
    sounding = (torch.arange(len(time)) // (rate // 2)) % 3 != 2
    return (chirp + noise) * sounding


def per_clip(clips: Tensor, function: Callable[[Tensor], object]) -> Callable[[], None]:
    def run() -> None:
        for clip in clips:
            function(clip)

    return run


def fbank(rate: int, clips: Tensor) -> measure.Candidates:
    ours = Fbank(rate=rate, mels=MELS, window_type="hanning")
    options = {"sample_frequency": rate, "window_type": "hanning", "num_mel_bins": MELS}
    theirs = torchaudio.compliance.kaldi.fbank
    return {
        OURS: per_clip(clips, lambda clip: ours(clip[None])),
        "audiossl, the clips as one batch": lambda: ours(clips),
        "audiossl without its loop over clips": lambda: ours.log_mel(clips),
        "torchaudio.compliance.kaldi.fbank": per_clip(
            clips, lambda clip: theirs(clip[None], **options)
        ),
    }


def logmel(rate: int, clips: Tensor) -> measure.Candidates:
    """n_fft 1024, hop 10 ms, decibels; librosa's filters except for torchaudio, which has HTK's."""
    hop = rate // 100
    ours = LogMel(
        rate=rate, mels=MELS, n_fft=1024, hop=hop, mel_scale="slaney", norm="slaney", log="db"
    )
    mel = torchaudio.transforms.MelSpectrogram(rate, 1024, hop_length=hop, n_mels=MELS)
    decibel = torchaudio.transforms.AmplitudeToDB()

    def theirs(clip: Tensor) -> object:
        power = librosa.feature.melspectrogram(
            y=clip.numpy(), sr=rate, n_fft=1024, hop_length=hop, n_mels=MELS
        )
        return librosa.power_to_db(power)

    return {
        OURS: per_clip(clips, lambda clip: ours(clip[None])),
        "librosa.feature.melspectrogram": per_clip(clips, theirs),
        "torchaudio.transforms.MelSpectrogram": per_clip(clips, lambda clip: decibel(mel(clip))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(measure.machine("torch", "torchaudio", "librosa", "numpy"), "\n")
    for kind, candidates in (("Kaldi fbank", fbank), ("Log-mel", logmel)):
        for rate in (16000, 32000):
            title = f"{kind}, {MELS} bins, {SECONDS} s at {rate // 1000} kHz"
            seconds = measure.interleaved(candidates(rate, make_clips(rate)), rounds)
            print(measure.table(title, seconds, OURS, CLIPS, "clip"))


if __name__ == "__main__":
    main()
