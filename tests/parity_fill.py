"""Deterministic parameters and test waves of the parity fixtures (pure numpy; no code of any
reference). The fixtures in tests/data/parity were made with exactly these rules: never change one.

fill(key, shape, dtype, salt=""): values depend only on (salt + key, shape). Generator:
numpy.random.RandomState(crc32((salt + key).encode("utf-8")) & 0xffffffff), the MT19937 stream that
numpy has frozen; float64 draws, cast to dtype at the end. `key` is the reference class's own
state_dict key, WITHOUT a container prefix such as "module.". Integer tensors and tensors marked
"fixed" or "alias" in a fixture are never filled.

Rules, first match wins (leaf = last dotted part, n = standard normal of `shape`, u = uniform
[0, 1)):
 1 running_var              1 + 0.2*|n|            2 running_mean             0.1*n
 3 A_log, A_b_log           log(1..N)+0.05*n (N = last axis)                  4 D, D_b    1 + 0.1*n
 5 dt_proj*.bias            inverse softplus of exp(u*(log .1-log .001)+log .001), so that softplus
                            gives 0.001..0.1
 6 bypass_scale, bypass*.scale 0.5 + 0.05*n        7 logit_scale*             log(1/0.07) + 0.1*n
 8 log_scale, 0-d others    0.1*n                  9 weight_g, original0, grep_a   1 + 0.1*n
10 leaf "weight" (or "gamma"), ndim 1 (norms)  1 + 0.1*n
11 leaf ends with "bias" or "beta", or ndim 1      0.02*n
12 leaf matches _EMB_LEAF or key matches _EMB_KEY  0.05*n
13 everything else (matrices, kernels, codebooks)  n / sqrt(prod(shape[1:]))
"""

import re
import zlib

import numpy as np

_EMB_LEAF = re.compile(r"(pos_embed|position_emb|token$|mask_emb|cls_emb)")
_EMB_KEY = re.compile(
    r"(embeddings?\.weight$|embed_tokens|^emb\.|\.emb\.|relative_attention_bias|bias_table)"
)


def rng(text):
    return np.random.RandomState(zlib.crc32(text.encode("utf-8")) & 0xFFFFFFFF)


def fill(key, shape, dtype="float32", salt=""):
    r, shape = rng(salt + key), tuple(int(s) for s in shape)
    leaf = key.rsplit(".", 1)[-1]
    if "dt_proj" in key and leaf == "bias":
        dt = np.exp(r.random_sample(shape) * (np.log(0.1) - np.log(0.001)) + np.log(0.001))
        return (dt + np.log(-np.expm1(-dt))).astype(dtype)
    n = np.asarray(r.standard_normal(shape))
    if leaf == "running_var":
        v = 1 + 0.2 * np.abs(n)
    elif leaf == "running_mean":
        v = 0.1 * n
    elif leaf in ("A_log", "A_b_log"):
        v = np.log(np.arange(1, shape[-1] + 1)) + 0.05 * n
    elif leaf in ("D", "D_b"):
        v = 1 + 0.1 * n
    elif leaf == "bypass_scale" or (leaf == "scale" and "bypass" in key):
        v = 0.5 + 0.05 * n
    elif leaf.startswith("logit_scale"):
        v = np.log(1 / 0.07) + 0.1 * n
    elif leaf == "log_scale" or len(shape) == 0:
        v = 0.1 * n
    elif leaf in ("weight_g", "original0", "grep_a") or (
        leaf in ("weight", "gamma") and len(shape) == 1
    ):
        v = 1 + 0.1 * n
    elif leaf.endswith("bias") or leaf == "beta" or len(shape) == 1:
        v = 0.02 * n
    elif _EMB_LEAF.search(leaf) or _EMB_KEY.search(key):
        v = 0.05 * n
    else:
        v = n / np.sqrt(max(1, int(np.prod(shape[1:]))))
    return np.asarray(v).astype(dtype)


def wave(seed, seconds, rate):
    """float32 mono, peak about 0.5: two amplitude-modulated chirps, four enveloped noise bursts and
    a weak noise floor."""
    r, n = np.random.RandomState(int(seed)), round(seconds * rate)
    t = np.arange(n, dtype=np.float64) / rate
    x = 0.002 * r.standard_normal(n)
    for _ in range(2):
        f0, f1 = np.exp(r.uniform(np.log(120.0), np.log(0.35 * rate), 2))
        a, m, ph = r.uniform(0.1, 0.3), r.uniform(1.0, 9.0), r.uniform(0, 2 * np.pi)
        x += (
            a
            * np.sin(2 * np.pi * (f0 * t + (f1 - f0) * t * t / (2 * max(seconds, 1e-9))) + ph)
            * (0.6 + 0.4 * np.sin(2 * np.pi * m * t))
        )
    for _ in range(4):
        c, w, a = r.uniform(0, seconds), r.uniform(0.02, 0.15), r.uniform(0.1, 0.4)
        x += a * np.exp(-0.5 * ((t - c) / w) ** 2) * r.standard_normal(n) * 0.5
    return (0.5 * x / max(1e-9, np.abs(x).max())).astype(np.float32)
