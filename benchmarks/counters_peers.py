"""One peer in a process of its own, for benchmarks.counters: says "ready", waits for a line, then prints its windows."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

SECONDS_PER_KWH = 3_600_000.0

ODD_S = 0.023
"""Every other window is so much longer: one that is a multiple of the load's period hides what a meter does at its ends."""


@dataclass(frozen=True)
class Window:
    """What a meter says that a GPU spent between two instants of CLOCK_MONOTONIC."""

    gpu: int
    start_ns: int
    end_ns: int
    energy_j: float


Measure = Callable[[float], list[Window]]


def zeus(gpus: int) -> Measure:
    """Differences of the counter at the window's ends."""
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=list(range(gpus)), cpu_indices=[])

    def measure(length_s: float) -> list[Window]:
        monitor.begin_window("window", sync_execution=False)
        start_ns = time.monotonic_ns()
        time.sleep(length_s)
        end_ns = time.monotonic_ns()
        found = monitor.end_window("window", sync_execution=False)
        return [Window(gpu, start_ns, end_ns, float(joules)) for gpu, joules in found.gpu_energy.items()]

    return measure


def codecarbon(gpus: int) -> Measure:
    """Its tracker, measuring every second; its figure for each GPU is taken where it sums them."""
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core.gpu import AllGPUDevices

    spent_kwh: dict[int, float] = {}
    get_delta = AllGPUDevices.get_delta

    def listen(devices: Any, duration: Any) -> Any:
        found = get_delta(devices, duration)
        for gpu, each in enumerate(found):
            spent_kwh[gpu] = spent_kwh.get(gpu, 0.0) + each["delta_energy_consumption"].kWh
        return found

    AllGPUDevices.get_delta = listen

    def tracker() -> Any:
        options: dict[str, Any] = {"country_iso_code": "FRA", "save_to_file": False, "log_level": "critical"}
        return OfflineEmissionsTracker(**options, measure_power_secs=1, allow_multiple_runs=True)

    waiting = [tracker()]

    def measure(length_s: float) -> list[Window]:
        one = waiting.pop() if waiting else tracker()
        one.start()
        spent_kwh.clear()
        start_ns = time.monotonic_ns()
        time.sleep(length_s)
        end_ns = time.monotonic_ns()
        one.stop()
        assert len(spent_kwh) == gpus
        return [Window(gpu, start_ns, end_ns, kwh * SECONDS_PER_KWH) for gpu, kwh in sorted(spent_kwh.items())]

    return measure


def nvitop(gpus: int) -> Measure:
    """Its collector's mean power, by the length of the window."""
    from nvitop import Device, ResourceMetricCollector

    devices = Device.from_indices(list(range(gpus)))

    def measure(length_s: float) -> list[Window]:
        collector = ResourceMetricCollector(devices, interval=1.0)
        with collector.context("window"):
            start_ns = time.monotonic_ns()
            time.sleep(length_s)
            end_ns = time.monotonic_ns()
            found = collector.collect()
        power_w = [value for key, value in found.items() if "power_usage" in key and key.endswith("/mean")]
        assert len(power_w) == gpus, sorted(found)
        return [Window(gpu, start_ns, end_ns, power_w[gpu] * (end_ns - start_ns) * 1e-9) for gpu in range(gpus)]

    return measure


PEERS: dict[str, Callable[[int], Measure]] = {"zeus": zeus, "codecarbon": codecarbon, "nvitop": nvitop}


def windows(measure: Measure, count: int, length_s: float) -> Iterator[Window]:
    for number in range(count):
        yield from measure(length_s + ODD_S * (number % 2))


def main() -> None:
    name, gpus, count, length_s = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    measure = PEERS[name](int(gpus))
    print("ready", flush=True)
    sys.stdin.readline()
    for window in windows(measure, int(count), float(length_s)):
        print(json.dumps(asdict(window)), flush=True)


if __name__ == "__main__":
    main()
