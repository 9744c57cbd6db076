"""The gate of golden/README.md in Python, for the tests of the cases and for `golden --check`.

E(x) = rms(x - truth). Ours may err twice as much as the reference, over the tensor and (give or take chance) in every
channel, and its worst element five times as much; what lies under the rounding of the output's dtype counts as that rounding.
"""

import dataclasses
import math

import numpy as np

# Half a unit in the last place, relative to the value.
ROUNDING = {"f32": 2.0**-24, "bf16": 2.0**-8}
RMS_RATIO_MAX = 2.0
LARGEST_RATIO_MAX = 5.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Ratios of our error to the reference's: rms over the tensor, rms in the worst channel, largest element."""

    tensor: float
    channel: float
    largest: float
    channel_max: float

    @property
    def passed(self) -> bool:
        return self.tensor <= RMS_RATIO_MAX and self.channel <= self.channel_max and self.largest <= LARGEST_RATIO_MAX


def channel_ratio_max(rows: int, channels: int) -> float:
    """The limit for the worst of `channels` samples of `rows` errors each.

    The rms of n normal errors exceeds its expectation by the factor 1 + sqrt(2 x / n) with a probability of at most
    exp(-x) (Laurent and Massart, 2000); for one among C channels x is ln C.
    """
    return RMS_RATIO_MAX * (1 + math.sqrt(2 * math.log(channels) / rows))


def rms(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Root mean square, scaled first: squares of denormals and of huge values leave the range of float64."""
    scale = np.abs(x).max(initial=0.0)
    if scale == 0.0:
        return np.sqrt(np.square(x).mean(axis=axis))
    return np.sqrt(np.square(x / scale).mean(axis=axis)) * scale


def ratio(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest ours / reference; 0 / 0 is 1, because both are as exact as can be."""
    ours, reference = np.atleast_1d(ours), np.atleast_1d(reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(ours == reference, 1.0, ours / reference)
    return float(quotient.max())


def judge(ours: np.ndarray, reference: np.ndarray, truth: np.ndarray, dtype: str) -> Verdict:
    """The verdict on `ours` [..., C] of the output dtype `dtype`; all arrays of one shape."""
    channels = truth.shape[-1]
    channel_max = channel_ratio_max(truth.size // channels, channels)
    if not np.isfinite(ours).all():
        return Verdict(np.inf, np.inf, np.inf, channel_max)
    truth = truth.astype(np.float64).reshape(-1, channels)
    ours_error = ours.astype(np.float64).reshape(-1, channels) - truth
    reference_error = reference.astype(np.float64).reshape(-1, channels) - truth
    unit = ROUNDING[dtype]

    signal, noise = rms(truth), rms(reference_error)
    floor = unit * signal
    tensor = ratio(max(rms(ours_error), floor), max(noise, floor))

    channel_signal = rms(truth, axis=0)
    noise_to_signal = noise / signal if signal > 0 else 0.0
    channel_noise = np.maximum(np.maximum(rms(reference_error, axis=0), noise), noise_to_signal * channel_signal)
    channel_floor = unit * channel_signal
    channel = ratio(np.maximum(rms(ours_error, axis=0), channel_floor), np.maximum(channel_noise, channel_floor))

    largest_floor = unit * np.abs(truth).max()
    largest = ratio(max(np.abs(ours_error).max(), largest_floor), max(np.abs(reference_error).max(), largest_floor))
    return Verdict(tensor, channel, largest, channel_max)
