"""Another machine's clock, told by messages that went there and back. Pure.

Whatever time the two ways took, what had left here at `sent` arrived there later, and what arrived here at `received` had left there earlier:

    here(received_there) ≥ sent        here(sent_there) ≤ received

where here(r) is the instant here at which that clock shows r. Nothing is assumed of the ways, above all not that they take alike. For any other
instant both bounds move along by as much as the two clocks may run apart, `DRIFT_PPM`. The narrowest of the latest exchanges bound the instant: the truth
lies between them, and half their distance is the error. It is half a round trip at best, and no worse than that of the best exchange plus what its age adds.
"""

from collections import deque
from dataclasses import dataclass

DRIFT_PPM = 1_000
"""CLOCK_MONOTONIC of two machines that are kept on time: each is slewed by at most 500 ppm, unless the length of its ticks is changed, as chrony does after a large offset.

Exchanges that contradict it end what was known before.
"""
KEPT_EXCHANGES = 64


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message there and its answer. `sent_ns` and `received_ns` are by the clock here, the others by the one there.

    Raises ValueError where an end is before its beginning.
    """

    sent_ns: int
    received_there_ns: int
    sent_there_ns: int
    received_ns: int

    def __post_init__(self) -> None:
        if self.received_ns < self.sent_ns or self.sent_there_ns < self.received_there_ns:
            raise ValueError(f"{self} ends before it begins")


class RemoteClock:
    """Turns instants of a clock there into instants of the one here."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT_EXCHANGES)
        self.restarts = 0
        """How often an exchange contradicted those before it: a machine was suspended or moved, or a clock was slewed faster."""

    @property
    def is_known(self) -> bool:
        return bool(self._exchanges)

    def see(self, exchange: Exchange) -> None:
        """Take in an exchange. One that contradicts what was known is all that is known from then on."""
        if self._exchanges:
            is_late = self._earliest_ns(exchange.sent_there_ns) > exchange.received_ns
            is_early = self._latest_ns(exchange.received_there_ns) < exchange.sent_ns
            if is_late or is_early:
                self._exchanges.clear()
                self.restarts += 1
        self._exchanges.append(exchange)

    def here(self, there_ns: int) -> tuple[int, int]:
        """The instant here, and by how much it may be off at most, in ns.

        Raises ValueError before the first exchange.
        """
        if not self._exchanges:
            raise ValueError("nothing is known of the clock yet")
        earliest_ns, latest_ns = self._earliest_ns(there_ns), self._latest_ns(there_ns)
        t_ns = (earliest_ns + latest_ns) // 2
        return t_ns, max(latest_ns - t_ns, t_ns - earliest_ns)

    def _earliest_ns(self, there_ns: int) -> int:
        return max(
            each.sent_ns + there_ns - each.received_there_ns - _apart_ns(there_ns - each.received_there_ns)
            for each in self._exchanges
        )

    def _latest_ns(self, there_ns: int) -> int:
        return min(
            each.received_ns + there_ns - each.sent_there_ns + _apart_ns(there_ns - each.sent_there_ns)
            for each in self._exchanges
        )


def _apart_ns(passed_ns: int) -> int:
    """How far the clocks may have run apart, rounded up."""
    return -(-abs(passed_ns) * DRIFT_PPM // 1_000_000)
