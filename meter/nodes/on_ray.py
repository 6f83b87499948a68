"""Samplers on the nodes of a Ray cluster: one actor on each that has GPUs, started where it is missing, for as long as this runs.

The actors are samplers like any other: the meter connects to them by their nodes' addresses, and Ray carries no figure. They outlive this process and what it is
connected to; whoever starts it again finds those that there are. The only module that imports ray.
"""

import asyncio
import importlib
import json
import logging
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

from etameter.counters import nvml
from etameter.errors import EtameterError, NodeError
from etameter.nodes.address import check_token
from etameter.nodes.station import Station

logger = logging.getLogger("etameter")

NAMESPACE = "etameter"
LOOK_S = 3.0
ANSWER_S = 30.0
"""An actor's process imports the counters first, on a machine that may be busy with a model."""


@dataclass(frozen=True, slots=True)
class Order:
    """What every sampler is to do."""

    port: int
    token: str
    period_ns: int
    gpu_uuids: tuple[str, ...]
    """Those to be read, of whatever nodes they are in; all where none is named."""
    allow_shared_gpu: bool


class SamplerActor:
    """The sampler of the node that it is started on; it listens at the address that Ray knows the node by.

    Raises CounterError where its GPUs can't be read.
    """

    def __init__(self, order: Order, host: str) -> None:
        found = nvml.discover(allow_shared=order.allow_shared_gpu)
        counters = [each for each in found if not order.gpu_uuids or each.gpu_uuid in order.gpu_uuids]
        self._gpu_uuids = [each.gpu_uuid for each in counters]
        self._address = f"{host}:{order.port}"
        self._failure: str | None = None
        station = Station(counters, order.token, order.period_ns)
        if counters:
            threading.Thread(target=self._serve, args=(station, host, order.port), daemon=True).start()

    def _serve(self, station: Station, host: str, port: int) -> None:
        try:
            asyncio.run(station.serve(host, port, asyncio.Event()))
        except EtameterError as error:
            self._failure = str(error)

    def about(self) -> tuple[str, list[str], str | None]:
        """Its address, its GPUs, and why it serves no more if it doesn't."""
        return self._address, self._gpu_uuids, self._failure


def run(cluster: str, order: Order) -> int | None:
    """Keep samplers on the nodes of the Ray cluster at this address, or `auto`, until SIGTERM or SIGINT, which is returned; then end them.

    The node that this runs on is left out: its GPUs are the meter's own.

    Raises:
        NodeError: there is no such cluster, or it is gone.
        ConfigError: there is no token.
    """
    logging.basicConfig(level=logging.INFO, format="etameter: %(message)s", stream=sys.stderr)
    check_token("a node of Ray", order.token)
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise NodeError(
            "Ray is not installed", "pip install 'etameter[ray]', in the environment of the engine"
        ) from error
    try:
        ray.init(address=cluster, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
        return _Keeper(ray, order).keep()
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise NodeError(
            f"the Ray cluster at {cluster} can't be reached ({_first_line(error)})", "start it, and then this again"
        ) from error
    finally:
        ray.shutdown()


class _Keeper:
    def __init__(self, ray: Any, order: Order) -> None:
        self._ray = ray
        self._order = order
        self._own = ray.get_runtime_context().get_node_id()
        self._actors: dict[str, Any] = {}
        """By node."""
        self._addresses: dict[str, str] = {}
        self._stopping = threading.Event()
        self._came: list[int] = []

    def keep(self) -> int | None:
        for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets its own
            signal.signal(number, self._end)
        while not self._stopping.is_set():
            before = dict(self._addresses)
            hosts = self._hosts()
            for node_id in self._actors.keys() - hosts.keys():
                self._forget(node_id)
            for node_id in hosts.keys() - self._actors.keys():  # all of them, before the first is waited for
                self._actors[node_id] = self._start(node_id, hosts[node_id])
            for node_id, host in hosts.items():
                self._look_after(node_id, host)
            if self._addresses != before:
                in_order = [self._addresses[node_id] for node_id in sorted(self._addresses)]  # as vLLM's executor does
                logger.info("[meter] nodes = %s", json.dumps(in_order))
            self._stopping.wait(LOOK_S)
        for actor in self._actors.values():
            self._ray.kill(actor)
        return self._came[0] if self._came else None

    def _end(self, number: int, _: object) -> None:
        self._came.append(number)
        self._stopping.set()

    def _hosts(self) -> dict[str, str]:
        """The addresses of the other nodes that have GPUs."""
        nodes = (each for each in self._ray.nodes() if each["Alive"] and each["NodeID"] != self._own)
        return {each["NodeID"]: each["NodeManagerAddress"] for each in nodes if each["Resources"].get("GPU")}

    def _forget(self, node_id: str) -> None:
        del self._actors[node_id]
        self._addresses.pop(node_id, None)

    def _look_after(self, node_id: str, host: str) -> None:
        """See that the node's sampler serves. One that doesn't is started anew at the next look."""
        try:
            address, gpu_uuids, failure = self._ray.get(self._actors[node_id].about.remote(), timeout=ANSWER_S)
        except self._ray.exceptions.RayActorError as error:
            logger.warning("the sampler on %s has ended (%s)", host, _first_line(error))
            self._forget(node_id)
            return
        except self._ray.exceptions.GetTimeoutError:
            logger.warning("the sampler on %s does not answer yet", host)
            return
        if failure is not None:
            logger.warning("the sampler on %s has ended (%s)", host, failure)
            self._ray.kill(self._actors[node_id])
            self._forget(node_id)
        elif gpu_uuids and node_id not in self._addresses:
            logger.info("sampling %s at %s", ", ".join(gpu_uuids), address)
            self._addresses[node_id] = address

    def _start(self, node_id: str, host: str) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        options = {
            "num_cpus": 0,
            "name": f"sampler-{node_id}",
            "lifetime": "detached",
            "get_if_exists": True,
            "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node_id, soft=False),
        }
        return self._ray.remote(SamplerActor).options(**options).remote(self._order, host)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
