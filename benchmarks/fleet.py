"""What a replica costs the store of a fleet's metrics: `python -m benchmarks.fleet [--quick]`.

Four questions to a real VictoriaMetrics (Debian's package `victoria-metrics`):

- What does a day of one replica take on disk? Its exposition of every 15 s of a simulated day is imported with its instants, and merged.
- How many replicas can be scraped on this machine, which has to make them up, too? Rungs of ever more, until scrapes fail or come late; at each what
  a scrape costs, then what the rules do, then what the fleet's dashboard does once. A Prometheus is asked the same at one rung.
- What do rules cost whose windows of an hour are full?
- What does the fleet's dashboard cost a store that has the sums of very many meters, and nothing else?

Replicas are simulated (`benchmarks.replicas`): series, bytes and times are of the real exposition in a real store, joules of nothing.
The last line is JSON; exit code 3 where a goal is missed.
"""

import argparse
import http.client
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.replicas import BOARD, MODELS, Replica, scraped
from benchmarks.report import Goal, finish
from benchmarks.stores import Prometheus, Ruler, Server, Store, VictoriaMetrics, free_port, until
from etameter.dashboards import expressions, files

INTERVAL_S = 15.0
JITTER_MS = 3.0
"""Of a scrape's instant; all samples of one share it."""
_VARIABLES = re.compile(r"\$(cluster|model|source)\b")
GOAL_REPLICAS, GOAL_RULES_SHARE, GOAL_SAMPLE_BYTES = 1000, 0.5, 2.5
WRITTEN_S = 4
"""What was scraped is found so much later."""
TOLERANCE = 0.01
"""Of scrapes that fall beside the time that is watched, because no two are quite as far apart."""
DIVIDED = ("eta_bound_tokens", "classified_tokens", "requests", "request_errors")
"""Recorded of meters and of models."""
MINUTES, IN_A_CLUSTER = 15, 500
UPWARDS = Path(__file__).parents[1] / "docker" / "fleet" / "upwards.yml"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of all this."""

    stored_h: float
    stored_gpus: tuple[int, ...]
    seeds: int
    rungs: tuple[int, ...]
    interval_s: float
    watched_s: float
    ruled: int
    ruled_h: float
    prometheus: int | None
    above: int


FULL = Extent(24.0, (1, 8), 2, (250, 500, 1000, 2000, 3000), INTERVAL_S, 60.0, 100, 1.1, 500, 12_500)
QUICK = Extent(0.25, (8,), 1, (40,), 3.0, 6.0, 4, 0.15, None, 500)


def imported(store: VictoriaMetrics, replicas: Sequence[Replica], hours: float, end_s: float) -> int:
    """Import the expositions of so many hours before an instant; returns how many bytes they were."""
    scrapes, told, random = int(hours * 3600 / INTERVAL_S), 0, Random(1)  # noqa: S311
    connection = http.client.HTTPConnection("127.0.0.1", store.port)
    labels = [each["labels"] for each in scraped(len(replicas), 0)]
    for number in range(scrapes):
        for replica, named in zip(replicas, labels, strict=True):
            replica.advance(INTERVAL_S)
            body, _ = replica.metrics.render(None)
            told += len(body)
            at_ms = int((end_s - (scrapes - number) * INTERVAL_S) * 1e3 + random.gauss(0.0, JITTER_MS))
            extra = "".join(f"&extra_label={name}={value}" for name, value in named.items() if name[0] != "_")
            connection.request(
                "POST", f"/api/v1/import/prometheus?timestamp={at_ms}&extra_label=job=etameter{extra}", body
            )
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 204, answer.status
    connection.close()
    return told


def stored(gpus: int, seed: int, hours: float) -> dict[str, float]:
    """What so many hours of one replica take on disk."""
    with tempfile.TemporaryDirectory(prefix="etameter-fleet-") as name, ExitStack() as stack:
        store = VictoriaMetrics(Path(name), stack)
        told = imported(store, [Replica(seed, gpus)], hours, time.time())
        store.settle()
        samples = store.own("vm_rows", "storage/")
        data, index = (store.own("vm_data_size_bytes", kind) for kind in ("storage/", "indexdb"))
        return {
            "gpus": gpus,
            "hours": hours,
            "series": store.own("vm_new_timeseries_created_total"),
            "samples": samples,
            "exposition_bytes": told / (hours * 3600 / INTERVAL_S),
            "bytes_per_sample": data / samples,
            "bytes_per_day": data / hours * 24,
            "index_bytes": index,
        }


def exposed(gpus: int) -> dict[str, float]:
    """One scrape of replicas that have run for an hour, on the mean of six."""
    bodies = []
    for number in range(6):
        replica = Replica(number, gpus)
        for _ in range(240):
            replica.advance(INTERVAL_S)
        bodies.append(replica.metrics.render("application/openmetrics-text")[0])
    return {
        "series": statistics.mean(sum(not line.startswith(b"#") for line in body.splitlines()) for body in bodies),
        "bytes": statistics.mean(map(len, bodies)),
        "compressed_bytes": statistics.mean(len(zlib.compress(body)) for body in bodies),
    }


def served(count: int, gpus: int, stack: ExitStack) -> Server:
    """So many replicas, in a process of their own."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.replicas", str(count), "--gpus", str(gpus), "--port", str(port)]
    replicas = Server(command, port, stack)
    until(lambda: replicas.answers("/0/metrics"))
    return replicas


