"""A meter's exposition with audits in it, which take a real one hours: counted by the meter's own code, of made-up answers."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from etameter.auditing import AUDIT
from etameter.export.catalogue.labels import Outcome, Tier
from etameter.export.prometheus import Metrics
from etameter.ledger import RequestRow
from etameter.records import RequestEnergy, RequestRecord
from etameter.slack.reading import Reading
from etameter.slack.reliability import Mean, Trust

MODEL = "made-up-8B"
EVERY_S = 8.0
SHARES = {
    "unconstrained": {"required": 0.55, "optional": 0.15, "preamble": 0.1, "closing": 0.15},
    "concise": {"required": 0.9, "optional": 0.05, "hedge": 0.05},
    "entrace": {"required": 0.8, "optional": 0.1, "restatement": 0.1},
}
INTERRUPTED_J = 0.1
"""That an audit is expected to take which somebody else's request ends."""
RELIABLE = {"unconstrained": 0.72, "concise": 0.58, "entrace": 0.31}


def served(stack: ExitStack) -> str:
    """Address of the exposition, until `stack` ends. Now and then something is audited, for under a hundredth of what others take."""
    metrics = Metrics([MODEL], (*SHARES, AUDIT))
    over = threading.Event()

    def audit() -> None:
        number = 0
        while not over.wait(EVERY_S):
            for arm in SHARES:
                _audit(metrics, arm, number)
            number += 1

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the library's
            body, content_type = metrics.render(self.headers["Accept"])
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the library's
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threads = [threading.Thread(target=run, daemon=True) for run in (audit, server.serve_forever)]
    for thread in threads:
        thread.start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    stack.callback(over.set)
    return f"127.0.0.1:{server.server_port}"


def _charge(metrics: Metrics, energy_j: float) -> None:
    """Joules under the arm of audits."""
    tokens = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 2, "first_tokens": 0}
    metrics.increment(MODEL, AUDIT, prompt_j=0.0, output_j=energy_j, batch=1.0, source="simulated", **tokens)


def _audit(metrics: Metrics, arm: str, number: int) -> None:
    shares = SHARES[arm]
    record = RequestRecord("id", "0" * 32, MODEL, arm, 0, 0, 0, 100, 0, 80, "stop")
    energy = RequestEnergy("id", 5.0, 20.0, 8.0, 0.0, 0.0, 0.0, 1.0, True, "made-up", "simulated")
    row = RequestRow("engine-0", 0, number, record, energy, 100, 79)
    strict, lenient = shares["required"], shares["required"] + shares["optional"]
    metrics.classified(
        row, Reading("0" * 32, lenient, (lenient, 1.0), 0.0, "deep", None, shares, "tokens", strict, lenient)
    )
    judged: tuple[Outcome, ...] = ("agreed", "judged", "agreed", "failed")
    checked: tuple[Outcome, ...] = (
        ("correct", "correct", "wrong") if arm == "concise" else ("correct",) * 5 + ("wrong",)
    )
    judged_j, answer_j = 0.04, 2.5 * shares["required"]
    metrics.audited(MODEL, arm, kind="deep", outcome=judged[number % 4], energy_j=judged_j, source="simulated")
    outcome = checked[number % len(checked)]
    metrics.audited(MODEL, arm, kind="task", outcome=outcome, energy_j=answer_j, source="simulated")
    _charge(metrics, judged_j + answer_j + INTERRUPTED_J)
    metrics.audit_dropped("full")
    metrics.unclassified("too_long")
    agreement = RELIABLE[arm]
    less: Mapping[Tier, float] = {"fast": 0.0, "deep": 0.1, "fast_task": 0.2}
    for tier, by in less.items():
        metrics.reliability(
            MODEL, arm, tier, Trust(40, agreement - by, 0.1 + by, 1.0 - by, agreement - 0.2, agreement + 0.02)
        )
    metrics.sampled(MODEL, arm, "strict", Mean(strict, 0.04, 40))
    metrics.sampled(MODEL, arm, "lenient", Mean(lenient, 0.03, 40))
    metrics.trusted(MODEL, arm, reliable=agreement >= 0.5)
