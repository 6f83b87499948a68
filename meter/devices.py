"""Boards that are metered, and which of them an engine works on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from etameter.counters import Described
from etameter.errors import EngineError
from etameter.records import Source
from etameter.serving.ring import RingHeader

FIT_DETAILS = (
    "quantization",
    "kv_cache_dtype",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "vllm_version",
)


@dataclass(frozen=True, slots=True)
class Device:
    """A board, and how its counter is read."""

    gpu_uuid: str
    kind: str
    source: Source
    board_name: str
    scope: str = "gpu"
    """What its joules are those of: the board, the module with its CPU, or the package."""
    parts: tuple[str, ...] = ()
    """What engines may call it that see a part of it only."""
    node: str = ""
    """The other machine that it is in; empty for this one."""

    @staticmethod
    def of(counter: Described, node: str = "") -> "Device":
        """The one that a counter counts for."""
        about = counter.gpu_uuid, counter.kind, counter.source, counter.board_name
        return Device(*about, counter.scope, counter.parts, node)


def gpus_of(header: RingHeader, devices: Sequence[Device]) -> frozenset[str]:
    """The devices that the engine works on. A simulated board, or the machine's CPU packages, stand for whatever it names.

    An engine that spans machines names the GPUs of all its workers where those tell theirs, and of its scheduler's machine alone otherwise. The others
    are then those of the other nodes, all of them.

    Raises:
        EngineError: it works on others, or does not say on which.
    """
    elsewhere = frozenset(device.gpu_uuid for device in devices if device.node)
    wanted = workers_of(header) - len(header.gpu_uuids)
    if not elsewhere or wanted <= 0:
        return _named(header, devices)
    own = _named(header, [device for device in devices if not device.node]) if header.gpu_uuids else frozenset()
    if len(elsewhere) != wanted:
        raise EngineError(
            f"engine {header.engine} works on {wanted} GPUs of other machines, their samplers read {len(elsewhere)}",
            "name in [meter] nodes all machines of this engine and no others, and let their samplers read its GPUs alone (--gpu)",
        )
    return own | elsewhere


def workers_of(header: RingHeader) -> int:
    """How many GPUs the engine works on, on however many machines."""
    sizes = (header.details.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size"))
    return math.prod(size for size in sizes if isinstance(size, int))


def in_order(header: RingHeader, devices: Sequence[Device]) -> list[str]:
    """The GPUs of the engine in the order of its workers, as far as it is known: those that it names first, then those of the others in theirs."""
    whole = _whole(devices)
    named = [whole.get(bare(each), each) for each in header.gpu_uuids]
    return [*named, *(device.gpu_uuid for device in devices if device.node and device.gpu_uuid not in named)]


def _named(header: RingHeader, devices: Sequence[Device]) -> frozenset[str]:
    read = frozenset(device.gpu_uuid for device in devices)
    whole = _whole(devices)
    engines = {named: whole.get(bare(named), named) for named in header.gpu_uuids}
    boards = [device for device in devices if device.kind in {"nvml", "power"}]
    unread = [named for named, uuid in engines.items() if uuid not in read]
    if boards and unread:
        raise EngineError(
            f"engine {header.engine} works on {', '.join(unread)}, which nobody reads: {_readers(boards)}",
            "run the meter where the engine's scheduler is, and name its other machines in [meter] nodes",
        )
    if len(boards) > 1 and not engines:
        raise EngineError(
            f"engine {header.engine} does not say on which of {len(boards)} GPUs it runs",
            "let the ring's writer name them in gpu_uuids",
        )
    return read & frozenset(engines.values()) or read


def _whole(devices: Sequence[Device]) -> dict[str, str]:
    """The board of each part that an engine may name."""
    return {bare(part): device.gpu_uuid for device in devices for part in device.parts}


def _readers(boards: Sequence[Device]) -> str:
    """Who reads which GPUs."""
    of_reader: dict[str, list[str]] = {}
    for board in boards:
        reader = f"the sampler at {board.node}" if board.node else "this meter"
        of_reader.setdefault(reader, []).append(board.gpu_uuid)
    return "; ".join(f"{reader} reads {', '.join(sorted(uuids))}" for reader, uuids in of_reader.items())


def bare(uuid: str) -> str:
    """CUDA tells the same identifiers as NVML, but not of what kind they are."""
    return uuid.partition("-")[2]


def fit_key(gpu_uuid: str, header: RingHeader) -> str:
    """What coefficients depend on beside the board's conditions: an engine that agrees in all of it may start with the last one's fit."""
    details = (str(header.details.get(name, "")) for name in FIT_DETAILS)
    return "|".join([gpu_uuid, header.model, header.dtype, *details])
