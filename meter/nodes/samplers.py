"""The sampler of this machine and those of an engine's other machines, as if they were one."""

from collections.abc import Sequence
from itertools import chain

from etameter.nodes.node import Node
from etameter.records import Conditions, Finding
from etameter.sampler import Sampler


class Samplers:
    """`own` may have no counters where the meter's machine has no GPU. Nodes have to be listened to already."""

    def __init__(self, own: Sampler, nodes: Sequence[Node] = ()) -> None:
        self.own = own
        """How late it was, what it cost and what it dropped is of this machine alone; elsewhere that is in the edges."""
        self.nodes = nodes

    def start(self) -> None:
        self.own.start()

    def stop(self) -> None:
        self.own.stop()
        for node in self.nodes:
            node.stop()

    @property
    def running(self) -> bool:
        return self.own.running and all(node.running for node in self.nodes)

    def drain(self) -> list[Finding]:
        """As `Sampler.drain`, of all."""
        return [*self.own.drain(), *chain.from_iterable(node.drain() for node in self.nodes)]

    def changes(self) -> list[Conditions]:
        """As `Sampler.changes`, of all."""
        return [*self.own.changes(), *chain.from_iterable(node.changes() for node in self.nodes)]

    def processes(self) -> dict[str, tuple[int, ...] | None]:
        """As `Sampler.processes`; of no other machine it is known, whose processes have numbers of their own."""
        return {**dict.fromkeys(self._elsewhere()), **self.own.processes()}

    def throttled(self) -> dict[str, bool | None]:
        """As `Sampler.throttled`, of all; of a node that isn't heard nothing is known."""
        elsewhere = self._elsewhere().items()
        told = {uuid: node.state.get("throttled", {}).get(uuid) if node.is_heard else None for uuid, node in elsewhere}
        return {**told, **self.own.throttled()}

    def missed_edges(self) -> dict[str, int]:
        """As `Sampler.missed_edges`, of all."""
        told = {uuid: int(node.state.get("missed_edges", {}).get(uuid, 0)) for uuid, node in self._elsewhere().items()}
        return {**told, **self.own.missed_edges()}

    def awaited(self) -> list[str]:
        """As `Sampler.awaited`, of all; of a node that isn't heard all counters."""
        elsewhere = self._elsewhere().items()
        unheard = [uuid for uuid, node in elsewhere if not node.is_heard or uuid in node.state.get("awaited", ())]
        return [*self.own.awaited(), *unheard]

    def _elsewhere(self) -> dict[str, Node]:
        return {each.gpu_uuid: node for node in self.nodes for each in node.counters}
