"""A request is found by the id that its client knows, and that tells nobody the receipt's own."""

import json
import socket
from pathlib import Path

import pytest

from etameter.export.public_ids import NAMELESS, REMEMBERED, ROOM, PublicIds, printable
from tests.meter.test_daemon import PATIENCE_S, RECEIPT, engine, lit_board, running, serve_one, until

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("public_id", "shown"),
    [("chatcmpl-1", "chatcmpl-1"), ("a" * 500, "a" * ROOM), ('evil"} 1\n', None), ("\ud800", None), ("", None)],
)
def test_an_id_is_shown_as_far_as_it_is_one(public_id: str, shown: str | None) -> None:
    assert printable(public_id) == shown
    assert printable(None) is None


def test_an_ended_request_is_found_by_what_is_shown_of_its_id() -> None:
    ids = PublicIds()
    ids.publish("a" * 32, "chatcmpl-1")
    ids.publish("b" * 32, "x" * 500)
    assert ids.receipt_of("chatcmpl-1") is None, "it is not over"
    assert ids.end("a" * 32) == "chatcmpl-1"
    assert ids.end("b" * 32) == "x" * 500
    assert ids.end("c" * 32) is None
    assert ids.receipt_of("chatcmpl-1") == "a" * 32
    assert ids.receipt_of("x" * ROOM) == "b" * 32
    assert ids.receipt_of("chatcmpl-2") is None


def test_of_requests_whose_clients_chose_the_same_id_the_latest_is_found() -> None:
    ids = PublicIds()
    for receipt_id in ("a" * 32, "b" * 32):
        ids.publish(receipt_id, "chatcmpl-mine")
    assert ids.end("b" * 32) == ids.end("a" * 32) == "chatcmpl-mine"
    assert ids.receipt_of("chatcmpl-mine") == "a" * 32


def test_an_id_that_a_busy_server_tells_after_the_end_is_known_all_the_same() -> None:
    ids = PublicIds()
    assert ids.end("a" * 32) is None
    ids.publish("a" * 32, "chatcmpl-1")
    assert ids.receipt_of("chatcmpl-1") == "a" * 32
    assert ids.end("a" * 32) == "chatcmpl-1", "of its other prompt"
    for number in range(NAMELESS + 1):
        ids.end(f"{number:032x}")
    ids.publish(f"{0:032x}", "chatcmpl-2")
    assert ids.receipt_of("chatcmpl-2") is None, "that was too long ago"


def test_the_oldest_are_forgotten() -> None:
    ids = PublicIds()
    for number in range(REMEMBERED + 1):
        ids.publish(f"{number:032x}", f"chatcmpl-{number}")
    assert ids.end(f"{0:032x}") is None, "it was open for too long"
    for number in range(1, REMEMBERED + 1):
        ids.end(f"{number:032x}")
    ids.publish("f" * 32, "chatcmpl-last")
    ids.end("f" * 32)
    assert ids.receipt_of("chatcmpl-1") is None
    assert ids.receipt_of("chatcmpl-2") == f"{2:032x}"


def test_the_meters_port_answers_for_the_id_of_an_exemplar(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(str(tmp_path / "run" / "meter.sock"))
            serve_one(ring, steps=10)
            question = {"type": "ask", "receipt_id": RECEIPT, "public_id": "chatcmpl-1"}
            peer.sendall(json.dumps(question).encode() + b"\n")
            until(lambda: 'request_id="chatcmpl-1"' in meter.get("/metrics", "application/openmetrics-text")[1])
        status, said = meter.get("/energy/chatcmpl-1")
        assert (status, RECEIPT in said) == (200, False)
        by_receipt = meter.energy()
        assert by_receipt.pop("receipt_id") == RECEIPT
        assert json.loads(said)["energy"] == by_receipt
        assert meter.get("/energy/chatcmpl-2")[0] == 404
