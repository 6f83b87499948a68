"""`etameter top`: what the live page shows, in a terminal, from the meter's events."""

import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from .errors import EngineError
from .export.live import SCHEMA_VERSION

Snapshot = Mapping[str, Any]

SILENCE_S: Final = 5.0
"""Two events a second are due."""
RETRY_S: Final = 1.0
SHOWN_REQUESTS: Final = 10
KEPT_REQUESTS: Final = 100
SHOWN_STEPS: Final = 120
BALANCED: Final = 1e-6
"""Relative difference up to which a balance is rounded, not wrong."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
LONGEST_ID: Final = 9
LARGEST_EVENT: Final = 16 << 20
UNKNOWN: Final = "–"
SHADES: Final = {"requests": "green", "idle": "bright_black", "engine overhead": "yellow"}


def run(*, url: str, once: bool, as_json: bool) -> int:
    """Show the meter at `url` until Ctrl-C; once where told so, or where nobody looks because the output is no terminal.

    Raises:
        EngineError: no meter answers there, or one of another version.
    """
    if not re.fullmatch(r"https?://[^/?#]+(/[^?#]*)?", url):
        raise EngineError(f"{url} is no address of a meter", "give one such as http://127.0.0.1:9430")
    address = url.rstrip("/") + "/events"
    snapshots = listen(address)
    try:
        first = next(snapshots, None)
    except OSError as error:
        raise _absent(url, str(getattr(error, "reason", error))) from error
    if first is None:
        raise _absent(url, "it ended at once")
    if as_json:
        sys.stdout.write(json.dumps(first) + "\n")
        return 0
    board = Dashboard(first)
    if once or not sys.stdout.isatty():
        Console().print(board.picture())
        return 0
    with Screen(board.picture(), screen=True, auto_refresh=False) as screen:
        heard = time.localtime()
        while True:
            for snapshot in _until_lost(snapshots):
                heard = time.localtime()
                board.take(snapshot)
                screen.update(board.picture(), refresh=True)
            screen.update(board.picture(time.strftime("%H:%M:%S", heard)), refresh=True)
            time.sleep(RETRY_S)
            snapshots = listen(address)


def listen(address: str) -> Iterator[Snapshot]:
    """What the meter tells, until it ends.

    Raises:
        OSError: there is nobody, or nothing came for `SILENCE_S`.
        EngineError: it is not of this version.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(address, headers={"Accept": "text/event-stream"})  # noqa: S310  # any address is the user's own choice
    try:
        with direct.open(request, timeout=SILENCE_S) as response:
            while line := response.readline(LARGEST_EVENT):
                if line.startswith(b"data: ") and line.endswith(b"\n"):
                    yield _snapshot(line[len(b"data: ") :], address)
    except HTTPException as error:
        raise ConnectionError(f"it broke off ({error})") from error


