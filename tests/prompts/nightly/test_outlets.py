import http.server
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from prometheus_client.parser import text_string_to_metric_families

from etameter.errors import NightError
from etameter.footprint import Footprint
from etameter.nightly_section import NightlySection
from etameter.prompts.nightly import beside, outlets, schedule
from etameter.prompts.nightly.night import Night
from etameter.prompts.nightly.page import page
from etameter.prompts.nightly.verdict import judge
from etameter.prompts.nightly.wording import sentences

from .laid_out import figure, run

pytestmark = pytest.mark.unit


def night(day: int, value: float | None, **told: Any) -> Night:
    ends = {"low": None, "high": None} if value is None else {"low": 0.997 * value, "high": 1.003 * value}
    figures = (figure(value=value, **ends), figure(metric="tokens_per_s", value=100.0, low=99.0, high=101.0))
    return Night(run(run_id=f"202611{day:02}T020000Z-0a1b2c3d", **told), (), figures)


BEFORE = [night(1, 3.0), night(2, 3.01), night(3, 3.0)]
WORSE = night(4, 3.3, vllm="0.33.0")
VERDICT = judge(BEFORE, WORSE)


def test_sentences_say_what_how_much_and_since_when() -> None:
    said = sentences(WORSE.run, VERDICT)
    assert all(sentence.startswith("Simulated: ") for sentence in said)
    assert said[0] == "Simulated: Regression: energy for the same work went up."
    assert "batch-8 j_per_token: worse, +9.9 % against the 3 nights before" in said[1]
    assert "In the same night: vLLM: 0.32.0, then 0.33.0." in said[2]


@pytest.mark.parametrize(
    ("before", "tonight", "expected"),
    [
        ([], night(1, 3.0), "This is the first night of nightly"),
        (BEFORE, night(4, 3.0, power_cap_w=300.0), "Power cap: None, then 300.0."),
        (
            BEFORE,
            night(4, 3.0, status="unstable", reason="power never levelled", remedy="warm up for longer"),
            "power never levelled. Simulated: Warm up for longer.",
        ),
        (BEFORE, night(4, 3.0), "Same: energy for the same work lies within 5 %"),
        (BEFORE, night(4, None), "batch-8 j_per_token: not known"),
        (BEFORE[:1], night(2, 3.0), "the same as in the night before, within 5 %"),
    ],
)
def test_each_verdict_has_its_words(before: list[Night], tonight: Night, expected: str) -> None:
    assert expected in " ".join(sentences(tonight.run, judge(before, tonight)))


@pytest.mark.parametrize(
    ("series", "said"), [(6, "1 more of the headline stands"), (7, "2 more of the headline stand ")]
)
def test_of_many_series_some_are_told(series: int, said: str) -> None:
    before, tonight = (
        Night(
            run(run_id=f"2026110{day}T020000Z-0a1b2c3d"), (), tuple(figure(stage=f"batch-{n}") for n in range(series))
        )
        for day in (1, 2)
    )
    assert said in " ".join(sentences(tonight.run, judge([before], tonight)))


def test_markdown_is_marked_and_escaped() -> None:
    text = outlets.markdown(night(4, 3.3, model="a|b<script>"), VERDICT)
    assert "**SIMULATED: no joule or watt here is a measurement of hardware.**" in text
    assert "| batch-8 j\\_per\\_token | 3.3 J/token | +9.9 % |" in text
    assert "a\\|b\\<script\\>" in text


