"""What the hook makes of vLLM's scheduler outputs, for the cases that no engine on CPU runs. Real engines: test_scheduler.py."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etameter.serving import scheduler
from etameter.serving.ring import Dispatch, Done, Finish, RingReader, RingWriter
from etameter.serving.scheduler import StepWriter

pytestmark = pytest.mark.unit

LORA, IMAGE_TOKENS = 7, 576


class Request:
    """What the hook reads of vLLM's."""

    def __init__(self, request_id: str, prompt_tokens: int, lora: int = 0) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = self.num_tokens = prompt_tokens
        self.num_computed_tokens = self.num_output_tokens = self.num_preemptions = 0
        self.lora_request = SimpleNamespace(lora_int_id=lora) if lora else None

    def get_num_encoder_embeds(self, _: int) -> int:
        return IMAGE_TOKENS

    def get_finished_reason(self) -> str:
        return "stop"


class Engine:
    """Plays a scheduler: `step` schedules so many tokens for each request."""

    def __init__(self, path: Path) -> None:
        self.writer = StepWriter(RingWriter(path, engine="e", model="m", dtype="bfloat16", capacity_bytes=1 << 18))
        self.reader = RingReader(path)
        self.requests: dict[str, Request] = {}

    def add(self, *arguments: Any) -> Request:
        request = Request(*arguments)
        self.requests[request.request_id] = request
        self.writer.arrived.append((request, 1))
        return request

    def step(
        self,
        tokens: dict[str, int],
        drafts: dict[str, int] | None = None,
        images: dict[str, int] | None = None,
        new: Any = (),
        resumed: Any = (),
    ) -> Any:
        for request_id, count in tokens.items():
            self.requests[request_id].num_computed_tokens += count
        output = SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=sum(tokens.values()),
            scheduled_new_reqs=[SimpleNamespace(req_id=request_id) for request_id in new],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(resumed)),
            scheduled_spec_decode_tokens={name: [-1] * count for name, count in (drafts or {}).items()},
            scheduled_encoder_inputs={name: list(range(count)) for name, count in (images or {}).items()},
        )
        self.writer.dispatched(output, self.requests, 2)
        return output

    def rows(self) -> list[tuple[int, ...]]:
        return [
            row
            for record in self.reader.poll()
            if isinstance(record, Dispatch)
            for row in map(tuple, record.rows.tolist())
        ]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    one = Engine(tmp_path / "ring")
    yield one
    one.reader.close()
    one.writer.ring.close()


#   number prefill decode cached again draft encoder context lora
def test_adapters_and_images(engine: Engine) -> None:
    engine.add("plain", 10)
    engine.add("adapted", 600, LORA)
    engine.step({"plain": 10, "adapted": 600}, images={"adapted": 1})
    engine.step({"plain": 1, "adapted": 1})
    assert engine.rows() == [
        (0, 10, 0, 0, 0, 0, 0, 0, 0),
        (1, 600, 0, 0, 0, 0, IMAGE_TOKENS, 0, LORA),
        (0, 0, 1, 0, 0, 0, 0, 10, 0),
        (1, 0, 1, 0, 0, 0, 0, 600, LORA),
    ]


def test_a_whole_prompt_but_its_last_token_from_the_cache_with_padded_drafts(engine: Engine) -> None:
    request = engine.add("a", 129)
    request.num_computed_tokens = 128
    engine.step({"a": 4}, drafts={"a": 3}, new=["a"])
    assert engine.rows() == [(0, 1, 0, 128, 0, 3, 0, 128, 0)]


def test_rejected_drafts_under_way_are_no_recomputation(engine: Engine) -> None:
    """Asynchronous: the next step is scheduled as if all drafts were accepted, and corrected when they are not."""
    request = engine.add("a", 10)
    engine.step({"a": 10})
    first = engine.step({"a": 4}, drafts={"a": 3})
    second = engine.step({"a": 4}, drafts={"a": 3})
    for output in (first, second):
        engine.writer.done(output, SimpleNamespace(sampled_token_ids=[[5]], req_id_to_index={"a": 0}), 3)
        request.num_computed_tokens -= 3
        request.num_tokens += 1
    engine.step({"a": 1})
    assert engine.rows() == [
        (0, 10, 0, 0, 0, 0, 0, 0, 0),
        (0, 0, 1, 0, 0, 3, 0, 10, 0),
        (0, 0, 1, 0, 0, 3, 0, 14, 0),  # where vLLM believes it to be
        (0, 0, 1, 0, 0, 0, 0, 12, 0),
    ]


