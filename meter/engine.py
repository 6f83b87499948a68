"""One engine in the meter's eyes: its ring, its books, and the GPUs that are its own.

A GPU is booked by one engine at a time, so that no joule is booked twice. An engine has its GPUs from when its ring is found, and books what they
take when it is idle, or gone, until its ring is replaced or another engine comes to one of them. One that comes to a GPU whose engine lives is
ignored until that one is gone; then it goes on from where the GPU is settled.
"""

import logging
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from etameter.accounts import KEPT_FITS, STUCK_NS, Accounts, Batch
from etameter.devices import Device, gpus_of
from etameter.errors import EngineError
from etameter.ledger import Ledger, Resume
from etameter.ranks import Rank
from etameter.records import Edge
from etameter.serving.ring import RingHeader, RingReader, boot_id

logger = logging.getLogger("etameter")

ENGINE_CHANGE_WAIT_NS = 3_000_000_000
"""A new engine's steps are read when the old one's energy is settled, or after this long."""
HANDOVER_NS = 3_000_000_000
"""Energy that a GPU took before another engine came to it is that engine's only if it isn't older."""


class Engine:
    """Follows the engine that writes the ring at `ring`, and whoever writes one there after it.

    `open_books` makes empty books, or some that go on from a place; `ledger` is read only; `neighbours` are all engines of this meter, this one among them.
    """

    def __init__(
        self,
        ring: Path,
        open_books: Callable[[Resume], Accounts],
        ledger: Ledger,
        neighbours: Sequence["Engine"],
    ) -> None:
        self.ring = ring
        self.gpus: frozenset[str] = frozenset()
        """Those whose energy it books."""
        self._open_books = open_books
        self._ledger = ledger
        self._neighbours = neighbours
        self._boot_id = boot_id()
        self._reader: RingReader | None = None
        self._known: RingHeader | None = None
        self._lost_ns: int | None = None
        self._ignored: tuple[int, int] | None = None
        """Inode and instant of creation: a new file may get an old one's inode."""
        self._waiting: tuple[int, int] | None = None
        self._warned_inode: int | None = None
        self.settled: dict[str, tuple[int, Edge]] = {}
        """By GPU: up to where it has booked it, in the engine's time and in the counter's."""
        self.accounts = open_books(self._resumable())
        self._inherits = True
        """Whether requests that earlier books left open are still to be taken over."""
        self._devices = self.accounts.devices

    @property
    def header(self) -> RingHeader | None:
        """What the engine says of itself; None while there is none."""
        return self._reader.header if self._reader is not None else None

    @property
    def lost_records(self) -> int:
        return self._reader.lost_records if self._reader is not None else 0

    @property
    def torn_records(self) -> int:
        return self._reader.torn_records if self._reader is not None else 0

    def know(self, devices: Sequence[Device]) -> None:
        """These can be read from now on. A ring that was ignored for the lack of some is looked at again."""
        self._devices = list(devices)
        self.accounts.know(devices)
        self._ignored = None

    def read(self, now_ns: int) -> None:
        """Take in what the ring holds; open a new one, part with one whose engine is gone."""
        if self._reader is None:
            self._open_ring(now_ns)
        if self._reader is None:
            return
        # Looked at first: who has ended by now has said all that is read below.
        is_gone = self._reader.replaced() or self._reader.abandoned()
        try:
            self.accounts.steps(self._reader.poll(), now_ns)
        except ValueError as error:  # a writer that is not ours has put nonsense into the ring
            logger.warning("the ring %s can't be understood: %s", self.ring, error)
            self._lose(now_ns)
        if is_gone:
            self._lose(now_ns)
        if self._reader.replaced() and self.is_over(now_ns, ENGINE_CHANGE_WAIT_NS):
            self._reader.close()
            self._reader = None

    def settle(self) -> Batch | None:
        """Settle all that can be; None where there is nothing new."""
        self.accounts.peers = self._peers()
        batch = self.accounts.settle()
        if batch is None or self._known is None:
            return None
        frontier_ns = batch.resume.frontier_ns
        self.settled |= {edge.gpu_uuid: (frontier_ns[edge.gpu_uuid], edge) for edge in batch.resume.last_edges}
        return replace(batch, resume=replace(batch.resume, engine=self._known.engine))

    def _peers(self) -> list[Rank]:
        """The other ranks of the group that its engine works in step with."""
        own = self.accounts.rank
        ranks = [each.accounts.rank for each in self._neighbours if each is not self]
        return [each for each in ranks if each and own and own.group and each.group == own.group]

    def _resumable(self) -> Resume:
        """Where the last meter left this engine; without place and time, and so for the fits only, unless the engine still runs."""
        nowhere = Resume("", 0, {}, (), self._fits())
        try:
            reader = RingReader(self.ring)
        except (FileNotFoundError, EngineError):
            return nowhere
        header, is_over = reader.header, reader.abandoned()
        reader.close()
        resumes = self._ledger.resumes()
        place = resumes.get(header.engine) or resumes.get("")
        if place is None or header.created_ns != place.ring_created_ns or is_over:
            return nowhere
        return replace(place, coefficients=nowhere.coefficients)

    def _fits(self) -> dict[str, tuple[list[float], list[list[float]]]]:
        """The last fits of whatever engines, because an engine's name says nothing of its costs."""
        fits: dict[str, tuple[list[float], list[list[float]]]] = {}
        for resume in self._ledger.resumes().values():
            for key, fit in resume.coefficients.items():
                fits.pop(key, None)  # the latest stands last
                fits[key] = fit
        return dict(list(fits.items())[-KEPT_FITS:])

    def _open_ring(self, now_ns: int) -> None:
        """Open the ring if a living engine has one; what a dead one left is no engine."""
        try:
            reader = RingReader(self.ring)
        except FileNotFoundError:
            return
        except EngineError as error:
            self._warn_once(error)
            return
        if not self._admits(reader, now_ns):
            reader.close()
            return
        header = reader.header
        if self._inherits:
            self._inherits = False
            self.accounts.inherit(self._ledger.open_requests(self._boot_id, header.engine))
        self.accounts.open_engine(header)
        self._reader, self._known, self._lost_ns = reader, header, None
        self.gpus = frozenset(device.gpu_uuid for device in self.accounts.devices)
        logger.info("engine %s serves %s", header.engine, header.model)

    def _admits(self, reader: RingReader, now_ns: int) -> bool:
        """Whether the ring's engine lives and its GPUs can be metered for it; if so, they are its own now."""
        header, ring = reader.header, (reader.inode, reader.header.created_ns)
        if ring == self._ignored:
            return False
        if reader.abandoned():
            self._ignore(ring, f"its engine (pid {header.pid}, as it counts) has ended")
            return False
        try:
            gpus = gpus_of(header, self._devices)
        except EngineError as error:
            self._ignore(ring, str(error))
            return False
        holders = [each for each in self._neighbours if each is not self and each.gpus & gpus]
        for holder in holders:
            if not holder.is_over(now_ns, 2 * STUCK_NS):  # so long, and all of its requests are closed
                if ring != self._waiting:
                    self._waiting = ring
                    shared = ", ".join(sorted(holder.gpus & gpus))
                    logger.warning(
                        "the ring %s is ignored while the engine of %s lives: it works on %s too, and a GPU's energy can't be divided among engines",
                        self.ring,
                        holder.ring,
                        shared,
                    )
                return False
        for holder in holders:
            holder.release()
        self._take_over(gpus, now_ns)
        return True

    def _ignore(self, ring: tuple[int, int], reason: str) -> None:
        logger.warning("the ring %s is ignored: %s", self.ring, reason)
        self._ignored = ring

    def _take_over(self, gpus: frozenset[str], now_ns: int) -> None:
        """Go on from where another engine's books of these GPUs have ended, if any have."""
        last = {
            uuid: max(
                (each for each in self._neighbours if uuid in each.settled),
                key=lambda each: each.settled[uuid][0],
                default=self,
            )
            for uuid in gpus
        }
        if all(engine is self for engine in last.values()):
            return
        places = {uuid: engine.settled[uuid] for uuid, engine in last.items() if uuid in engine.settled}
        recent = {uuid: place for uuid, place in places.items() if now_ns - place[1].t_ns < HANDOVER_NS}
        frontier_ns = {uuid: settled_ns for uuid, (settled_ns, _) in recent.items()}
        edges = tuple(edge for _, edge in recent.values())
        self.accounts = self._open_books(Resume(self._boot_id, 0, frontier_ns, edges, self._fits()))
        self._inherits = True

    def release(self) -> None:
        """Let another engine have the GPUs of this one, which has ended and is settled."""
        if self._reader is not None:
            self._ignored = self._reader.inode, self._reader.header.created_ns
            self._reader.close()
            self._reader = None
        self._lost_ns = self._known = None
        self.gpus = frozenset()
        self.accounts = self._open_books(Resume("", 0, {}, (), self._fits()))
        self._inherits = True

    def is_over(self, now_ns: int, patience_ns: int) -> bool:
        """Whether its engine is gone, and what it took is settled or has been waited for so long."""
        if self._lost_ns is None:
            return False
        return self.accounts.settled_until_ns >= self._lost_ns or now_ns - self._lost_ns > patience_ns

    def is_behind(self, now_ns: int, most_ns: int) -> bool:
        """Whether its engine lives, and what its GPUs took has been unsettled for longer than that."""
        settled_ns = self.accounts.settled_until_ns
        return self._reader is not None and self._lost_ns is None and 0 < settled_ns < now_ns - most_ns

    def _lose(self, now_ns: int) -> None:
        if self._lost_ns is None:
            self._lost_ns = now_ns
            self.accounts.close_engine(now_ns)
            logger.warning("the engine of %s is gone; waiting for the next one", self.ring)

    def _warn_once(self, error: EngineError) -> None:
        """Say of each file only once that it is no ring."""
        try:
            inode = self.ring.stat().st_ino
        except OSError:
            return
        if inode != self._warned_inode:
            self._warned_inode = inode
            logger.warning("%s", error)


def check_ring(path: Path) -> None:
    """Raises EngineError for what can never be a ring. One that isn't there yet, or is of another version, may be replaced."""
    remedy = "name the file that the engine's scheduler writes with --ring"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise EngineError(f"the ring {path} is no file", remedy)
        path.open("rb").close()
    except FileNotFoundError:
        return
    except OSError as error:
        raise EngineError(f"the ring {path} can't be read ({error.strerror})", remedy) from error
