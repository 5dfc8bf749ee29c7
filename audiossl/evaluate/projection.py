"""Features in two dimensions, to be looked at."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from audiossl.errors import UsageError

MAPS = ("pca", "tsne")
PERPLEXITY = 30.0  # of t-SNE, less where there are few points

Array = NDArray[np.float64]


def check(kind: str) -> None:
    """Raise UsageError when maps of this kind cannot be made here."""
    if kind not in MAPS:
        raise UsageError(f"map {kind!r}: one of {', '.join(MAPS)}")
    if kind == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise UsageError("map tsne needs scikit-learn: pip install scikit-learn, or take pca")


def project(features: NDArray[np.float32], kind: str) -> tuple[Array, str]:
    """features: (clips, dim) -> positions (clips, 2), and what they are in words."""
    check(kind)
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    if kind == "tsne":
        return tsne(scaled), "t-SNE of the standardised features: only neighbourhoods mean anything"
    places, shares = pca(scaled)
    percent = " and ".join(f"{100 * share:.0f} %" for share in shares)
    return places, f"the first two principal components, {percent} of the variance"


def pca(features: NDArray[np.float32]) -> tuple[Array, Array]:
    """(clips, dim) -> (clips, 2) and the two components' shares of the variance.

    Each component's largest value is positive, so that the same features give the same picture.
    """
    x = features - features.mean(0, dtype=np.float64)
    wide = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = np.maximum(values[::-1][:2], 0), vectors[:, ::-1][:, :2]
    places = vectors * np.sqrt(values) if wide else x @ vectors
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    largest = places[np.abs(places).argmax(0), [0, 1]]
    shares = values / max(float(np.square(x).sum()), np.finfo(float).tiny)
    return places * np.where(largest < 0, -1, 1), shares


def tsne(features: NDArray[np.float32]) -> Array:
    """(clips, dim) -> (clips, 2) by scikit-learn, from the principal components."""
    from sklearn.manifold import TSNE

    few = min(PERPLEXITY, (len(features) - 1) / 3)
    fitted = TSNE(2, perplexity=max(few, 1.0), init="pca", random_state=0)
    return fitted.fit_transform(features).astype(np.float64)
