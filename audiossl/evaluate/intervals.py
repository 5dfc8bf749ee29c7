"""95 % confidence intervals of metrics measured over folds and seeds.

Two things make a measured metric uncertain, and they are counted apart:

- which clips are in the test set. Cluster bootstrap: whole groups (recordings, speakers) are drawn
  with replacement within each fold, because clips of one group stand or fall together, and the
  same draw serves all seeds, which are tested on the same clips. `test_variance` is the variance
  over the draws of the metric's mean over folds and seeds.
- what the seed decides (which few clips are trained on, first weights). `seed_variance` is the
  variance of the seeds' means over their number; with one seed it is not known and left out.

Their sum V has the degrees of freedom that Welch (1947) and Satterthwaite (1946) give. For a metric
m in [0, 1] the interval is Wilson's (1927) with the effective number of trials m (1 - m) / V, as
Korn and Graubard (1998) do for clustered surveys, and Student's quantile: it stays inside [0, 1]
and is not empty when every clip is right. With one seed it says how sure the value is for probes
trained on these folds, not how it would vary with other training clips: the folds share most of
theirs, and no unbiased estimate of that part exists (Bengio and Grandvalet 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

REPLICATES = 500  # the standard error of a bootstrapped deviation is then 3 % of it
LEVEL = 0.95
NORMAL_FROM = 1000  # degrees of freedom: Student's quantile is then 0.1 % off the normal one
GRID = 20_001


def bootstrap_weights(
    groups: Sequence[int] | NDArray[np.int64],
    strata: Sequence[int] | NDArray[np.int64],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> NDArray[np.uint16]:
    """(replicates, clips): how often each clip is drawn, when its stratum's groups are.

    groups, strata: (clips,); a stratum (a fold) draws as many groups as it has.
    """
    groups, strata = np.asarray(groups), np.asarray(strata)
    rng = np.random.default_rng(seed)
    weights = np.zeros((replicates, len(groups)), np.uint16)
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        names, place = np.unique(groups[inside], return_inverse=True)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), replicates)
        weights[:, inside] = drawn[:, place]
    return weights


def interval(
    mean: float, test_variance: float, seed_means: Sequence[float], trials: int, strata: int = 1
) -> tuple[float, float]:
    """95 % interval of a metric in [0, 1] whose mean over folds and seeds is `mean`.

    test_variance: over bootstrap draws of that mean. seed_means: the mean of each seed. trials:
    groups in the test sets. strata: folds that they were drawn in.
    """
    parts = [(test_variance, max(1, trials - strata))]
    if len(seed_means) > 1:
        spread = float(np.var(seed_means, ddof=1)) / len(seed_means)
        parts.append((spread, len(seed_means) - 1))
    variance = sum(value for value, _ in parts)
    if not variance > 0:
        return wilson(mean, trials, t_quantile(0.5 + LEVEL / 2, parts[0][1]))
    freedom = variance**2 / sum(value**2 / count for value, count in parts)
    quantile = t_quantile(0.5 + LEVEL / 2, freedom)
    return wilson(mean, mean * (1 - mean) / variance, quantile)


def wilson(share: float, trials: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share in `trials` trials, at this quantile (1.96 for 95 %)."""
    if not trials > 0:
        return 0.0, 1.0
    shrink = 1 + quantile**2 / trials
    centre = (share + quantile**2 / (2 * trials)) / shrink
    spread = share * (1 - share) / trials + quantile**2 / (4 * trials**2)
    half = quantile * math.sqrt(spread) / shrink
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile above the median of Student's distribution with `freedom` >= 1, to 4 digits.

    With t = sqrt(freedom) tan(a) its density is proportional to cos(a) ** (freedom - 1).
    """
    if freedom > NORMAL_FROM:
        return NormalDist().inv_cdf(probability)
    angle = np.linspace(0, math.pi / 2, GRID)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0], ((density[1:] + density[:-1]) / 2).cumsum()])
    place = np.interp(2 * probability - 1, area / area[-1], angle)
    return math.sqrt(freedom) * math.tan(place)