def rung(count: int, gpus: int, extent: Extent) -> dict[str, Any]:
    """What a scrape of so many replicas costs, then the rules over them, then the dashboard."""
    with tempfile.TemporaryDirectory(prefix="etameter-fleet-") as name, ExitStack() as stack:
        replicas = served(count, gpus, stack)
        store = VictoriaMetrics(Path(name), stack, scraped(count, replicas.port), extent.interval_s)
        until(lambda: store.own("vm_promscrape_scrapes_total") >= count)
        time.sleep(extent.interval_s)
        found: dict[str, Any] = {"replicas": count, **_scrapes(store, replicas, count, extent)}
        ruler = Ruler(store, sorted(expressions.RULES.glob("*.yaml")), extent.interval_s, stack)
        before_s, began_s = store.cpu_s + ruler.cpu_s, time.monotonic()
        time.sleep(extent.watched_s + extent.interval_s)
        with_rules = (store.cpu_s + ruler.cpu_s - before_s) / (time.monotonic() - began_s)
        groups = ruler.groups()
        found |= {
            "cores_with_rules": with_rules,
            "rules_cpu_s": max(with_rules - found["cores_of_store"], 0.0) * extent.interval_s,
            "slowest_group_s": max(groups.values()),
            "rules_s_by_group": groups,
            "rule_errors": ruler.own("vmalert_execution_errors_total") + ruler.own("vmalert_remotewrite_errors_total"),
            "recorded_series": store.value('count({__name__=~"etameter:.+"})'),
            "sent_upwards_series": store.value(f"count({_upwards()})"),
            "dashboard_s": _dashboard_s(store),
            "resident_mb": store.resident_mb,
        }
        return found


def _upwards() -> str:
    """What a cluster sends to a store of all clusters."""
    kept, dropped = (each["regex"] for each in yaml.safe_load(UPWARDS.read_text()))
    return f'{{__name__=~"{kept}", __name__!~"{dropped}"}}'


def _scrapes(store: VictoriaMetrics, replicas: Server, count: int, extent: Extent) -> dict[str, float]:
    """Over the time that is watched: how many there were, how long they took, and the processor time of both sides."""
    watched = ("vm_promscrape_scrapes_total", "vm_promscrape_conn_bytes_read_total")
    before = [store.own(each) for each in watched]
    store_s, replicas_s, began_s = store.cpu_s, replicas.cpu_s, time.monotonic()
    time.sleep(extent.watched_s)
    took_s = time.monotonic() - began_s
    store_s, replicas_s = store.cpu_s - store_s, replicas.cpu_s - replicas_s
    scrapes, read_bytes = (store.own(each) - was for each, was in zip(watched, before, strict=True))
    time.sleep(WRITTEN_S)
    succeeded = store.value(f"sum(sum_over_time(up[{extent.watched_s:g}s] offset {WRITTEN_S}s))")
    due = count * extent.watched_s / extent.interval_s
    last = f"last_over_time(scrape_duration_seconds[{extent.interval_s * 2:g}s])"
    return {
        "missed_scrapes": max(due * (1 - TOLERANCE) - succeeded, 0.0),
        "scrapes_per_s": scrapes / took_s,
        "samples_per_scrape": store.value("avg(scrape_samples_scraped)"),
        "wire_bytes_per_scrape": read_bytes / max(scrapes, 1.0),
        "scrape_ms_mean": store.value(f"1000 * avg({last})"),
        "scrape_ms_p99": store.value(f"1000 * quantile(0.99, {last})"),
        "store_cpu_ms_per_scrape": 1e3 * store_s / max(scrapes, 1.0),
        "cores_of_store": store_s / took_s,
        "cores_of_replicas": replicas_s / took_s,
        "resident_mb_scraping": store.resident_mb,
        "active_series": store.own("vm_cache_entries", "storage/hour_metric_ids"),
    }


def _dashboard_s(store: Store) -> float:
    """All queries of the fleet's dashboard once, for this instant, one after the other."""
    board = json.loads(files.texts()["etameter-fleet.json"])
    asked: list[str] = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    began_s = time.monotonic()
    for expression in asked:
        store.asked(_VARIABLES.sub(".*", expression.replace("$__range", "15m")))
    return time.monotonic() - began_s


