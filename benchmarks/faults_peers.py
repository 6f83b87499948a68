"""One meter in a process of its own, for benchmarks.faults: says that it is ready, waits for a line, meters a window, and answers."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

SECONDS_PER_KWH = 3_600_000.0

Answer = dict[str, float | str | None]
Measure = Callable[[float], Answer]


def etameter() -> Measure:
    """`etameter.window`: the same sampler and timeline as the meter's."""
    from etameter.errors import EtameterError
    from etameter.inline import window

    def measure(length_s: float) -> Answer:
        try:
            with window() as metered:
                time.sleep(length_s)
        except EtameterError as error:
            return {"joules": None, "said": str(error)}
        joules = metered.energy_j
        return {
            "joules": joules,
            "error_j": metered.error_j if math.isfinite(metered.error_j) else None,
            "seconds": metered.seconds,
            "said": f"source={metered.source}" if joules is not None else "energy_j=None: the counter can't say",
        }

    return measure


def zeus() -> Measure:
    monitor: Any = import_module("zeus.monitor").ZeusMonitor(gpu_indices=[0], cpu_indices=[])

    def measure(length_s: float) -> Answer:
        monitor.begin_window("window", sync_execution=False)
        began_s = time.monotonic()
        time.sleep(length_s)
        seconds = time.monotonic() - began_s
        found = monitor.end_window("window", sync_execution=False)
        return {"joules": sum(found.gpu_energy.values()), "seconds": seconds, "said": ""}

    return measure


def codecarbon() -> Measure:
    tracker: Any = import_module("codecarbon").OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="error", measure_power_secs=1, allow_multiple_runs=True
    )

    def measure(length_s: float) -> Answer:
        tracker.start()
        began_s = time.monotonic()
        time.sleep(length_s)
        seconds = time.monotonic() - began_s
        tracker.stop()
        return {"joules": tracker.final_emissions_data.gpu_energy * SECONDS_PER_KWH, "seconds": seconds, "said": ""}

    return measure


def landauer_gap() -> Measure:
    """The ledger of `joules proxy`, fed as the proxy feeds it."""
    meters, proxy = import_module("joules.meters"), import_module("joules.proxy")
    found = meters.discover(cpu=False)
    if not found.meters:
        return lambda _: {"joules": None, "said": " ".join(found.notes)}
    ledger = proxy.Ledger(found.meters)
    threading.Thread(target=ledger.loop, args=(threading.Event(), 0.1), daemon=True).start()

    def measure(length_s: float) -> Answer:
        ledger.begin("request")
        began_s = time.monotonic()
        time.sleep(length_s)
        seconds = time.monotonic() - began_s
        return {"joules": ledger.end("request")["energy_j"], "seconds": seconds, "said": ""}

    return measure


PEERS: dict[str, Callable[[], Measure]] = {
    "etameter": etameter,
    "zeus": zeus,
    "codecarbon": codecarbon,
    "landauer-gap": landauer_gap,
}


def main() -> None:
    name, length_s = sys.argv[1:]
    measure = PEERS[name]()
    print("{}", flush=True)
    sys.stdin.readline()
    print(json.dumps(measure(float(length_s))), flush=True)


if __name__ == "__main__":
    main()
