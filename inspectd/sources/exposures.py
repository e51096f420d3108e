"""When frames were exposed, by their arrival, the stream's own time and RTCP. Pure: times in, times out."""

from __future__ import annotations

from dataclasses import dataclass

from inspectd.records import TimeKind

DRIFT = 0.005
"""So much a camera's clock may run slow against this machine's; what rises faster is a delay."""
MOST_TRANSIT_NS = 500_000_000
CLOCK_SLACK_NS = 5_000_000
"""A camera's clock that is right says that frames were exposed before they arrived, and not long before."""
LAG_SLACK_NS = 20_000_000
"""How far the camera's clock may disagree with a lag that is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """`waited_ns` is how much longer than the quickest frames this one took to arrive: a backlog's frames are old."""

    captured_ns: int
    kind: TimeKind
    waited_ns: int


class ExposureClock:
    """The clock of one connection.

    The stream's own time says how far apart frames were exposed, the quickest arrivals tie it to this machine's clock.
    So of frames that waited in a network or a stalled camera each is known to be old, however fast they come then.
    Where the sender's wall clock (RTCP) agrees with that it is taken instead: it knows the camera's own delay too.

    Args:
        lag_ns: how long after its exposure a frame arrives, None where nobody knows.
        wall_ns: this machine's wall clock less its monotonic one, read once, so that no step of it moves a frame.
    """

    def __init__(self, *, lag_ns: int | None, wall_ns: int) -> None:
        self._lag_ns = lag_ns
        self._wall_ns = wall_ns
        self._tie_ns: float | None = None
        self._tied_ns = 0
        self._rtcp_ns: float | None = None

    def heard(self, arrived_ns: int, pts_s: float | None, rtcp_utc_ns: int | None = None) -> None:
        """Takes each packet, in order of arrival."""
        if pts_s is None:
            return
        behind_ns = arrived_ns - pts_s * 1e9
        if self._tie_ns is None:
            self._tie_ns = behind_ns
        self._tie_ns = min(behind_ns, self._tie_ns + DRIFT * max(0, arrived_ns - self._tied_ns))
        self._tied_ns = arrived_ns
        self._rtcp_ns = None if rtcp_utc_ns is None else rtcp_utc_ns - self._wall_ns - pts_s * 1e9

    def exposure(self, arrived_ns: int, pts_s: float | None) -> Exposure:
        """When a picture was exposed whose packet came at `arrived_ns`."""
        lag_ns = self._lag_ns or 0
        if pts_s is None or self._tie_ns is None:
            return Exposure(captured_ns=arrived_ns - lag_ns, kind=TimeKind.ARRIVAL, waited_ns=0)
        steady_ns = min(arrived_ns, round(pts_s * 1e9 + self._tie_ns))
        waited_ns = arrived_ns - steady_ns
        if self._rtcp_ns is not None and self._is_credible(self._tie_ns - self._rtcp_ns):
            captured_ns = min(steady_ns, round(pts_s * 1e9 + self._rtcp_ns))
            return Exposure(captured_ns=captured_ns, kind=TimeKind.RTCP, waited_ns=waited_ns)
        return Exposure(captured_ns=steady_ns - lag_ns, kind=TimeKind.ARRIVAL, waited_ns=waited_ns)

    def _is_credible(self, transit_ns: float) -> bool:
        """Whether the camera's clock can be right, by how long it says that the quickest frames were under way."""
        if self._lag_ns is not None and abs(transit_ns - self._lag_ns) > LAG_SLACK_NS:
            return False
        return -CLOCK_SLACK_NS <= transit_ns <= MOST_TRANSIT_NS
