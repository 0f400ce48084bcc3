"""When the next picture is due, and how large it may be, so that training loses a set share.

A picture costs c seconds (of host and GPU together, which is more than either delays the training).
Pictures follow each other after max(1 / rate, c / share) seconds, so that they never take more than
the share; it is larger while the camera moves or something else was chosen. Where that is slower
than the rate asked for, they become smaller first; the first ones are small, as nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STILL_SHARE, MOVING_SHARE = 0.05, 0.4
PATIENCE = 1.0  # seconds that one waits for a sharp picture of what rests
MOVING_RATE = 24.0  # pictures per second while the camera moves
STILL_SCALES, MOVING_SCALES = (1.0, 0.75, 0.5), (1.0, 0.75, 0.5, 0.35, 0.25)
NEWEST = 0.3  # weight of the latest cost in the running mean
ROOM = 0.9  # of the cost allowed; a larger picture is tried below it


@dataclass
class _Gear:
    """Sizes and limits of one state of the camera."""

    share: float
    scales: tuple[float, ...]
    place: int
    cost: float = 0.0  # seconds of a picture at this scale
    settled: int = 0  # pictures at this scale

    def learn(self, cost: float, rate: float) -> None:
        self.settled += 1
        self.cost = cost if self.settled <= 2 else self.cost + NEWEST * (cost - self.cost)
        allowed = self.share / rate
        if self.settled < 3:  # the first also pays for what is made once
            return
        if self.cost > allowed and self.place + 1 < len(self.scales):
            self.place, self.settled = self.place + 1, 0
        elif self.place > 0 and self.cost * self._growth < ROOM * allowed:
            self.place, self.settled = self.place - 1, 0

    @property
    def _growth(self) -> float:
        return (self.scales[self.place - 1] / self.scales[self.place]) ** 2


@dataclass
class Pace:
    """The pace of one viewer."""

    rate: float = 10.0
    """Pictures per second while the camera rests."""
    total: float = 0.0
    """Seconds that pictures have cost so far."""
    _last: float = float("-inf")
    _still: _Gear = field(default_factory=lambda: _Gear(STILL_SHARE, STILL_SCALES, 2))
    _moving: _Gear = field(default_factory=lambda: _Gear(MOVING_SHARE, MOVING_SCALES, 4))
    _full: float = float("inf")  # seconds of a picture at full size, from the latest

    def due(self, now: float, *, moved: bool) -> bool:
        """Whether a picture may be drawn at a time, in seconds."""
        gear = self._gear(moved)
        rate = MOVING_RATE if moved else self.rate
        return now - self._last >= max(1 / rate, gear.cost / gear.share)

    def scale(self, *, moved: bool) -> float:
        """Of the window's sides, for the next picture."""
        gear = self._gear(moved)
        return gear.scales[gear.place]

    def sharpest(self) -> float:
        """The largest scale at which a picture takes PATIENCE at most, for what rests."""
        fitting = [s for s in MOVING_SCALES if self._full * s * s <= PATIENCE]
        return fitting[0] if fitting else MOVING_SCALES[-1]

    def drawn(self, now: float) -> None:
        """A picture was drawn."""
        self._last = now

    def spent(
        self, cost: float, *, moved: bool, scale: float | None = None, steady: bool = True
    ) -> None:
        """What a picture cost, in seconds, known some time after it was drawn.

        Args:
            cost: Seconds of host and GPU.
            moved: Whether the camera moved.
            scale: What it was drawn at, where that is not what `scale` says.
            steady: Whether the next one is expected to cost as much.
        """
        self.total += cost
        if not steady:
            return
        self._full = cost / (scale or self.scale(moved=moved)) ** 2
        if scale is not None:
            return
        self._gear(moved).learn(cost, MOVING_RATE if moved else self.rate)

    def _gear(self, moved: bool) -> _Gear:
        return self._moving if moved else self._still
