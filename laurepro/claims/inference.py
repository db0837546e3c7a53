"""The statistics of claims: t-intervals of differences over seeds, Holm's correction, and how many seeds would decide.

Everything is vectorised and knows neither claims nor records, so that `make acceptance` can simulate it. A *region*
(low, high) of the real line is what a claim states of a mean: (0, inf) for an ordering, (0.7, 1.7) for "+1.2" within
0.5. A two-sided interval decides when it contains no boundary of its region. That is so exactly where p <= alpha, for
p = P(|T| >= distance of the mean to the nearest boundary / standard error), Student's T with n - 1 degrees of freedom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000
LEAST_SEEDS = 5  # from which a deviation says how many seeds would decide

Array = npt.NDArray[np.float64]
Like = npt.ArrayLike


def distance(mean: Like, low: Like, high: Like) -> Array:
    """How far a mean lies from the nearest boundary of its region, negative outside of it."""
    mean = np.asarray(mean, dtype=np.float64)
    return np.asarray(np.minimum(mean - np.asarray(low), np.asarray(high) - mean))


def p_value(margin: Like, standard_error: Like, n: Like, sides: Like = 2) -> Array:
    """The p of a mean of `n` values that lies `margin` from a boundary. NaN without a spread (n < 2, or 0)."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(np.asarray(standard_error) > 0, standard_error, np.nan)
        return np.asarray(np.asarray(sides) * stdtr(np.asarray(n) - 1.0, -np.abs(margin) / error))


def half_width(standard_error: Like, n: Like, alpha: Like, sides: Like = 2) -> Array:
    """Half of the t-interval of level 1 - alpha; with one side of 1 - 2 alpha, each end then a bound of 1 - alpha."""
    from scipy.special import stdtrit

    quantile = stdtrit(np.asarray(n) - 1.0, 1 - np.asarray(alpha) / np.asarray(sides))
    return np.asarray(quantile * np.asarray(standard_error))


def holm(p: Like, family: int, alpha: float = ALPHA) -> tuple[Array, Array]:
    """Holm's step-down correction over the last axis.

    Args:
        p: p-values, NaN for a comparison of the family that was not made (it counts as one that shows nothing).
        family: How many comparisons the family has, made or not. What was decided stays decided as others are added.
        alpha: The family-wise error rate.

    Returns:
        The adjusted p-values, and for each comparison the alpha' at which its interval is to be read: the interval of
        level 1 - alpha' excludes the boundary exactly where the adjusted p is at most `alpha`.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)  # NaN last
    ordered = np.take_along_axis(p, order, -1)
    steps = family - np.arange(p.shape[-1], dtype=np.float64)
    adjusted = np.minimum(np.maximum.accumulate(ordered * steps, axis=-1), 1.0)
    # Once one is not rejected, none with a larger p is: they are all read at the level of the first.
    open_ = np.cumsum(~(ordered * steps <= alpha), axis=-1) > 0
    first = np.where(open_.any(-1), open_.argmax(-1), p.shape[-1] - 1)
    rank = np.minimum(np.arange(p.shape[-1]), first[..., None])
    levels = alpha / (family - rank)
    back = np.argsort(order, axis=-1)
    return np.take_along_axis(adjusted, back, -1), np.take_along_axis(levels, back, -1)


def power(margin: float, std: float, n: int, alpha: float) -> float:
    """Probability that `n` seeds decide, for a true mean `margin` inside the region and a standard deviation `std`."""
    from scipy.special import nctdtr, stdtrit

    critical, effect = stdtrit(n - 1.0, 1 - alpha / 2), abs(margin) / std * np.sqrt(n)
    missed = float(nctdtr(n - 1.0, effect, critical))
    if np.isnan(missed):  # of large effects
        from scipy.stats import nct  # which is slow to import

        return float(nct.sf(critical, n - 1, effect))
    return 1 - missed


def seeds_needed(margin: float, std: float, alpha: float, wanted: float = POWER) -> int | None:
    """The fewest seeds that decide with the wanted power, or None: no margin, or more than MOST_SEEDS."""
    if not (std > 0 and margin != 0) or power(margin, std, MOST_SEEDS, alpha) < wanted:
        return None
    low, high = 1, MOST_SEEDS  # low does not suffice, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(margin, std, middle, alpha) >= wanted else (middle, high)
    return high


def seeds_range(margin: float, std: float, freedom: float, alpha: float) -> tuple[int, int | None] | None:
    """`seeds_needed` for both ends of the 80 % interval of the deviation; the latter None: more than MOST_SEEDS.

    `freedom`: the degrees of freedom of `std`. None where even the smaller deviation needs more than MOST_SEEDS.
    """
    from scipy.special import gammaincinv

    low, high = (std * float(np.sqrt(freedom / (2 * gammaincinv(freedom / 2, q)))) for q in (0.9, 0.1))
    fewest = seeds_needed(margin, low, alpha)
    return None if fewest is None else (fewest, seeds_needed(margin, high, alpha))


def summary(values: Like) -> tuple[float, float, int]:
    """Mean, standard deviation and number; the deviation is NaN for a single value."""
    array: Any = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # of values that no score can have; the deviation is not finite
        return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else float("nan"), int(array.size)
