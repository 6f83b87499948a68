from typing import Any

import pytest

from etameter.serving.retries import REMEMBERED, WINDOW_S, Retries, client_of

pytestmark = pytest.mark.unit

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Zanzibar?"}]}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def scope(*headers: tuple[bytes, bytes], host: str = "10.0.0.1") -> dict[str, Any]:
    return {"headers": headers, "client": (host, 50_000)}


def question(retries: Retries, request: dict[str, Any], client: bytes = b"c") -> bytes:
    found = retries.hash_of(client, request)
    assert found is not None
    return found


def test_the_same_question_of_the_same_client_is_a_retry_once() -> None:
    retries = Retries(Clock())
    asked = question(retries, CHAT)
    assert retries.asked(asked) is None
    retries.answered(asked, "first")
    assert retries.asked(question(retries, {**CHAT, "temperature": 1.0, "stream": True})) == "first"
    assert retries.asked(asked) is None


@pytest.mark.parametrize(
    "more", [{"top_k": 5, "min_p": 0.1}, {"presence_penalty": 0.5, "repetition_penalty": 1.1}, {"request_id": "own-2"}]
)
def test_how_the_answer_is_sampled_and_what_the_request_is_called_are_no_part_of_the_question(
    more: dict[str, Any],
) -> None:
    retries = Retries(Clock())
    retries.answered(question(retries, CHAT), "first")
    assert retries.asked(question(retries, {**CHAT, **more})) == "first"


@pytest.mark.parametrize(
    "other", [{**CHAT, "model": "n"}, {**CHAT, "messages": CHAT["messages"] * 2}, {**CHAT, "user": "somebody"}]
)
def test_another_question_is_none(other: dict[str, Any]) -> None:
    retries = Retries(Clock())
    retries.answered(question(retries, CHAT), "first")
    assert retries.asked(question(retries, other)) is None
    assert retries.asked(question(retries, CHAT, b"d")) is None


def test_the_order_of_a_requests_fields_is_no_part_of_the_question() -> None:
    retries = Retries(Clock())
    assert question(retries, dict(reversed(CHAT.items()))) == question(retries, CHAT)


def test_what_is_nested_too_deeply_is_no_question() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert Retries(Clock()).hash_of(b"c", {**CHAT, "messages": deep}) is None


def test_who_asks_again_late_wants_to_know_anew_and_old_questions_are_forgotten() -> None:
    clock = Clock()
    retries = Retries(clock)
    retries.answered(question(retries, CHAT), "first")
    clock.now_s = WINDOW_S + 1
    assert retries.asked(question(retries, CHAT)) is None
    for number in range(REMEMBERED + 5):
        retries.answered(number.to_bytes(8, "big"), str(number))
    assert len(retries._answered) == REMEMBERED


def test_clients_are_told_apart_by_address_and_key_and_an_experiment_has_none() -> None:
    plain = client_of(scope())
    assert plain == client_of({**scope(), "client": ("10.0.0.1", 50_001)}), "each connection has its own port"
    others = [scope(host="10.0.0.2"), scope((b"authorization", b"Bearer a")), scope((b"x-forwarded-for", b"1.2.3.4"))]
    assert len({plain, *map(client_of, others)}) == 4
    assert client_of(scope((b"x-etameter-run", b"r1"))) is None
    assert client_of({"headers": []}) == b""


def test_hashes_are_keyed_and_nothing_of_a_question_is_kept() -> None:
    one, other = Retries(Clock()), Retries(Clock())
    assert one.hash_of(b"c", CHAT) != other.hash_of(b"c", CHAT)
    one.answered(question(one, CHAT), "first")
    assert "Zanzibar" not in repr(vars(one))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert one.hash_of(b"c", {"messages": deep}) is None
