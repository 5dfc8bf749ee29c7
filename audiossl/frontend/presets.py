"""Frontends of published systems, by name: arguments of `frontend.build`.

Each was read in the reference's own code or, where that is said, in its paper; the tests hold the
ones with stored reference outputs against them. A preset's name and numbers never change: old
checkpoints refer to them. `clip` arguments (samples, frames, pad, mean, scale ...) stand beside the
spectrogram's own. Lengths in samples, frequencies in Hz.
"""

from __future__ import annotations

from typing import Any

# YuanGongND/ast src/dataloader.py: Kaldi, symmetric Hann, 128 mels at 25/10 ms, 1024 frames; zeros
# are added (or frames cut) BEFORE normalisation, so a padded frame is not 0 but 0.467.
_AST: dict[str, Any] = {
    "name": "fbank",
    "rate": 16000,
    "mels": 128,
    "window_type": "hanning",
    "htk_compat": True,
    "remove_mean": True,
    "frames": 1024,
    "pad": 0.0,
    "mean": -4.2677393,  # of AudioSet; AST's get_norm_stats.py
    "scale": 2 * 4.5689974,
}
_ESC50 = {**_AST, "frames": 512, "mean": -6.6268077, "scale": 2 * 5.358466}
_SPEECHCOMMANDS = {**_AST, "frames": 128, "mean": -6.845978, "scale": 2 * 5.5654526}

# microsoft/unilm beats/BEATs.py: 16-bit units, Kaldi's own window, no padding
_BEATS: dict[str, Any] = {
    "name": "fbank",
    "rate": 16000,
    "mels": 128,
    "window_type": "povey",
    "gain": 2.0**15,
    "mean": 15.41663,
    "scale": 2 * 6.55582,
}

# qiuqiangkong/torchlibrosa as PANNs and HTSAT call it: librosa's Slaney filters, decibels
_TORCHLIBROSA: dict[str, Any] = {
    "name": "logmel",
    "mels": 64,
    "n_fft": 1024,
    "fmin": 50.0,
    "fmax": 14000.0,
    "mel_scale": "slaney",
    "norm": "slaney",
    "log": "db",
    "floor": 1e-10,
}

# laion/clap-htsat-* preprocessor_config.json: 48 kHz, 10 s; shorter clips: whole copies, then
# zeros. Longer ones are cut at random or fused there; here the first 10 s count: window the audio.
_CLAP: dict[str, Any] = {
    **_TORCHLIBROSA,
    "rate": 48000,
    "hop": 480,
    "samples": 480000,
    "fill": "repeat",
}
_HTK = {"mel_scale": "htk", "norm": "none"}

# torchaudio.MelSpectrogram + AmplitudeToDB with their defaults (Labbeti/SSLH transforms/get/*.py)
_SSLH: dict[str, Any] = {
    "name": "logmel",
    "mels": 64,
    "n_fft": 2048,
    "hop": 512,
    "log": "db",
    "floor": 1e-10,
}

