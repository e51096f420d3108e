"""When a child that has died is tried again. Pure: time comes in."""

from __future__ import annotations

from collections import deque

MANY = 5
WITHIN_S = 60.0
BACKOFF_S = 0.1
SLOW_S = 10.0


class Restarts:
    """The deaths of one child: the first is made good at once, further ones a little later each, many only slowly.

    >>> deaths = Restarts()
    >>> [deaths.pause_s(now_s) for now_s in (0, 1, 2, 3, 4, 14, 70)], deaths.many
    ([0.0, 0.1, 0.2, 0.3, 10.0, 10.0, 0.1], False)
    """

    def __init__(self) -> None:
        self._died_s: deque[float] = deque(maxlen=MANY)

    def pause_s(self, now_s: float) -> float:
        """Takes note of a death; how long to wait before the next try."""
        self._died_s.append(now_s)
        while now_s - self._died_s[0] >= WITHIN_S:
            self._died_s.popleft()
        return SLOW_S if self.many else round(BACKOFF_S * (len(self._died_s) - 1), 3)

    @property
    def many(self) -> bool:
        """Whether the last minute saw so many deaths that the next try will hardly do."""
        return len(self._died_s) == MANY
