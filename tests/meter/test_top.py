"""The page's figures in a terminal."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from etameter import top
from etameter.errors import EngineError
from etameter.export.live import Live, Serving
from etameter.records import Balance, Edge
from etameter.slack.reliability import Reliability
from tests.meter.export.test_live import SECOND, SIMULATED, Charged, reading
from tests.meter.test_daemon import free_port, until
from tests.meter.test_ledger import row

pytestmark = pytest.mark.unit


def busy() -> Live:
    live = Live([SIMULATED], ("entrace", "unlabelled"), "0.1.0", 10 * SECOND, 1e9)
    live.found([Edge("GPU-0", t_ns, 1_000, t_ns // 10_000) for t_ns in range(10 * SECOND, 20 * SECOND, SECOND // 10)])
    live.charged("m", Charged("entrace", 10.0, 30.0, 100, 0, 11, 1), 19 * SECOND)
    live.settle(Balance("GPU-0", 0, 1, 100.0, 40.0, 55.0, 3.0, {"stale": 2.0}), "simulated")
    live.finished(row(1), "chatcmpl-1", reading(), 20 * SECOND)
    return live


def snapshot(live: Live, now_ns: int = 20 * SECOND, since_ns: int = 0) -> Any:
    serving = Serving("engine-0", "made-up", ("GPU-0",), 3, 19.5, 0, 0)
    return json.loads(json.dumps(live.snapshot(now_ns, 1e9, since_ns=since_ns, serving=[serving])))


def text_of(board: top.Dashboard, lost: str | None = None, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(board.picture(lost))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_are_those_of_the_snapshot_with_their_source() -> None:
    text = text_of(top.Dashboard(snapshot(busy())))
    assert "made-up (engine-0)  SIMULATED" in text
    assert re.search(r"100 +3\.00 +833 +0\.100 +– +3\b", text)
    assert "█ up to 100 W simulated" in text
    assert (
        "requests 40.00 (40.0 %)  idle 55.00 (55.0 %)  engine overhead 3.00 (3.0 %)  unattributed: stale 2.00" in text
    )
    assert re.search(r"…atcmpl-1 +entrace +10 \+ 5 +1\.00 +2\.00 +0\.100 +0\.75 +25 % preamble", text)
    of_energy = re.findall(r"\b(?:J/token|µWh/token|W|J(?!/))\b(.{0,10})", text)
    assert len(of_energy) >= 8
    assert all(rest.startswith(" simulated") for rest in of_energy)


def test_what_was_wasted_stands_beside_what_it_was_wasted_by() -> None:
    live = busy()
    live.wasted(row(1), "truncated", 1.5, 20 * SECOND)
    live.wasted(row(1), "draft", 0.25, 20 * SECOND)
    text = text_of(top.Dashboard(snapshot(live)))
    assert re.search(r"wasted J simulated", text)
    assert len(re.findall(r"1\.75 truncated", text)) == 2, "of the arm, and of the request"
    assert "1.75" not in text_of(top.Dashboard(snapshot(busy())))


def test_nothing_but_units_is_cut_where_a_terminal_has_eighty_columns() -> None:
    live = busy()
    live.finished(row(2), f"chatcmpl-{'0' * 31}f", "text_not_told", 20 * SECOND)
    live.wasted(row(1), "truncated", 1.5, 20 * SECOND)
    text = text_of(top.Dashboard(snapshot(live)), width=80)
    assert re.search(r"…atcmpl-1 +entrace +10 \+ 5 +1\.00 +2\.00 +0\.100 +0\.75", text)
    assert re.search(r"…0000000f +entrace +10 \+ 5", text)
    for words in ("reliability", "J/token", "simulated", "preamble", "1.50", "truncated"):
        assert words in text, words


def test_an_eta_that_audits_found_unreliable_is_said_to_be() -> None:
    live = busy()
    assert "UNRELIABLE" not in text_of(top.Dashboard(snapshot(live)))
    live.classified(row(1), reading(), 20 * SECOND, Reliability(0.2, (0.05, 0.45), reliable=False))
    told = {"≤ 0.75: UNRELIABLE", "reliability 0.20 [0.05, 0.45]"}
    assert {words for words in told if words in text_of(top.Dashboard(snapshot(live)), width=120)} == told
    narrow = text_of(top.Dashboard(snapshot(live)), width=80)
    assert [word for word in " ".join(told).split() if word not in narrow] == [], "they are in several lines"


def test_a_balance_that_does_not_close_is_said() -> None:
    live = busy()
    assert "differ" not in text_of(top.Dashboard(snapshot(live)))
    live.settle(Balance("GPU-0", 1, 2, 10.0, 14.5, 0.0, 0.0, {}), "simulated")
    assert "they differ by -4.50" in " ".join(text_of(top.Dashboard(snapshot(live))).split())


def test_power_that_was_not_told_is_a_gap_and_what_was_not_to_be_trusted_a_question() -> None:
    board = top.Dashboard(snapshot(busy()))
    later = snapshot(busy())
    [gpu] = later["gpus"]
    gpu["trace"]["start_s"] += 12.0
    gpu["trace"]["watts"][1] = None
    board.take(later)
    line = text_of(board)
    assert re.search(r"█ {8,}█\?█", line), line


def test_power_and_requests_of_another_boot_are_forgotten() -> None:
    board = top.Dashboard(snapshot(busy(), 20 * SECOND))
    after = Live([SIMULATED], (), "0.1.0", SECOND, 1e9)
    board.take(json.loads(json.dumps(after.snapshot(2 * SECOND, 1e9, since_ns=0))))
    text = text_of(board)
    assert "…atcmpl-1" not in text
    assert "nothing read yet" in text


def test_a_name_can_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    told = snapshot(busy())
    told["engines"][0]["model"] = "\x1b]0;title\x07\x9b2J"
    with telling(b"data: " + json.dumps(told).encode() + b"\n\n") as url:
        assert top.run(url=url, once=True, as_json=False) == 0
    assert "?]0;title??2J (engine-0)" in capsys.readouterr().out


def test_what_is_not_known_is_a_dash_and_never_zero() -> None:
    empty = Live([SIMULATED], (), "0.1.0", 10 * SECOND, 1e9)
    text = text_of(top.Dashboard(json.loads(json.dumps(empty.snapshot(20 * SECOND, 1e9, since_ns=0)))))
    assert re.search(r"\n– +– +– +– +– +0\b", text)
    assert "nothing read yet" in text
    assert "no engine yet" in text
    assert "no interval has been settled yet" in text
    assert "0.00" not in text


def test_a_lost_meters_figures_are_not_shown_as_if_they_were_of_now() -> None:
    text = text_of(top.Dashboard(snapshot(busy())), lost="12:03:04")
    assert "no word from the meter since 12:03:04" in text
    assert re.search(r"\n– +– +– +– +– +–", text)


def test_snapshots_are_joined() -> None:
    live = busy()
    board = top.Dashboard(snapshot(live))
    live.found([Edge("GPU-0", t_ns, 1_000, t_ns // 10_000) for t_ns in range(20 * SECOND, 22 * SECOND, SECOND // 10)])
    live.finished(row(2), "chatcmpl-2", "text_not_told", 22 * SECOND)
    before = text_of(board).count("█")
    board.take(snapshot(live, 22 * SECOND, since_ns=21 * SECOND))
    assert "…atcmpl-1" in text_of(board)
    assert "…atcmpl-2" in text_of(board)
    assert text_of(board).count("█") > before


@contextmanager
def telling(*lines: bytes) -> Iterator[str]:
    """A server that tells these lines and ends, as often as it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/events" else 404)
            self.end_headers()
            self.wfile.write(b"".join(lines))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(url: str, *, as_json: bool = False) -> int:
    return top.run(url=url, once=True, as_json=as_json)


