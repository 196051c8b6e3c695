"""Treating preference edges by their strength (Part II, section 2): flip, drop, margin, smooth, weight.

An edge's strength is the mean over reward models of r(better) - r(worse) (equation 4). It imports no more than numpy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from rmfast.errors import KeyClash, UserError

Slice = tuple[float, float]
"""Quantiles of strength from low to high, the latter not in it; (0, 0.1) are the weakest tenth."""

LARGEST_MARGIN = 1e4
"""No difference of scores is ever beyond it: the edge would pull for ever, or never."""
MAKE_STRENGTHS = (
    "write strengths (columns strength_mean and strength_std) into the data with `task: ensemble`, or with "
    "`rmfast score` and several checkpoints"
)


@dataclass(frozen=True, kw_only=True)
class Denoise:
    """What to do with edges, in this order; the defaults change nothing.

    Quantiles go by the strengths before the flip, over all edges that have one; equal ones in the data's order. Values
    (below, negative, margins, soft labels, weights) go by the strengths after the flip, which negates them.

    Args:
        flip: share of the edges, weakest first, of which those of negative strength swap better and worse.
        drop: quantiles of the edges to leave out.
        drop_below: strength below which edges are left out.
        margin: "mean" sets the margin to clip(margin_scale * strength, margin_min, margin_max), in place of the
            data's (equation 6); "none" leaves that.
        smooth: a of label smoothing (equation 5): the target t becomes (1 - a) t + a (1 - t).
        smooth_slice: edges that `smooth` and `soft_temperature` are for: those of negative strength, all, or quantiles.
        soft_temperature: T of soft labels (ours; not in the paper): the target becomes sigmoid(strength / T).
        weight_temperature: T of a weight by strength (ours): the weight is multiplied by sigmoid(strength / T).

    Raises:
        KeyClash: a number out of its range, or two options for the same thing.
    """

    flip: float = 0.0
    drop: Slice | None = None
    drop_below: float | None = None
    margin: Literal["none", "mean"] = "none"
    margin_scale: float = 1.0
    margin_min: float | None = None
    margin_max: float | None = None
    smooth: float = 0.0
    smooth_slice: Literal["negative", "all"] | Slice = "all"
    soft_temperature: float | None = None
    weight_temperature: float | None = None

    def __post_init__(self) -> None:
        for name, high in (("flip", 1.0), ("smooth", 0.5)):
            if not 0 <= getattr(self, name) <= high:
                raise _clash(name, f"must be from 0 to {high:g}, got {getattr(self, name):g}")
        for name in ("drop", "smooth_slice"):
            part = getattr(self, name)
            if part is not None and not isinstance(part, str) and not 0 <= part[0] < part[1] <= 1:
                raise _clash(name, f"must be quantiles 0 <= low < high <= 1, got {part[0]:g}, {part[1]:g}")
        for name in ("margin_scale", "soft_temperature", "weight_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _clash(name, f"must be above 0, got {value:g}")
        if self.margin_min is not None and self.margin_max is not None and self.margin_min > self.margin_max:
            raise _clash("margin_min", f"({self.margin_min:g}) is above denoise.margin_max", "margin_max")
        if self.smooth and self.soft_temperature is not None:
            text = "and denoise.soft_temperature both set the target; leave one out"
            raise _clash("smooth", text, "soft_temperature")

    @property
    def active(self) -> bool:
        """Whether it may change anything."""
        return bool(self.smooth) or self.needs_strength

    @property
    def needs_strength(self) -> bool:
        """Whether an edge without a strength cannot be denoised. Smoothing all edges needs none."""
        options = (self.drop, self.drop_below, self.soft_temperature, self.weight_temperature)
        by_slice = bool(self.smooth) and self.smooth_slice != "all"
        return bool(self.flip) or self.margin != "none" or by_slice or any(o is not None for o in options)

    def __str__(self) -> str:
        """The options that differ from the defaults."""
        default = asdict(Denoise())
        given = {name: value for name, value in asdict(self).items() if value != default[name]}
        words = (" to ".join(f"{v:g}" for v in x) if isinstance(x, tuple) else str(x) for x in given.values())
        return ", ".join(f"{name} {word}" for name, word in zip(given, words, strict=True)) or "none"


def _clash(name: str, text: str, *others: str) -> KeyClash:
    return KeyClash(f"denoise.{name} {text}", *(f"denoise.{key}" for key in (name, *others)))


PRESETS = {
    "baseline": Denoise(),
    "margin": Denoise(margin="mean"),
    "flip": Denoise(flip=0.1),
    "flip_margin": Denoise(flip=0.1, margin="mean"),
    "soft_margin": Denoise(smooth=0.1, smooth_slice="negative", margin="mean"),
}
"""The five trainings that Part II compares. The shares 0.1 are ours where the paper gives none or several."""


def resolve(preset: str | None, given: Mapping[str, Any]) -> Denoise:
    """A preset (None: baseline) with some of its options given again; those that are None stay the preset's.

    Raises:
        KeyClash: as `Denoise`; or an option that would do nothing.
    """
    given = {name: value for name, value in given.items() if value is not None}
    soft = {"smooth": 0.0} if "soft_temperature" in given else {}  # in place of a preset's smoothing
    options = replace(PRESETS[preset or "baseline"], **(soft | given))
    for name in given:
        if name.startswith("margin_") and options.margin == "none":
            raise _clash(name, "does nothing without denoise.margin mean", "margin")
    if "smooth_slice" in given and not options.smooth and options.soft_temperature is None:
        raise _clash("smooth_slice", "does nothing without denoise.smooth or denoise.soft_temperature")
    return options


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    """What became of E edges; all arrays [E], in the order in which the edges were given.

    Dropped edges are in no other mask. `strength` is that after the flip, nan where there is none; `known` are the
    edges that have one. Edges between identical responses weigh nothing: they are left alone and in no mask.
    """

    options: Denoise
    strength: np.ndarray  # float32
    margin: np.ndarray  # float32
    target: np.ndarray  # float32
    weight: np.ndarray  # float32
    known: np.ndarray  # bool
    flipped: np.ndarray  # bool
    dropped: np.ndarray  # bool
    smoothed: np.ndarray  # bool, a new target
    unknown: int
    """Edges without strength that would have needed one."""
    replaced_margins: int
    """Margins of the data that were replaced."""
    replaced_targets: int
    """Targets of the data that soft labels replaced."""

    @property
    def kept(self) -> np.ndarray:
        """Edges with a strength that are still there, bool [E]."""
        return self.known & ~self.dropped

    def summary(self) -> str:
        """Counts of all that was asked for, and of what could not be done."""
        options, counts = self.options, []
        if options.flip:
            counts.append(f"{self.flipped.sum():,} flipped")
        if options.drop is not None or options.drop_below is not None:
            counts.append(f"{self.dropped.sum():,} dropped")
        if options.margin != "none":
            counts.append(f"{self.kept.sum():,} margins ({spread(self.margin[self.kept])})")
        if options.smooth or options.soft_temperature is not None:
            counts.append(f"{self.smoothed.sum():,} {'smoothed' if options.smooth else 'soft labels'}")
        if options.weight_temperature is not None:
            counts.append(f"{self.kept.sum():,} weighted")
        for count, what in (
            (self.unknown, "without a strength, left as they are"),
            (self.replaced_margins, "margins of the data replaced"),
            (self.replaced_targets, "targets of the data replaced"),
        ):
            if count:
                counts.append(f"{count:,} {what}")
        return f"{len(self.known):,} edges, {self.known.sum():,} with a strength: {', '.join(counts) or 'unchanged'}"


def spread(values: np.ndarray) -> str:
    """Smallest, middle and largest of some numbers."""
    if not len(values):
        return "none"
    return f"{values.min():.4g} / {np.median(values):.4g} / {values.max():.4g}"


def quantile_slice(strength: np.ndarray, known: np.ndarray, part: Slice) -> np.ndarray:
    """bool [E]: the edges between two quantiles of strength among the known ones; equal ones in their order.

    Slices that meet hold each edge once: of n edges, slice (a, b) holds ranks round(a n) to round(b n), exclusive.
    """
    places = np.flatnonzero(known)
    order = places[np.argsort(strength[places], kind="stable")]
    low, high = (int(np.floor(share * len(order) + 0.5)) for share in part)
    mask = np.zeros(len(strength), dtype=bool)
    mask[order[low:high]] = True
    return mask


def denoise_edges(
    options: Denoise,
    *,
    strength: np.ndarray,
    margin: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    identical: np.ndarray,
) -> Denoised:
    """Treat E edges; all arrays [E].

    Args:
        strength: mean over models of r(better) - r(worse), nan where there is none.
        margin, target, weight: the data's.
        identical: bool, whether both sides are the same.

    Raises:
        UserError: options that need strengths, and no edge has one; or no edge would be left.
    """
    known = np.isfinite(strength) & ~identical
    unknown = int((~known & ~identical).sum()) if options.needs_strength else 0
    if options.needs_strength and not known.any():
        raise UserError(f"denoise ({options}): no edge has a strength; {MAKE_STRENGTHS}")
    given = strength
    flipped = np.zeros(len(given), dtype=bool)
    dropped, smoothed = flipped.copy(), flipped.copy()
    if options.flip:
        flipped = quantile_slice(given, known, (0.0, options.flip)) & (given < 0)
        strength = np.where(flipped, -given, given)
    if options.drop is not None:
        dropped = quantile_slice(given, known, options.drop)
    if options.drop_below is not None:
        dropped = dropped | (known & (strength < options.drop_below))
    if (dropped | identical).all():
        raise UserError(f"denoise ({options}): no edge is left; drop fewer")
    flipped, kept = flipped & ~dropped, known & ~dropped
    replaced_margins = replaced_targets = 0
    if options.margin != "none":
        wanted = np.clip(options.margin_scale * strength, options.margin_min, options.margin_max)
        replaced_margins = int((kept & (margin != 0)).sum())
        margin = np.where(kept, wanted, margin).astype(np.float32)
        if not (largest := np.abs(margin).max(initial=0.0)) <= LARGEST_MARGIN:
            raise UserError(
                f"denoise ({options}): margins of up to {largest:g}, and beyond {LARGEST_MARGIN:,.0f} an edge trains "
                "nothing: lower denoise.margin_scale, or set margin_min and margin_max"
            )
    if options.smooth or options.soft_temperature is not None:
        if options.smooth_slice == "all":
            smoothed = ~identical & ~dropped
        elif options.smooth_slice == "negative":
            smoothed = kept & (strength < 0)
        else:
            smoothed = quantile_slice(given, known, options.smooth_slice) & ~dropped
    if options.soft_temperature is not None:
        smoothed &= known
        replaced_targets = int((smoothed & (target != 1)).sum())
        target = np.where(smoothed, _sigmoid(strength, options.soft_temperature), target).astype(np.float32)
    if options.smooth:
        flat = (1 - options.smooth) * target.astype(np.float64) + options.smooth * (1 - target.astype(np.float64))
        target = np.where(smoothed, flat, target).astype(np.float32)
    if options.weight_temperature is not None:
        factor = np.where(kept, _sigmoid(strength, options.weight_temperature), 1.0)
        weight = (weight * factor).astype(np.float32)
    return Denoised(
        options=options,
        strength=strength,
        margin=margin,
        target=target,
        weight=weight,
        known=known,
        flipped=flipped,
        dropped=dropped,
        smoothed=smoothed,
        unknown=unknown,
        replaced_margins=replaced_margins,
        replaced_targets=replaced_targets,
    )


def _sigmoid(strength: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(strength / temperature), without overflow."""
    return 0.5 + 0.5 * np.tanh(strength.astype(np.float64) / (2 * temperature))