def by_prometheus(count: int, gpus: int, extent: Extent) -> dict[str, float]:
    """The same of Prometheus: processor time and memory of scrapes and rules together, and how long its rules take."""
    with tempfile.TemporaryDirectory(prefix="etameter-fleet-") as name, ExitStack() as stack:
        replicas = served(count, gpus, stack)
        rules = sorted(expressions.RULES.glob("*.yaml"))
        store = Prometheus(Path(name), stack, scraped(count, replicas.port), extent.interval_s, rules)
        time.sleep(3 * extent.interval_s)
        before_s, began_s = store.cpu_s, time.monotonic()
        time.sleep(extent.watched_s)
        return {
            "replicas": count,
            "cores_with_rules": (store.cpu_s - before_s) / (time.monotonic() - began_s),
            "up": store.value("sum(up)"),
            "scrape_ms_mean": store.value("1000 * avg(scrape_duration_seconds)"),
            "rules_s": store.own("prometheus_rule_group_last_duration_seconds"),
            "head_series": store.own("prometheus_tsdb_head_series"),
            "resident_mb": store.resident_mb,
        }


def ruled(count: int, gpus: int, hours: float) -> dict[str, Any]:
    """How long each rule takes over windows that are full for so long."""
    with tempfile.TemporaryDirectory(prefix="etameter-fleet-") as name, ExitStack() as stack:
        store = VictoriaMetrics(Path(name), stack)
        now_s = time.time()
        imported(store, [Replica(number, gpus) for number in range(count)], hours, now_s)
        store.settle()
        took_s, cpu_s = {}, store.cpu_s
        for rule, expression in expressions.rules().items():
            began_s = time.monotonic()
            store.asked(expression, now_s - INTERVAL_S)
            took_s[rule] = time.monotonic() - began_s
        longest = sorted(took_s, key=lambda rule: -took_s[rule])[:5]
        return {
            "replicas": count,
            "hours": hours,
            "rules": len(took_s),
            "rules_s": sum(took_s.values()),
            "rules_cpu_s": store.cpu_s - cpu_s,
            "longest_s": {rule: took_s[rule] for rule in longest},
        }