def test_junit_fails_for_a_regression_alone() -> None:
    suite = ET.fromstring(outlets.junit(WORSE, VERDICT))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    [failure] = suite.findall("testcase/failure")
    assert failure.get("message", "").startswith("simulated: batch-8 j_per_token: worse")
    unlike = night(4, 3.0, seed=9)
    suite = ET.fromstring(outlets.junit(unlike, judge(BEFORE, unlike)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "1")


def test_what_no_xml_can_hold_is_written_out() -> None:
    dead = night(4, 3.0, status="failed", reason="\x1b[31mthe server <went> away\x00", exit_code=2)
    suite = ET.fromstring(outlets.junit(dead, judge(BEFORE, dead)))
    [error] = suite.findall("testcase/error")
    assert "␛[31mthe server <went> away␀" in error.get("message", "")


def test_the_textfile_is_prometheus_text(tmp_path: Path) -> None:
    unknown = night(4, None)
    text = outlets.textfile(unknown, judge(BEFORE, unknown))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    [known] = families["etameter_nightly_figure"].samples
    assert (known.labels["metric"], known.labels["source"], known.value) == ("tokens_per_s", "simulated", 100.0)
    assert "j_per_token" not in {
        sample.labels["metric"] for sample in families["etameter_nightly_change_ratio"].samples
    }
    outlets.write_textfile(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["etameter_nightly.prom"]
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_exit_code_is_that_of_the_verdict() -> None:
    assert 'etameter_nightly_exit_code{name="nightly",source="simulated"} 3' in outlets.textfile(WORSE, VERDICT)


def test_the_page_loads_nothing_and_is_marked() -> None:
    text = page(WORSE, VERDICT, BEFORE, Footprint())
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "SIMULATED: no joule or watt here is a measurement of hardware." in text
    assert "batch-8 j_per_token" in text
    assert text.count("<svg") == 1


def test_the_page_says_that_a_simulated_board_was_told_to_take_more() -> None:
    boards = [{"board": "h100", "counter": "simulated", "times_energy": 1.1}]
    raised = replace(WORSE, run=replace(WORSE.run, details={"sessions": [{"boards": boards}]}))
    assert "1.1 times what the model takes" in page(raised, VERDICT, BEFORE, Footprint())
    assert "times what the model takes" not in page(WORSE, VERDICT, BEFORE, Footprint())


def test_the_page_shows_what_a_sweep_found() -> None:
    points = [
        {"setting": "sweep-seqs-8", "j_per_token": 3.0, "itl_s": 0.02, "best": True},
        {"setting": "sweep-cap-300", "j_per_token": 3.5, "itl_s": 0.03, "best": False},
    ]
    swept = replace(WORSE, run=replace(WORSE.run, details={"sweep": points}))
    text = page(swept, VERDICT, BEFORE, Footprint())
    assert text.count("<svg") == 2
    assert '<th scope="row">seqs-8</th><td>3</td><td>20</td><td>yes</td><td>simulated</td>' in text
    assert '<th scope="row">cap-300</th><td>3.5</td><td>30</td><td>no</td><td>simulated</td>' in text
    assert "The sweep" not in page(WORSE, VERDICT, BEFORE, Footprint())


@pytest.mark.parametrize(("theirs_j", "difference"), [(330.0, "+10.0 %"), (0.0, "–")])
def test_the_page_shows_what_codecarbon_says_and_why_it_differs(theirs_j: float, difference: str) -> None:
    told = beside.Beside({"cpu": 5.0, "gpu": theirs_j, "ram": 1.0}, "3.0.4")
    found = beside.compared(told, 300.0, 30.0, "nvml", "batch-1")
    text = page(replace(WORSE, run=replace(WORSE.run, details={"codecarbon": [found]})), VERDICT, BEFORE, Footprint())
    gpu = f"{theirs_j:g}"
    assert f"<td>300 (simulated)</td><td>cpu 5, gpu {gpu}, ram 1</td><td>{difference}</td>" in text
    assert found["why"].replace("'", "&#x27;") in text
    assert "codecarbon" not in page(WORSE, VERDICT, BEFORE, Footprint())


class _Receiver(http.server.BaseHTTPRequestHandler):
    taken: list[tuple[str, str, str]]
    status = 200

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.taken.append((self.command, self.path, body))
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_PUT  # noqa: N815  # so http.server wants it

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[_Receiver]]]:
    handler = type("Receiver", (_Receiver,), {"taken": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_a_pushgateway_and_a_webhook_get_it(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    outlets.push(url + "/", "nightly", "some text\n")
    outlets.call(url + "/hook?token=secret", outlets.told(WORSE, VERDICT))
    (put, where, text), (post, hook, body) = handler.taken
    assert (put, where, text) == ("PUT", "/metrics/job/etameter_nightly/name/nightly", "some text\n")
    assert (post, hook) == ("POST", "/hook?token=secret")
    assert json.loads(body)["word"] == "regression"
    assert json.loads(body)["source"] == "simulated"


def test_what_is_not_taken_is_told_without_its_secret(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    handler.status = 403
    with pytest.raises(NightError, match=r"127\.0\.0\.1:\d+ did not take the verdict \(HTTP 403\)") as refused:
        outlets.call(url + "/hook?token=secret", {})
    assert "secret" not in str(refused.value)
    with pytest.raises(NightError, match="does not begin with http"):
        outlets.call("file:///etc/passwd?token=secret", {})


def test_it_is_sent_wherever_the_configuration_says(receiver: tuple[str, type[_Receiver]], tmp_path: Path) -> None:
    url, handler = receiver
    section = NightlySection(textfile=tmp_path, pushgateway=url, webhook=f"{url}/hook")
    assert outlets.send(section, WORSE, VERDICT) == []
    assert [method for method, _, _ in handler.taken] == ["PUT", "POST"]
    assert (tmp_path / outlets.TEXTFILE).read_text() == handler.taken[0][2]
    assert outlets.send(NightlySection(), WORSE, VERDICT) == []


def test_what_can_not_be_sent_keeps_nothing_else_back(receiver: tuple[str, type[_Receiver]], tmp_path: Path) -> None:
    url, handler = receiver
    section = NightlySection(textfile=tmp_path / "none", pushgateway="http://127.0.0.1:9", webhook=f"{url}/hook")
    first, second = outlets.send(section, WORSE, VERDICT)
    assert "none" in first
    assert "127.0.0.1:9 did not take the verdict" in second
    assert [method for method, _, _ in handler.taken] == ["POST"]


@pytest.mark.parametrize("port", ["none", "garbled"])
def test_an_address_that_speaks_no_http_is_told_without_its_secret(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_garble, args=(server,))
        thread.start()
        own = server.getsockname()[1]
        with pytest.raises(NightError, match="did not take the verdict") as refused:
            outlets.call(f"http://127.0.0.1:{own if port == 'garbled' else 'none'}/hook?token=secret", {})
        assert "secret" not in str(refused.value)
        if port == "none":
            socket.create_connection(("127.0.0.1", own)).close()
        thread.join()


def _garble(server: socket.socket) -> None:
    taken, _ = server.accept()
    with taken:
        taken.recv(65536)
        taken.sendall(b"this is no HTTP\r\n\r\n")


def test_a_run_does_not_keep_addresses_that_may_hold_secrets() -> None:
    section = NightlySection(pushgateway="http://user:secret@gateway", webhook="https://hook/secret")
    assert "secret" not in json.dumps(schedule.told_of(section))


def test_a_run_does_not_keep_what_lets_a_server_in() -> None:
    options = ("--hf-token", "hf_secret", "--api_key=secret", "--hf-token", "--max-model-len", "8192")
    told = schedule.told_of(NightlySection(options=options))
    assert told["options"] == ["--hf-token", "…", "--api_key=…", "--hf-token", "--max-model-len", "8192"]
    other = NightlySection(options=("--hf-token", "another", *options[2:]))
    assert schedule.config_hash(other) == schedule.config_hash(NightlySection(options=options))
