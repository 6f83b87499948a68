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


CHAT = "chatcmpl-0123456789abcdef"


@pytest.mark.parametrize(
    "drawn",
    [
        CHAT,
        "cmpl-" + "0123456789abcdef" * 2,
        "chatcmpl-8f14e45f-ceea-467f-a8d5-2f6d0c3b9a17",
        "chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012",
        "0123456789abcdef" * 2,
    ],
)
def test_an_ended_request_is_found_by_an_id_that_a_server_drew(drawn: str) -> None:
    ids = PublicIds()
    ids.publish("a" * 32, drawn)
    assert ids.receipt_of(drawn) is None, "it is not over"
    assert ids.end("a" * 32) == drawn
    assert ids.receipt_of(drawn) == "a" * 32
    assert ids.end("b" * 32) is None
    assert ids.receipt_of(drawn.swapcase()) is None


@pytest.mark.parametrize(
    "chosen",
    [
        "chatcmpl-1",
        "chatcmpl-order-0123456789abcdef",
        "chatcmpl-1732276000123456",
        "chatcmpl-" + "1732276000" * 3,
        "chatcmpl-8f14e45f-ceea-167f-a8d5-2f6d0c3b9a17",
        "",
    ],
)
def test_an_id_that_others_may_guess_is_shown_and_opens_nothing(chosen: str) -> None:
    ids = PublicIds()
    ids.publish("a" * 32, chosen)
    assert ids.end("a" * 32) == chosen
    assert ids.receipt_of(chosen) is None


def test_an_id_that_two_requests_had_opens_neither() -> None:
    ids = PublicIds()
    for receipt_id in ("a" * 32, "a" * 32, "b" * 32):
        ids.publish(receipt_id, CHAT)
    assert ids.end("a" * 32) == CHAT
    ids.publish("a" * 32, CHAT)
    assert ids.end("a" * 32) == CHAT, "of its other prompt"
    assert ids.receipt_of(CHAT) == "a" * 32
    assert ids.end("b" * 32) == CHAT
    assert ids.receipt_of(CHAT) is None
    ids.publish("a" * 32, CHAT)
    ids.end("a" * 32)
    assert ids.receipt_of(CHAT) is None, "for good"


def test_an_id_that_a_busy_server_tells_after_the_end_is_known_all_the_same() -> None:
    ids = PublicIds()
    assert ids.end("a" * 32) is None
    ids.publish("a" * 32, CHAT)
    assert ids.receipt_of(CHAT) == "a" * 32
    assert ids.end("a" * 32) == CHAT, "of its other prompt"
    for number in range(NAMELESS + 1):
        ids.end(f"{number:032x}")
    ids.publish(f"{0:032x}", "cmpl-fedcba9876543210")
    assert ids.receipt_of("cmpl-fedcba9876543210") is None, "that was too long ago"


def test_the_oldest_are_forgotten() -> None:
    ids = PublicIds()
    for number in range(REMEMBERED + 1):
        ids.publish(f"{number:032x}", f"chatcmpl-f{number:015x}")
    assert ids.end(f"{0:032x}") is None, "it was open for too long"
    for number in range(1, REMEMBERED + 1):
        ids.end(f"{number:032x}")
    ids.publish("f" * 32, CHAT)
    ids.end("f" * 32)
    assert ids.receipt_of(f"chatcmpl-f{1:015x}") is None
    assert ids.receipt_of(f"chatcmpl-f{2:015x}") == f"{2:032x}"


def test_the_meters_port_answers_for_the_id_of_an_exemplar(tmp_path: Path) -> None:
    with lit_board(tmp_path) as board, running(tmp_path, board.environment()) as meter, engine(tmp_path) as ring:
        until(lambda: json.loads(meter.get("/health")[1])["engine"])
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(str(tmp_path / "run" / "meter.sock"))
            serve_one(ring, steps=10)
            question = {"type": "ask", "receipt_id": RECEIPT, "public_id": CHAT}
            peer.sendall(json.dumps(question).encode() + b"\n")
            until(lambda: f'request_id="{CHAT}"' in meter.get("/metrics", "application/openmetrics-text")[1])
        status, said = meter.get(f"/energy/{CHAT}")
        assert (status, RECEIPT in said) == (200, False)
        by_receipt = meter.energy()
        assert by_receipt.pop("receipt_id") == RECEIPT
        assert json.loads(said)["energy"] == by_receipt
        assert meter.get("/energy/chatcmpl-fedcba9876543210")[0] == 404