def _snapshot(line: bytes, address: str) -> Snapshot:
    try:
        snapshot: Snapshot = json.loads(line, object_hook=_printable)
        version = snapshot["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(f"what {address} tells is not a meter's", "name the meter's address (--url)") from error
    if version != SCHEMA_VERSION:
        remedy = "use the same version of etameter for both"
        raise EngineError(f"the meter's events are of version {version}, not {SCHEMA_VERSION}", remedy)
    return snapshot


def _until_lost(snapshots: Iterator[Snapshot]) -> Iterator[Snapshot]:
    try:
        yield from snapshots
    except OSError:
        return


def _absent(url: str, why: str) -> EngineError:
    return EngineError(
        f"no meter tells at {url} ({why})", "start one (etameter serve, etameter meter), or name its address with --url"
    )


class Dashboard:
    """The last snapshot, with the power and the requests of those before it."""

    def __init__(self, first: Snapshot) -> None:
        self._watts: dict[str, dict[int, float | None]] = {}
        self._requests: dict[str, Mapping[str, Any]] = {}
        self._snapshot = first
        self.take(first)

    def take(self, snapshot: Snapshot) -> None:
        """The next snapshot."""
        if snapshot["now_s"] < self._snapshot["now_s"]:  # another boot of the machine
            self._watts.clear()
            self._requests.clear()
        self._snapshot = snapshot
        for gpu in snapshot["gpus"]:
            trace = gpu["trace"]
            first = round(trace["start_s"] / trace["step_s"])
            known = self._watts.setdefault(gpu["gpu_uuid"], {})
            known.update(enumerate(trace["watts"], first))
            self._watts[gpu["gpu_uuid"]] = dict(list(known.items())[-SHOWN_STEPS:])
        for request in snapshot["requests"]:
            self._requests[request["key"]] = request
        self._requests = dict(list(self._requests.items())[-KEPT_REQUESTS:])

    def picture(self, lost: str | None = None) -> RenderableType:
        """All of it; with `lost`, since when nothing was heard."""
        parts: list[RenderableType] = [
            self._heading(lost),
            Text(),
            self._figures(lost),
            Text(),
            self._power(lost),
            Text(),
            self._arms(),
            Text(),
        ]
        return Group(*parts, self._balance(), Text(), self._latest(), Text(), self._sensors())

    def _heading(self, lost: str | None) -> Text:
        snapshot = self._snapshot
        engines = ", ".join(f"{each['model']} ({each['engine']})" for each in snapshot["engines"])
        text = Text.assemble(
            ("etameter", "bold green"), f" {snapshot['meter']['version']}  ", engines or "no engine yet"
        )
        if snapshot["source"] == "simulated":
            text.append("  SIMULATED ", "bold reverse magenta")
        if lost is not None:
            text.append(f"  no word from the meter since {lost}, trying again", "bold red")
        return text

    def _figures(self, lost: str | None) -> Table:
        snapshot, now = self._snapshot, self._snapshot["now"]
        known = lost is None
        watts = [gpu["power_w"] for gpu in snapshot["gpus"]]
        power = sum(watts) if known and None not in watts else None
        eta = now["eta"] if known else None
        running = sum(engine["running"] for engine in snapshot["engines"])
        source = snapshot["source"]
        table = Table.grid(padding=(0, 3))
        columns = (
            ("power", _three(power), self.unit("W", source)),
            ("output", _three(now["output_j_per_token"] if known else None), self.unit("J/token", source)),
            ("", _micro(now["output_wh_per_token"] if known else None), self.unit("µWh/token", source)),
            ("prompt", _three(now["prompt_j_per_token"] if known else None), self.unit("J/token", source)),
            (
                "η, lenient",
                UNKNOWN
                if eta is None
                else f"≤ {eta['lenient_at_most']:.2f}" + (": UNRELIABLE" if eta.get("reliable") is False else ""),
                "reliability " + _reliability(eta),
            ),
            ("requests", str(running) if known else UNKNOWN, "running"),
        )
        for place in range(3):
            table.add_row(*(Text(column[place], ("dim", "bold", "dim")[place]) for column in columns))
        return table

    def _power(self, lost: str | None) -> Text:
        """The boards together, a character a step: a gap where nothing was told, and ? where it could not be trusted."""
        steps = set.intersection(*(set(known) for known in self._watts.values()))
        last = max(steps, default=0)
        shown = range(max(min(steps, default=0), last - SHOWN_STEPS + 1), last + 1)
        watts = {step: _together([known[step] for known in self._watts.values()]) for step in shown if step in steps}
        most = max((each for each in watts.values() if each is not None), default=0.0)
        if most <= 0:
            return Text("power: nothing read yet", "dim")
        line = "".join(_block(watts[step], most) if step in watts else " " for step in shown)
        return Text.assemble(
            (line, "dim" if lost else "green"),
            (f" up to {_three(most)} {self.unit('W', self._snapshot['source'])}", "dim"),
        )

    def _arms(self) -> Table:
        source = self._snapshot["source"]
        headings = (
            "arm",
            "requests",
            f"output {self.unit('J/token', source)}",
            f"{self.unit('µWh/token', source)}",
            "η ≤",
            "slack",
            self.unit("wasted J", source),
        )
        rows = [
            (
                arm["arm"],
                f"{arm['requests']:,}",
                _three(arm["output_j_per_token"]),
                _micro(arm["output_wh_per_token"]),
                _bound(arm["eta"]),
                _slack(arm["eta"]),
                _wasted(arm["wasted_j"]) if arm["requests"] else UNKNOWN,
            )
            for arm in self._snapshot["arms"]
        ]
        return _table(headings, rows, "no request has been charged yet")

    def _balance(self) -> Text:
        balance = self._snapshot["balance"]
        if balance["source"] is None:
            return Text("balance: no interval has been settled yet", "dim")
        causes = {
            f"unattributed: {cause.replace('_', ' ')}": joules for cause, joules in balance["unattributed_j"].items()
        }
        parts = {
            "requests": balance["requests_j"],
            "idle": balance["idle_j"],
            "engine overhead": balance["engine_overhead_j"],
            **causes,
        }
        measured_j = balance["measured_j"]
        text = Text(f"{_joules(measured_j)} {self.unit('J', balance['source'])} by the counter: ")
        for name, joules in parts.items():
            share = joules / measured_j if measured_j > 0 else 0.0
            text.append(f"{name} {_joules(joules)} ({100 * share:.1f} %)  ", SHADES.get(name, "red"))
        if abs(balance["residual_j"]) > BALANCED * max(measured_j, 1.0):
            text.append(f"they differ by {_joules(balance['residual_j'])}", "bold red")
        return text

    def _latest(self) -> Table:
        source = self._snapshot["source"]
        headings = (
            "request",
            "arm",
            "tokens",
            self.unit("prompt J", source),
            self.unit("output J", source),
            "±",
            "η ≤",
            "slack",
            self.unit("wasted J", source),
        )
        latest = sorted(self._requests.values(), key=lambda request: request["finished_s"] or 0.0, reverse=True)
        rows = [
            (
                _short(request["id"] or UNKNOWN),
                request["arm"],
                f"{request['prompt_tokens']:,} + {request['output_tokens']:,}",
                _least(request) + _three(request["prompt_j"]),
                _least(request) + _three(request["output_j"]),
                _three(request["error_j"]),
                _bound(request["eta"]),
                _slack(request["eta"]),
                _wasted(request["waste_j"]) if request["energy_reason"] is None else UNKNOWN,
            )
            for request in latest[:SHOWN_REQUESTS]
        ]
        return _table(headings, rows, "no request is settled yet")

    def _sensors(self) -> Text:
        snapshot, sampler = self._snapshot, self._snapshot["sampler"]
        text = Text(style="dim")
        for gpu in snapshot["gpus"]:
            sensor = gpu["sensor"] or {}
            period, lag = _milliseconds(sensor.get("update_period_s")), _milliseconds(sensor.get("lag_s"))
            text.append(
                f"{gpu['board'] or gpu['gpu_uuid']}: {gpu['counter']}, {gpu['source']}; period {period}, lag {lag}, "
            )
            text.append(f"{sensor.get('missed_edges', UNKNOWN)} edges missed, {sensor.get('resets', UNKNOWN)} resets\n")
        return text.append(f"{sampler['polls']:,} reads, {_milliseconds(sampler['mean_lateness_s'])} late on average")

    @staticmethod
    def unit(name: str, source: str) -> str:
        """With the source where it is any other than a measurement."""
        return name if source == "measured" else f"{name} {source}"


def _table(headings: tuple[str, ...], rows: Sequence[Sequence[str]], empty: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if not rows:
        table.add_row(Text(empty, "dim"))
    return table


def _three(value: float | None) -> str:
    """Three digits; a dash where it isn't known."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def _joules(value: float) -> str:
    """Of a sum, in which what is next to nothing is rounding, and has no sign."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 2) + 0.0:.2f}"


def _together(watts: Sequence[float | None]) -> float | None:
    """The sum; None where one of them isn't known."""
    known = [each for each in watts if each is not None]
    return sum(known) if len(known) == len(watts) else None


def _block(watts: float | None, most: float) -> str:
    return "?" if watts is None else BLOCKS[min(7, int(8 * watts / most))]


def _micro(wh: float | None) -> str:
    return UNKNOWN if wh is None else _three(1e6 * wh)


def _milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1000 * seconds:.3g} ms"


def _reliability(eta: Mapping[str, Any] | None) -> str:
    told = UNKNOWN
    if eta is not None and eta["reliability"] is not None:
        told = f"{eta['reliability']:.2f}"
        if (ends := eta.get("reliability_interval")) is not None:
            told += f" [{ends[0]:.2f}, {ends[1]:.2f}]"
    return told


def _short(name: str) -> str:
    """Its end, which is where ids differ."""
    return name if len(name) <= LONGEST_ID else "…" + name[1 - LONGEST_ID :]


def _least(request: Mapping[str, Any]) -> str:
    """Before the figures of one that was metered in part."""
    return "≥ " if request["method"].endswith("-partial") and request["energy_reason"] is None else ""


def _bound(eta: Mapping[str, Any] | None) -> str:
    return UNKNOWN if eta is None else f"{eta['lenient_at_most']:.2f}"


def _slack(eta: Mapping[str, Any] | None) -> str:
    """The share that is shown to be slack, and its largest category."""
    if eta is None:
        return UNKNOWN
    shares: Mapping[str, float] = eta["slack"]
    if not shares:
        return "0 %"
    largest = max(shares, key=lambda category: shares[category])
    return f"{100 * sum(shares.values()):.0f} % {largest}"


def _wasted(by_waste: Mapping[str, float]) -> str:
    """Joules of lost answers, and what became of most of them."""
    if not any(by_waste.values()):
        return "0"
    largest = max(by_waste, key=lambda waste: by_waste[waste])
    return f"{_three(sum(by_waste.values()))} {largest}"


def _printable(told: dict[str, Any]) -> dict[str, Any]:
    """Nothing that a name could tell the terminal to do."""
    return {
        name: "".join(sign if sign.isprintable() else "?" for sign in value) if isinstance(value, str) else value
        for name, value in told.items()
    }