def test_one_snapshot_is_printed_as_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = snapshot(busy())
    with telling(b"retry: 1000\n\n", b"data: " + json.dumps(told).encode() + b"\n\n") as url:
        assert run(url, as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == told
        assert run(url + "/") == 0
        assert "SIMULATED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b'data: {"version": 99}\n'], "the meter's events are of version 99, not 1: use the same version"),
        ([b"data: {\n"], "is not a meter's"),
        ([b"data: [1]\n"], "is not a meter's"),
        ([b"<html>\n"], "it ended at once"),
        ([], "it ended at once"),
    ],
)
def test_who_is_no_meter_of_this_version_is_told_so(lines: Sequence[bytes], message: str) -> None:
    with telling(*lines) as url, pytest.raises(EngineError, match=re.escape(message)):
        run(url)


@pytest.mark.parametrize("url", ["nonsense", "ftp://x", "http://", "http://x?y"])
def test_what_is_no_address_is_told_so(url: str) -> None:
    with pytest.raises(EngineError, match="is no address of a meter"):
        run(url)


def test_where_nobody_listens_one_line_says_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"no meter tells at .*Connection refused.*start one"):
        run(f"http://127.0.0.1:{free_port()}")
    with telling() as url, pytest.raises(EngineError, match="Not Found"):
        run(f"{url}/elsewhere")


def test_a_terminal_shows_it_until_interrupted_and_outlives_the_meter(tmp_path: Path) -> None:
    told = json.dumps(snapshot(busy())).encode()
    command = ["script", "--quiet", "--return", "--flush", "--command"]
    output = tmp_path / "seen"
    with telling(b"data: " + told + b"\n\n") as url, output.open("wb") as seen:
        inner = f"{sys.executable} -m etameter top --url {url}"
        process = subprocess.Popen([*command, inner, "/dev/null"], stdout=seen, stdin=subprocess.DEVNULL)
        until(lambda: output.read_bytes().count(b"no word from the meter since") >= 2)  # lost, and found, and lost
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert b"SIMULATED" in output.read_bytes()