def above(meters: int) -> dict[str, Any]:
    """What the fleet's dashboard costs where there are the sums of so many meters, made up, once a minute for a quarter of an hour."""
    with tempfile.TemporaryDirectory(prefix="etameter-fleet-") as name, ExitStack() as stack:
        store = VictoriaMetrics(Path(name), stack)
        random, now_s = Random(1), time.time()  # noqa: S311
        for minute in range(MINUTES):
            for begin in range(0, meters, IN_A_CLUSTER):
                body = "".join(_sums(begin // IN_A_CLUSTER, range(begin, min(begin + IN_A_CLUSTER, meters)), random))
                at_ms = int((now_s - 60 * (MINUTES - 1 - minute)) * 1e3)
                store.get(f"/api/v1/import/prometheus?timestamp={at_ms}", body.encode())
        store.get("/internal/force_flush")
        first_s, again_s, cpu_s = _dashboard_s(store), _dashboard_s(store), store.cpu_s
        _dashboard_s(store)
        return {
            "meters": meters,
            "series": store.own("vm_new_timeseries_created_total"),
            "dashboard_first_s": first_s,
            "dashboard_s": again_s,
            "dashboard_cpu_s": store.cpu_s - cpu_s,
            "resident_mb": store.resident_mb,
        }


def _sums(cluster: int, numbers: range, random: Random) -> Iterator[str]:
    """What a cluster of these meters sends upwards, each line a sum."""
    of_cluster = f'cluster="c{cluster}",source="simulated"'
    for number in numbers:
        of_meter = f'{of_cluster},node="node-{number}",job="etameter",instance="replica-{number}"'
        of_model = f'{of_meter},model_name="{MODELS[number % len(MODELS)]}"'
        for kind in ("watts", "idle_watts", "unattributed_watts"):
            yield f"etameter:meter_{kind}:rate5m{{{of_meter}}} {random.lognormvariate(6.0, 1.0)}\n"
        for phase in ("prompt", "output"):
            watts = random.lognormvariate(6.0, 1.0)
            yield f'etameter:meter_request_watts:rate5m{{{of_model},phase="{phase}"}} {watts}\n'
        for kind in ("output_tokens", *DIVIDED):
            yield f"etameter:meter_{kind}:rate5m{{{of_model}}} {random.lognormvariate(4.0, 1.0)}\n"
    for kind in ("watts:rate5m", "idle_watts:rate5m", "unattributed_watts:rate5m", "gpus:count", "meters:count"):
        yield f"etameter:cluster_{kind}{{{of_cluster}}} {random.lognormvariate(9.0, 1.0)}\n"
    yield f'etameter:board_watts:rate5m{{{of_cluster},board="{BOARD}"}} {random.lognormvariate(9.0, 1.0)}\n'
    for model in MODELS:
        of_arm = f'{of_cluster},model_name="{model}",arm="unlabelled"'
        for phase in ("prompt", "output"):
            watts = random.lognormvariate(9.0, 1.0)
            yield f'etameter:request_watts:rate5m{{{of_arm},phase="{phase}"}} {watts}\n'
        for kind in ("output_tokens", *(f"model_{each}" for each in DIVIDED)):
            yield f"etameter:{kind}:rate5m{{{of_arm}}} {random.lognormvariate(7.0, 1.0)}\n"
        for kind in ("eta_agreement", "eta_reliable"):
            yield f"etameter:{kind}:min{{{of_arm}}} 1\n"


def _held(rungs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last rung whose scrapes all came, else the first."""
    return next((each for each in reversed(rungs) if each["missed_scrapes"] == 0), rungs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few replicas and short times: to see that it runs")
    parser.add_argument("--gpus", type=int, default=8, help="of each replica that is scraped")
    parser.add_argument("--rungs", type=int, nargs="+", metavar="N", help="how many replicas are scraped, in turn")
    options = parser.parse_args()
    extent = QUICK if options.quick else FULL
    if options.rungs:
        extent = replace(extent, rungs=tuple(options.rungs))
    query = ["dpkg-query", "--show", "--showformat=${Version}", "victoria-metrics"]
    found: dict[str, Any] = {
        "victoria_metrics": subprocess.run(query, capture_output=True, text=True, check=False).stdout or "unknown",
        "gpus_of_a_replica": options.gpus,
        "interval_s": extent.interval_s,
        "load_1m_before": os.getloadavg()[0],
    }
    rungs: list[dict[str, Any]] = []
    for count in extent.rungs:
        rungs.append(_said(rung(count, options.gpus, extent)))
        if rungs[-1]["missed_scrapes"] > 0:
            break
    found |= {
        "rungs": rungs,
        "above": _said(above(extent.above)),
        "prometheus": extent.prometheus and _said(by_prometheus(extent.prometheus, options.gpus, extent)),
        "exposed": {str(gpus): exposed(gpus) for gpus in (1, 8)},
        "stored": [
            _said(stored(gpus, seed, extent.stored_h)) for gpus in extent.stored_gpus for seed in range(extent.seeds)
        ],
        "rules_over_full_windows": _said(ruled(extent.ruled, options.gpus, extent.ruled_h)),
    }
    finish("fleet", "simulated", _goals(found, extent), _rounded(found))


def _said(found: dict[str, Any]) -> dict[str, Any]:
    """Shown at once: the whole takes long."""
    print(json.dumps(_rounded(found)), file=sys.stderr, flush=True)
    return found


def _goals(found: dict[str, Any], extent: Extent) -> list[Goal]:
    held, whole = _held(found["rungs"]), extent is not QUICK
    replicas = float(held["replicas"] if held["missed_scrapes"] == 0 else 0)
    sample_bytes = statistics.mean(each["bytes_per_sample"] for each in found["stored"])
    slowest, ruled_s = held["slowest_group_s"] / extent.interval_s, found["rules_over_full_windows"]
    per_replica_ms = 1e3 * ruled_s["rules_cpu_s"] / ruled_s["replicas"]
    return [
        Goal("replicas on one store, no scrape missed", replicas, "", GOAL_REPLICAS if whole else None, "higher"),
        Goal("samples of a scrape", held["samples_per_scrape"], "", None, "lower"),
        Goal("on the wire for a scrape", held["wire_bytes_per_scrape"], "bytes", None, "lower"),
        Goal("a scrape, mean", held["scrape_ms_mean"], "ms", None, "lower"),
        Goal("a scrape, processor time of the store", held["store_cpu_ms_per_scrape"], "ms", None, "lower"),
        Goal("stored for a sample", sample_bytes, "bytes", GOAL_SAMPLE_BYTES if whole else None, "lower"),
        Goal("the slowest group of rules, of its interval", slowest, "", GOAL_RULES_SHARE, "lower"),
        Goal("rules, processor time of an evaluation", held["rules_cpu_s"], "s", None, "lower"),
        Goal("rules that failed", held["rule_errors"], "", 0.0, "lower"),
        Goal("rules over a full hour, processor time a replica", per_replica_ms, "ms", None, "lower"),
        Goal("the fleet's dashboard, of all meters", found["above"]["dashboard_s"], "s", None, "lower"),
    ]


def _rounded(tree: Any) -> Any:
    """Four digits of each figure are more than it is known to."""
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(each) for each in tree]
    return float(f"{tree:.4g}") if isinstance(tree, float) and math.isfinite(tree) else tree


if __name__ == "__main__":
    main()
