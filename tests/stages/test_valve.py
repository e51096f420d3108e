"""When memory that peers took is taken back."""

from __future__ import annotations

from inspectd.stages.valve import LOOK_NS, PAUSE_NS, ROOM_BYTES, Relief, Valve

FULL = 1000 + ROOM_BYTES


def test_sockets_are_given_up_one_after_the_other() -> None:
    """First control; what that gave back is waited for; then verdicts; what remains then is put up with."""
    valve = Valve(1000)
    assert valve.look(FULL - 1, 0) is None
    assert not valve.is_due(LOOK_NS - 1)
    assert valve.look(FULL, LOOK_NS) is Relief.CONTROL
    assert not valve.is_due(LOOK_NS + PAUSE_NS - 1)
    assert valve.look(FULL, PAUSE_NS) is Relief.VERDICTS
    assert [valve.look(FULL, now_ns) for now_ns in (1, 2)] == [None, None]
    assert valve.look(FULL + ROOM_BYTES, 3) is Relief.CONTROL


def test_what_helped_is_tried_first_again() -> None:
    """After a relief that was enough the next trouble begins with control."""
    valve = Valve(1000)
    assert valve.look(FULL, 0) is Relief.CONTROL
    assert valve.look(1000, 1) is None
    assert valve.look(FULL, 2) is Relief.CONTROL


def test_a_flood_of_subscriptions_leaves_control_alone() -> None:
    """Where it is known who is to blame, nobody else is dropped."""
    valve = Valve(1000)
    assert valve.look(FULL, 0, flooded=True) is Relief.VERDICTS
    assert valve.look(1000, 1) is None