def test_preempted_while_vllm_believed_in_drafts(engine: Engine) -> None:
    request = engine.add("a", 10)
    engine.step({"a": 10})
    output = engine.step({"a": 4}, drafts={"a": 3})
    engine.step({"a": 4}, drafts={"a": 3})
    engine.writer.done(output, SimpleNamespace(sampled_token_ids=[[5]], req_id_to_index={"a": 0}), 3)
    request.num_tokens = 12  # the second of its output tokens is not computed yet
    request.num_preemptions, request.num_computed_tokens = 1, 0
    engine.rows()
    engine.step({"a": 12})
    assert engine.rows() == [(0, 11, 1, 0, 11, 0, 0, 0, 0)]


def test_preempted_after_drafts_were_accepted(engine: Engine) -> None:
    request = engine.add("a", 10)
    engine.step({"a": 10})
    output = engine.step({"a": 4}, drafts={"a": 3})
    engine.writer.done(output, SimpleNamespace(sampled_token_ids=[[5, 6, 7]], req_id_to_index={"a": 0}), 3)
    request.num_tokens = 14
    request.num_preemptions, request.num_computed_tokens = 1, 0
    engine.rows()
    engine.step({"a": 14})
    assert engine.rows() == [(0, 13, 1, 0, 13, 0, 0, 0, 0)]


def test_preempted_in_the_middle_of_the_prompt_and_again(engine: Engine) -> None:
    request = engine.add("a", 100)
    engine.step({"a": 60})
    request.num_preemptions, request.num_computed_tokens = 1, 0
    engine.step({"a": 30})
    request.num_preemptions, request.num_computed_tokens = 2, 16  # these blocks were in the prefix cache still
    engine.step({"a": 84})
    assert engine.rows() == [
        (0, 60, 0, 0, 0, 0, 0, 0, 0),
        (0, 30, 0, 0, 30, 0, 0, 0, 0),
        (0, 84, 0, 0, 44, 0, 0, 16, 0),  # cached tokens are stated once, where the prompt first meets the cache
    ]


def test_a_session_whose_prompt_grows(engine: Engine) -> None:
    request = engine.add("a", 10)
    engine.step({"a": 10}, new=["a"])
    engine.step({"a": 1})
    engine.writer.arrived.append((request, 1))  # the next part of its input: the same request
    request.num_prompt_tokens = request.num_tokens = 31
    engine.step({"a": 20}, new=["a"])
    assert engine.rows() == [
        (0, 10, 0, 0, 0, 0, 0, 0, 0),
        (0, 0, 1, 0, 0, 0, 0, 10, 0),
        (0, 20, 0, 0, 0, 0, 0, 11, 0),
    ]


def test_aborted_while_its_step_is_on_the_gpu(engine: Engine) -> None:
    request = engine.add("a", 10)
    output = engine.step({"a": 12}, drafts={"a": 2})
    engine.writer.finished([request], 3)
    engine.writer.done(output, SimpleNamespace(sampled_token_ids=[[5, 6]], req_id_to_index={"a": 0}), 4)
    engine.writer.done(output, None, 5)  # what was never scheduled, or is done already, is no step
    assert engine.reader.poll()[1:] == [Finish(0, 3, 0, "stop"), Done(0, 4)]


