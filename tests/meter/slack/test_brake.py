"""When an answer may end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.slack.brake import CIRCLE_WORDS, Brake, Cause, identity
from etameter.slack.fast import look
from etameter.slack.features import Seen

pytestmark = pytest.mark.unit

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris. It lies on the Seine.\n\n"
ROUND = "So the answer is Paris because the capital of France is Paris. "


def ended(text: str, prompt: str = QUESTION, size: int = 3) -> tuple[Cause | None, str]:
    """Why and after what the brake ends a text that comes in pieces of so many characters."""
    brake = Brake(prompt)
    for at in range(0, len(text), size):
        if (cause := brake.feed(text[at : at + size])) is not None:
            return cause, text[: at + size]
    return None, text


@pytest.mark.parametrize(
    ("closing", "begun"),
    [
        ("Let me know if you have any other questions about Paris or France.", 4),
        ("I hope this helps! Let me know if you want to know more.", 3),
        ("Feel free to ask if you have any further questions about it, I am here to help.", 4),
    ],
)
def test_a_closing_ends_with_its_first_words(closing: str, begun: int) -> None:
    cause, said = ended(ANSWER + closing)
    assert cause == "closing"
    assert begun <= len(said.removeprefix(ANSWER).split()) <= 9


def test_so_does_a_circle_after_three_rounds() -> None:
    cause, said = ended(ANSWER + ROUND * 9)
    assert cause == "repetition"
    assert 3 <= said.count("So the answer") <= 4
    assert ended("the " * CIRCLE_WORDS * 2)[0] == "repetition"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (QUESTION, ANSWER * 2),
        (QUESTION, ANSWER + "\n\n".join(f"{n}. {ROUND}" for n in range(9))),
        (QUESTION, f"```\n{ROUND * 9}\nLet me know if you have any other questions.\n```\n"),
        (QUESTION, "{\n" + '"a b c d e f g h": 1,\n' * 9 + "}\n"),
        (QUESTION, "In conclusion, the capital of France is Paris, as was said. It lies on the Seine."),
        ("Write a letter to a customer.", ANSWER + "Let me know if you have any other questions about Paris."),
        ("Write that you are sorry ten times.", ROUND * 9),
        (QUESTION, "Lass mich wissen, ob du noch weitere Fragen zu Paris oder zu Frankreich hast."),
    ],
)
def test_nothing_else_does(prompt: str, text: str) -> None:
    assert ended(text, prompt)[0] is None


@given(st.integers(1, 60))
def test_it_says_so_wherever_the_pieces_are_cut(size: int) -> None:
    text = ANSWER + "Let me know if you have any other questions about Paris or France, and thank you."
    cause, said = ended(text, size=size)
    assert cause == "closing"
    assert len(said) <= len(ANSWER) + len("Let me know if you ") + size


@given(st.lists(st.text(max_size=30), max_size=40))
def test_any_text_is_read(pieces: list[str]) -> None:
    brake = Brake(QUESTION)
    causes = [brake.feed(piece) for piece in pieces]
    assert len([cause for cause in causes if cause is not None]) <= 1


def test_beginnings_of_closings_without_end_keep_nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []

    def counted(prompt: str, text: str) -> list[Seen]:
        shown.append(len(text))
        return look(prompt, text)

    monkeypatch.setattr("etameter.slack.brake.look", counted)
    brake = Brake(QUESTION)
    assert [cause for n in range(2000) if (cause := brake.feed(f"I hope. Number {n} is {n % 7}. "))] == []
    assert len(shown) > 20
    assert sum(shown) <= 40_000


def test_the_detectors_have_a_name_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = identity()
    monkeypatch.setattr("etameter.slack.brake.SURE", 0.5)
    assert identity() != now