PRESETS: dict[str, dict[str, Any]] = {
    "ast": _AST,
    "ast_esc50": _ESC50,
    "ast_speechcommands": _SPEECHCOMMANDS,
    "ssast": _AST,  # AudioSet + LibriSpeech with AudioSet's mean and deviation
    "ssamba": _AST,
    "audiomae": _AST,
    "audiomae_esc50": _ESC50,
    "audiomae_speechcommands": _SPEECHCOMMANDS,
    # Sara-Ahmed/ASiT: AST's numbers at 32 kHz, 6 s
    "asit": {**_AST, "rate": 32000, "frames": 592},
    # Bird-MAE: 5 s at 32 kHz; padded with the least value of the clip. (The reference takes the
    # least of the whole batch, so its short clips depend on their neighbours; ours do not.)
    "bird_mae": {
        **_AST,
        "rate": 32000,
        "samples": 160000,
        "frames": 512,
        "pad": "min",
        "mean": -7.2,
        "scale": 2 * 4.43,
    },
    "beats": _BEATS,
    "openbeats": _BEATS,
    # kkoutini/PaSST models/preprocess.py, AugmentMelSTFT in eval mode (in training the reference
    # moves fmin by up to 10 Hz and fmax by up to 1 kHz). 10 s give 1000 frames; the net takes 998.
    "passt": {
        "name": "logmel",
        "rate": 32000,
        "mels": 128,
        "n_fft": 1024,
        "hop": 320,
        "window": 800,
        "periodic": False,
        "preemphasis": 0.97,
        "fmin": 0.0,
        "fmax": 15000.0,
        "mel_scale": "kaldi",
        "log": "add",
        "floor": 1e-5,
        "mean": -4.5,
        "scale": 5.0,
    },
    # SPEAR: lhotse's Fbank (fmax 400 Hz below half the rate), batches padded with log(1e-10)
    "spear": {
        "name": "fbank",
        "rate": 16000,
        "mels": 128,
        "window_type": "povey",
        "fmax": 7600.0,
        "snip_edges": False,
        "pad": -23.025850929940457,
    },
    # UnFuSeD (Sreyan88/LAPE src/utils/utils.py): librosa's mel, 0.95 s; its batch statistics
    # ("mean_var") belong to training, not to a clip
    "unfused": {
        "name": "logmel",
        "rate": 16000,
        "mels": 64,
        "n_fft": 1024,
        "hop": 160,
        "fmin": 60.0,
        "fmax": 7800.0,
        "mel_scale": "slaney",
        "norm": "slaney",
        "log": "add",
        "floor": 2.0**-23,
        "samples": 15200,
        "fill": "center",
    },
    "sslh_esc10": {**_SSLH, "rate": 44100},
    "sslh_ubs8k": {**_SSLH, "rate": 22050},
    "sslh_gsc": {**_SSLH, "rate": 16000, "samples": 16000},
    # SarthakYadav/fsd50k-pytorch src/data/audio_parser.py: 30/10 ms, 1-s chunks, decibels over the
    # clip's upper 80, centred clip by clip
    "fsd50k": {
        "name": "logmel",
        "rate": 22050,
        "mels": 96,
        "n_fft": 1920,
        "window": 661,
        "hop": 220,
        "log": "db",
        "floor": 1e-10,
        "top_db": 80.0,
        "clip_mean": True,
    },
    # CLAP in transformers' layout: unfused checkpoints hear Slaney filters, fused ones HTK filters
    "clap": _CLAP,
    "clap_fusion": {**_CLAP, **_HTK},
    # LAION-AI/CLAP's own loader also rounds the wave to 16 bits
    "laion_clap": {**_CLAP, "int16": True},
    "laion_clap_fusion": {**_CLAP, **_HTK, "int16": True},
    "reclap": {**_CLAP, **_HTK, "int16": True},
    # microsoft/CLAP: over again to 5 s and 7 s. 2023 (HTSAT) takes no setting from its YAML file
    # (50-8000 Hz there) but HTSAT's own, filters laid out for 32 kHz, on audio of 44.1 kHz; a
    # checkpoint's `logmel_extractor.melW` holds what it was trained with
    "msclap_2022": {
        **_TORCHLIBROSA,
        "rate": 44100,
        "hop": 320,
        "samples": 220500,
        "fill": "tile",
    },
    "msclap_2023": {
        **_TORCHLIBROSA,
        "rate": 44100,
        "hop": 320,
        "samples": 308700,
        "fill": "tile",
        "filter_rate": 32000,
    },
    "slap": {**_TORCHLIBROSA, "rate": 44100, "hop": 480},
    "panns": {**_TORCHLIBROSA, "rate": 32000, "hop": 320},  # Cnn14, the query net of USS
    # VIP-ANT computes its fbank at each file's own rate; 44.1 kHz is our choice
    "vipant": {**_AST, "rate": 44100, "frames": 1000, "mean": -4.93839311, "scale": 5.75751113},
    # VATT's spectrogram variant (google-research vatt/data/processing.py): 32/16 ms, magnitude,
    # log(1 + 10000 mel), here as log(1e-4 + mel) + log(10000)
    "vatt": {
        "name": "logmel",
        "rate": 48000,
        "mels": 80,
        "n_fft": 1536,
        "hop": 768,
        "edges": "end",
        "power": 1.0,
        "fmin": 80.0,
        "fmax": 7600.0,
        "mel_scale": "kaldi",
        "log": "add",
        "floor": 1e-4,
        "mean": -9.210340371976182,
    },
    # HTCL: 128 mels, 128/96 ms by its paper; rate, filters and floor are our choice
    "htcl": {
        "name": "logmel",
        "rate": 16000,
        "mels": 128,
        "n_fft": 2048,
        "hop": 1536,
        "log": "add",
        "floor": 1e-6,
    },
    # YAMNet: magnitude, log(mel + 0.001); its patches are 96 frames, every 48
    "yamnet": {
        "name": "logmel",
        "rate": 16000,
        "mels": 64,
        "n_fft": 512,
        "window": 400,
        "hop": 160,
        "edges": "none",
        "power": 1.0,
        "fmin": 125.0,
        "fmax": 7500.0,
        "mel_scale": "kaldi",
        "log": "add",
        "floor": 1e-3,
    },
}
