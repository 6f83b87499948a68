"""Tokens, prompts and ends of requests fall into the window of their instant, and into no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.prompts.nightly.windows import Reply, cut

pytestmark = pytest.mark.unit

#        0    10        20        30   40
#  spans      |---------|         |----|
#  tokens   5   12   20 |  25       31      45
SPANS = [(10, 20), (30, 40)]


def test_each_token_is_in_the_window_in_which_it_came() -> None:
    reply = Reply(5, 45, (5, 12, 20, 25, 31, 45), prompt_tokens=7)
    first, second = cut([reply], SPANS)
    assert (first.output_tokens, second.output_tokens) == (2, 1)
    assert (first.prompt_tokens, second.prompt_tokens) == (0, 0)
    assert first.ended == second.ended == []


def test_a_prompt_is_where_its_first_token_is_and_a_request_where_it_ended() -> None:
    reply = Reply(5, 33, (12, 31), prompt_tokens=7)
    first, second = cut([reply], SPANS)
    assert (first.prompt_tokens, second.prompt_tokens) == (7, 0)
    assert (first.ended, second.ended) == ([], [reply])


def test_an_instant_between_two_windows_is_of_the_earlier_one() -> None:
    first, second = cut([Reply(0, 30, (30,))], [(0, 30), (30, 60)])
    assert (first.output_tokens, second.output_tokens, len(first.ended), len(second.ended)) == (1, 0, 1, 0)


def test_what_failed_and_what_is_right_is_counted() -> None:
    replies = [
        Reply(0, 12, failure="timeout", task="a"),
        Reply(0, 13, (12,), task="a", correct=True),
        Reply(0, 14, (12,), task="b", correct=False),
        Reply(0, 15, (12,), task="c"),
    ]
    (window, other) = cut(replies, SPANS)
    assert (len(window.ended), window.failures, window.correct, len(window.answered)) == (4, 1, 1, 3)
    assert other.correct is None


def test_times_to_tokens() -> None:
    reply = Reply(1_000_000_000, 9, (1_500_000_000, 1_600_000_000, 1_800_000_000))
    assert reply.ttft_s == pytest.approx(0.5)
    assert reply.itl_s == pytest.approx(0.15)
    assert Reply(0, 1).ttft_s is None
    assert Reply(0, 1, (1,)).itl_s is None


@given(st.lists(st.integers(1, 99), max_size=40))
def test_windows_that_leave_no_gap_lose_nothing(instants: list[int]) -> None:
    replies = [Reply(0, t_ns, (t_ns,), prompt_tokens=2) for t_ns in instants]
    windows = cut(replies, [(0, 30), (30, 60), (60, 100)])
    assert sum(window.output_tokens for window in windows) == len(instants)
    assert sum(window.prompt_tokens for window in windows) == 2 * len(instants)
    assert sum(len(window.ended) for window in windows) == len(instants)
