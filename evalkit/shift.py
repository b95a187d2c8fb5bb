"""A shift: one phase of one task, handed out unit by unit to workers that come and go, wherever they are.

The supervisor of one machine (`supervisor.py`) and the driver of a Ray cluster (`ray_engine.py`) differ in how messages
travel and how a worker is started; who has which unit, what comes back when a worker is lost and when all is done is
decided here. The messages are those of `worker.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from evalkit import errors
from evalkit.errors import EvalkitError
from evalkit.loading import UNITS_AHEAD
from evalkit.progress import Reporter
from evalkit.run import Outcome

_IN_HAND = 1 + UNITS_AHEAD
"""Units a worker has at a time: the one it works on and those its loader threads open."""
_LOADING_FACTOR = 6
"""A worker that still beats may take so many heartbeats to load a model: an hour, by default."""
_ASLEEP_S = 10.0
"""A longer gap between two looks at the workers means that this process was stopped, not they."""

_turns = count(1)


class WorkerError(Exception):
    """A worker failed for good; its own traceback is the message."""


@dataclass(kw_only=True, eq=False)
class Hand:
    """A worker as the one who hands out units sees it."""

    name: str
    send: Callable[[Mapping[str, Any]], None]
    """Sends a command; to a worker that is gone it does nothing."""
    state: Literal["resting", "loading", "working", "ending"] = "resting"
    """resting: has no part in it; loading: told to start; working: takes units; ending: told that none is left."""
    units: deque[int] = field(default_factory=deque)
    """Handed out and not reported done."""
    turn: int = 0
    """Number of the start it was last told; what it says about an earlier one is old news."""
    started: float = 0.0
    heard: float = 0.0
    error: str = ""
    """Its last traceback."""


class Shift:
    """Who has which unit of a phase."""

    def __init__(self, number: int, phase: str, units: Sequence[int], progress: Reporter) -> None:
        self.outcome = Outcome()
        self.hands: list[Hand] = []
        self.stopped = False
        self._number, self._phase, self._progress = number, phase, progress
        self._left = deque(units)
        self._again: set[int] = set()
        self._looked = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether nothing is left, in hand or to be said; workers that still load are not waited for."""
        busy = any(hand.state in ("working", "ending") for hand in self.hands)
        return not busy and (self.stopped or not (self._left or any(hand.units for hand in self.hands)))

    def join(self, hand: Hand) -> None:
        """Have a worker take part."""
        if hand not in self.hands:
            self.hands.append(hand)
        hand.state, hand.turn = "loading", next(_turns)
        hand.started = hand.heard = time.monotonic()
        hand.send({"start": [hand.turn, self._number, self._phase]})

    def hear(self, hand: Hand, message: Mapping[str, Any]) -> None:
        """Take note of what a worker says, and hand it its next units.

        Raises:
            EvalkitError: what the worker found to be the user's to mend.
            WorkerError: the worker could not even start; another one could not either.
        """
        if "beat" in message:
            # While it works, only work is a sign of life: a thread that beats beside a stuck device says nothing.
            if hand.state == "loading":
                hand.heard = time.monotonic()
            return
        hand.heard = time.monotonic()
        if "advance" in message:
            samples, images, failed = message["advance"]
            self._progress.advance(samples=samples, images=images, failed=failed)
        elif "done" in message:
            hand.units.remove(message["done"])
        elif message.get("ready") == hand.turn:
            hand.state = "working"
        elif message.get("turn") == hand.turn:
            self.outcome.add(Outcome(**message["outcome"]))
            hand.state = "resting"
            hand.units.clear()
        elif "error" in message:
            self._error(hand, message)
        self._hand_out()

    def lost(self, hand: Hand) -> None:
        """Take back the units of a worker that is gone; those who rest are called for them."""
        hand.state = "resting"
        self.hands.remove(hand)
        self._again.update(hand.units)
        self._left.extendleft(reversed(hand.units))
        hand.units.clear()
        if self._left and not self.stopped:
            for other in self.hands:
                if other.state == "resting":
                    self.join(other)
        self._hand_out()

    def stop(self) -> None:
        """Have everybody finish the batch in hand; nothing more is handed out."""
        if self.stopped:
            return
        self.stopped = True
        for hand in self.hands:
            if hand.state in ("working", "ending"):
                hand.send({"stop": True})

    def close(self) -> None:
        """Tell those who still load that there is nothing to do; they keep the model for the next shift."""
        for hand in self.hands:
            if hand.state == "loading":
                hand.send({"end": True})
                hand.state = "resting"

    def silent(self, heartbeat_s: float) -> list[tuple[Hand, float]]:
        """Return the workers that gave no sign of life for so long, and for how long."""
        now = time.monotonic()
        asleep = now - self._looked
        self._looked = now
        if asleep > _ASLEEP_S:  # Ctrl-Z, or a laptop closed: what they said meanwhile is still to be read
            for hand in self.hands:
                hand.heard += asleep
                hand.started += asleep
        late = []
        for hand in self.hands:
            if hand.state == "loading" and now - hand.started > _LOADING_FACTOR * heartbeat_s:
                late.append((hand, now - hand.started))
            elif hand.state != "resting" and now - hand.heard > heartbeat_s:
                late.append((hand, now - hand.heard))
        return late

    def _error(self, hand: Hand, message: Mapping[str, Any]) -> None:
        kind = getattr(errors, message["kind"], None)
        if kind is not None:
            assert issubclass(kind, EvalkitError)
            raise kind(message["error"])
        hand.error = str(message["error"])
        if hand.state == "loading":
            raise WorkerError(f"{hand.name} failed while it made ready; everything finished is kept\n{hand.error}")

    def _hand_out(self) -> None:
        """Fill the hands of those who work, one unit each in turn; without units left, let them end."""
        working = [hand for hand in self.hands if hand.state == "working"]
        if self.stopped:
            return
        for hand in _in_turn(working, lambda: bool(self._left)):
            index = self._left.popleft()
            hand.units.append(index)
            hand.send({"unit": index, "again": True} if index in self._again else {"unit": index})
        if not self._left:
            for hand in working:
                hand.state = "ending"
                hand.send({"end": True})


def _in_turn(hands: Iterable[Hand], more: Callable[[], bool]) -> Iterable[Hand]:
    """Yield the hands that have room, those with fewest units first, while there is more."""
    hands = list(hands)
    while more() and hands:
        hand = min(hands, key=lambda each: len(each.units))
        if len(hand.units) >= _IN_HAND:
            return
        yield hand