def test_aborted_before_it_ran(engine: Engine) -> None:
    engine.writer.finished([engine.add("a", 10)], 3)
    assert engine.reader.poll() == []


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_steps_told_by_changes_say_what_they_would_say_whole(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Requests come, are prefilled in chunks, decode, sit steps out, are preempted, and end, in any order."""
    directory = tmp_path_factory.mktemp("rings")
    engines = [Engine(directory / name) for name in ("changes", "whole")]
    alive: dict[str, int] = {}
    waiting: set[str] = set()
    ended = 0
    for _ in range(data.draw(st.integers(1, 25), label="steps")):
        for _ in range(data.draw(st.integers(0, 2), label="new")):
            name = f"r{ended + len(alive)}"
            alive[name] = data.draw(st.integers(1, 9), label="prompt")
            waiting.add(name)
            for each in engines:
                each.add(name, alive[name])
        scheduled = data.draw(st.permutations(sorted(alive))) if data.draw(st.booleans()) else sorted(alive)
        some: bool = data.draw(st.booleans(), label="some sit it out")
        left_out = data.draw(st.sets(st.sampled_from(sorted(alive)))) if alive and some else set()
        tokens: dict[str, int] = {}
        for name in scheduled:
            request = engines[0].requests[name]
            left = max(request.num_tokens - request.num_computed_tokens, 1)
            if name not in left_out:
                tokens[name] = data.draw(st.integers(1, left), label="tokens")
        if not tokens:
            continue
        new = waiting & tokens.keys()
        waiting -= new
        engines[1].writer._unsure = True
        for each in engines:
            each.step(dict(tokens), new=[name for name in tokens if name in new])
            for name in tokens:
                request = each.requests[name]
                if request.num_computed_tokens >= request.num_tokens:
                    request.num_tokens = request.num_computed_tokens + 1
        for name in data.draw(st.sets(st.sampled_from(sorted(alive)), max_size=2), label="gone"):
            if data.draw(st.booleans(), label="preempted") and name not in waiting:
                waiting.add(name)
                for each in engines:
                    each.requests[name].num_preemptions += 1
                    each.requests[name].num_computed_tokens = 0
            else:
                ended += 1
                del alive[name]
                waiting.discard(name)
                for each in engines:
                    each.writer.finished([each.requests.pop(name)], 3)
    told, whole = ([r for r in each.reader.poll() if isinstance(r, Dispatch)] for each in engines)
    assert [sorted(map(tuple, r.rows.tolist())) for r in told] == [sorted(map(tuple, r.rows.tolist())) for r in whole]


def test_steady_decode_is_told_in_as_many_bytes_whatever_the_batch(engine: Engine) -> None:
    names = [f"r{i}" for i in range(300)]
    for name in names:
        engine.add(name, 5)
    engine.step(dict.fromkeys(names, 5), new=names)
    before = engine.writer.ring._committed
    for _ in range(10):
        engine.step(dict.fromkeys(names, 1))
    assert engine.writer.ring._committed - before == 10 * 48
    assert engine.rows()[-1] == (299, 0, 1, 0, 0, 0, 0, 14, 0)


class Base:
    """As much of vLLM's scheduler as the hook wraps: a request ends when its output comes, or by an abort."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.requests: dict[str, Request] = {}

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request

    def schedule(self) -> Any:
        for request in self.requests.values():
            request.num_computed_tokens += 10
        tokens = dict.fromkeys(self.requests, 10)
        return SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=sum(tokens.values()),
            scheduled_new_reqs=[SimpleNamespace(req_id=each) for each in tokens],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
        )

    def update_from_output(self, output: Any, fails: bool) -> None:
        for request_id in output.num_scheduled_tokens:
            self.requests[request_id].num_output_tokens += 1
            self._free_request(self.requests.pop(request_id), delay_free_blocks=False)
        if fails:
            raise RuntimeError("the engine fails")

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> None:
        assert not delay_free_blocks


@pytest.mark.parametrize("fails", [False, True])
def test_all_that_end_are_told_whether_they_stop_or_are_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    ring = RingWriter(tmp_path / "ring", engine="e", model="m", dtype="bfloat16")
    monkeypatch.setattr(scheduler, "open_ring", lambda _: ring)
    one = scheduler._metered(Base)(SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=False)))
    for name in ("a", "b"):
        one.add_request(Request(name, 10))
    output = one.schedule()
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        one.update_from_output(output, fails)
    aborted = Request("c", 10)
    one.add_request(aborted)
    one.schedule()
    one._free_request(aborted)
    ends = [each for each in RingReader(tmp_path / "ring").poll() if isinstance(each, Finish)]
    assert [(end.number, end.output_tokens) for end in ends] == [(0, 1), (1, 1), (2, 0)]
    assert ends[0].t_ns == ends[1].t_ns < ends[2].t_ns
