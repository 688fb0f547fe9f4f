"""The last samples of some numbers, each with a number of its own, so that who has seen some asks for the rest."""

from __future__ import annotations

from collections import deque
from typing import Any

Sample = dict[str, Any]


class History:
    """A ring of samples. Pure: the samples come in, and their time with them."""

    def __init__(self, samples_max: int) -> None:
        """samples_max: kept at most; the oldest go first."""
        self._samples: deque[Sample] = deque(maxlen=samples_max)
        self.last = 0  # number of the newest sample; 0: none yet

    def add(self, sample: Sample) -> None:
        """Keep it as the newest."""
        self.last += 1
        self._samples.append({"seq": self.last, **sample})

    def after(self, seq: int) -> list[Sample]:
        """Samples newer than number seq, oldest first; those that are gone are not missed."""
        wanted = min(max(self.last - seq, 0), len(self._samples))
        return [self._samples[at] for at in range(len(self._samples) - wanted, len(self._samples))]
