"""Real engines in this process, one for each way of scheduling: what the ring says against what the engine returns and counts."""

import contextlib
import gc
import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import etameter
from etameter.serving.ring import Dispatch, Done, RingReader
from tests.serving.real_server import ENVIRONMENT
from tests.serving.ring_log import Account, RingLog
from tests.simnvml.board import Board, Sensor

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]  # vLLM's and torch's warnings are theirs

STORY = "Once upon a time there was a little engine that could. "


class Engine:
    """vLLM, its metered scheduler and the ring."""

    def __init__(self, llm: Any, ring_path: Path) -> None:
        self.llm = llm
        self.ring_path = ring_path
        self.log = RingLog(ring_path)
        self._seen = 0

    @property
    def scheduler(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    def generate(self, prompts: list[str], **sampling: Any) -> list[tuple[Any, Account]]:
        """What each prompt gave, with what the ring says of it."""
        from vllm import SamplingParams

        outputs = self.llm.generate(prompts, SamplingParams(temperature=0, **sampling), use_tqdm=False)
        return list(zip(outputs, self.taken(), strict=True))

    def taken(self) -> list[Account]:
        """What the ring says of requests that came since this was last asked."""
        self.drain()
        accounts = self.log.accounts()[self._seen :]
        self._seen += len(accounts)
        return accounts

    def drain(self) -> None:
        """Let the engine process what is still in flight when its last request has ended."""
        core = self.llm.llm_engine.engine_core.engine_core
        while core.batch_queue:
            core.step_with_batch_queue()

    def counted(self, name: str) -> int:
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == f"vllm:{name}")


@contextlib.contextmanager
def engine(model: Path, directory: Path, **options: Any) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            patch.setenv(name, value)
        patch.setenv("ETAMETER_RING_DIR", str(directory))
        patch.setenv("ETAMETER_ENGINE", "test")
        from vllm import LLM
        from vllm.platforms import current_platform

        if options.get("async_scheduling"):  # off on CPU: forced here, to run what GPUs run
            check = type(current_platform).check_and_update_config

            def check_and_stay_asynchronous(vllm_config: Any) -> None:
                check(vllm_config)
                vllm_config.scheduler_config.async_scheduling = True

            patch.setattr(type(current_platform), "check_and_update_config", staticmethod(check_and_stay_asynchronous))
        llm = LLM(
            str(model),
            dtype="bfloat16",
            max_model_len=512,
            enforce_eager=True,
            disable_log_stats=False,
            scheduler_cls="etameter.serving.scheduler.metered_scheduler",
            **options,
        )
        try:
            yield Engine(llm, directory / "etameter-test.ring")
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The hook's warnings. (vLLM's loggers propagate or not, as its logging is configured.)"""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm.etameter").addHandler(handler)
    yield messages
    logging.getLogger("vllm.etameter").removeHandler(handler)


def check(output: Any, account: Account, *, wasted: int = 0) -> None:
    """Every position is computed once, but for those a preemption threw away; `wasted` steps run beyond the end."""
    prompt_tokens, completion_tokens = len(output.prompt_token_ids), len(output.outputs[0].token_ids)
    assert account.prompt_tokens == prompt_tokens
    assert sum(account.cached) == account.cached[0] == output.num_cached_tokens
    assert account.new_prefill == prompt_tokens - output.num_cached_tokens
    assert sum(account.decode) == completion_tokens - 1 + wasted
    assert account.output_tokens == completion_tokens


@pytest.fixture(scope="module")
def small_cache(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Room for 768 tokens: requests that grow together push each other out, the least important first."""
    directory = tmp_path_factory.mktemp("small_cache")
    options = {"num_gpu_blocks_override": 7, "max_num_batched_tokens": 128, "scheduling_policy": "priority"}
    with engine(model_dir, directory, **options) as one:
        yield one


def test_the_ring_describes_the_engine(small_cache: Engine) -> None:
    header = small_cache.log.reader.header
    assert (header.engine, header.dtype, header.gpu_uuids) == ("test", "bfloat16", ())
    expected = {"num_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_kv_heads": 3, "head_dim": 64}
    expected |= {"intermediate_size": 1536, "vocab_size": 49152, "tensor_parallel_size": 1, "async_scheduling": 0}
    assert expected.items() <= header.details.items()
    assert 2 * 134e6 < int(header.details["weights_bytes"]) < 2 * 136e6
    assert "num_experts" not in header.details


def test_a_window_around_an_offline_engine_says_what_each_request_cost(
    small_cache: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETAMETER_RING_DIR", str(small_cache.ring_path.parent))
    board = Board(tmp_path / "board", energy=Sensor(period_ns=20_000_000))
    board.set_power_w(0, [(0, 300.0)])
    with board, etameter.window(engine="test") as w:
        results = small_cache.generate(["one", f"two {STORY}", "three"], max_tokens=8, ignore_eos=True)
    assert w.energy_j == pytest.approx(300.0 * w.seconds, abs=w.bound_j + 0.002)
    assert {row.record.request_id.partition("-")[0] for row in w.requests} == {
        output.request_id.partition("-")[0] for output, _ in results
    }
    assert all(row.energy.settled and row.record.output_tokens == 8 for row in w.requests)
    paid_j = sum(row.energy.energy_j for row in w.requests)
    assert paid_j == pytest.approx(sum(balance.attributed_j for balance in w.balances), rel=1e-9)
    assert paid_j > 0


def test_preempted_requests_pay_for_their_recomputation(small_cache: Engine) -> None:
    prompts = [f"{i} {STORY * 13}" for i in range(3)]
    results = small_cache.generate(prompts, max_tokens=150, ignore_eos=True)
    assert small_cache.counted("num_preemptions") > 0
    for output, account in results:
        check(output, account)
        ends = [sum(step) for step in zip(account.context, account.prefill, account.decode, strict=True)]
        for i in range(1, len(ends)):  # what lies below the furthest end so far is there for the second time
            again = max(0, min(max(ends[:i]), ends[i]) - account.context[i])
            assert account.recomputed[i] == again, (i, account)
    assert sum(sum(account.recomputed) for _, account in results) > 100


def test_it_is_the_least_important_request_that_is_pushed_out_and_pays_for_it(small_cache: Engine) -> None:
    from vllm import SamplingParams

    prompts = [f"{i}! {STORY * 20}" for i in range(3)]
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    outputs = small_cache.llm.generate(prompts, sampling, use_tqdm=False, priority=[2, 0, 1])
    of = {account.request_id.partition("-")[0]: account for account in small_cache.taken()}
    results = [(output, of[output.request_id.partition("-")[0]]) for output in outputs]
    for output, account in results:
        check(output, account)
    recomputed = [sum(account.recomputed) for _, account in results]
    assert recomputed[0] > 100
    assert recomputed[1] == 0


def test_a_prompt_of_several_chunks_and_its_siblings(small_cache: Engine) -> None:
    [(output, account)] = small_cache.generate([f"Chunks. {STORY * 20}"], max_tokens=3, ignore_eos=True)
    check(output, account)
    assert [tokens for tokens in account.prefill if tokens] == [128, account.prompt_tokens - 128]


def test_a_prefix_that_is_cached(small_cache: Engine) -> None:
    prompt = f"Cached. {STORY * 12}"
    small_cache.generate([prompt], max_tokens=1)
    [(output, account)] = small_cache.generate([prompt], max_tokens=2, ignore_eos=True)
    assert output.num_cached_tokens == 128
    check(output, account)


def test_a_ring_that_fails_ends_the_metering_and_not_the_engine(small_cache: Engine, warned: list[str]) -> None:
    small_cache.scheduler._steps.ring.close()
    output = small_cache.llm.generate(["The sky is"], use_tqdm=False)[0]
    assert output.outputs[0].token_ids
    assert len(warned) == 1
    assert "serving goes on" in warned[0]
    assert small_cache.scheduler._steps is None


def test_asynchronous_scheduling_and_the_steps_it_wastes(model_dir: Path, tmp_path: Path) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    with engine(model_dir, tmp_path, async_scheduling=True) as one:
        assert isinstance(one.scheduler, AsyncScheduler)
        assert one.log.reader.header.details["async_scheduling"] == 1
        prompts = [f"{i} {STORY}" for i in range(4)]
        by_length = one.generate(prompts, max_tokens=20, ignore_eos=True)
        for output, account in by_length:
            check(output, account)  # its last step is known beforehand: nothing is wasted
        tokens = by_length[0][0].outputs[0].token_ids
        stop = next(token for i, token in enumerate(tokens) if i > 4 and token not in tokens[:i])
        [(output, account)] = one.generate(prompts[:1], max_tokens=20, stop_token_ids=[stop], ignore_eos=True)
        assert len(output.outputs[0].token_ids) == tokens.index(stop) + 1
        check(output, account, wasted=1)
        assert account.reason == "stop"
        records = RingReader(one.ring_path).poll()
        in_flight = list(itertools.accumulate({Dispatch: 1, Done: -1}.get(type(record), 0) for record in records))
        assert in_flight.count(2) > 20, "steps are dispatched before the results of the last one come"
        assert in_flight[-1] == 0


def test_drafts_and_what_becomes_of_them(model_dir: Path, tmp_path: Path) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 2}
    with engine(model_dir, tmp_path, speculative_config=ngram) as one:
        results = one.generate(["a b c d e f g " * 12, STORY * 8], max_tokens=40, ignore_eos=True)
        for output, account in results:
            completion_tokens = len(output.outputs[0].token_ids)
            assert account.new_prefill == len(output.prompt_token_ids)
            assert set(account.decode) <= {0, 1}
            # The last step may accept more than there is room for.
            assert completion_tokens <= 1 + sum(account.decode) + account.accepted <= completion_tokens + 3
        drafted, accepted = one.counted("spec_decode_num_draft_tokens"), one.counted("spec_decode_num_accepted_tokens")
        assert sum(sum(account.draft) for _, account in results) == drafted > 10
        assert sum(account.accepted for _, account in results) == accepted > 0


@pytest.mark.parametrize(
    ("diffuses", "asynchronous", "name"),
    [
        (False, False, "Scheduler"),
        (False, True, "AsyncScheduler"),
        (True, False, "DiffusionScheduler"),
        (True, True, "DiffusionAsyncScheduler"),
    ],
)
def test_each_model_keeps_the_scheduler_that_vllm_would_give_it(diffuses: bool, asynchronous: bool, name: str) -> None:
    from etameter.serving import scheduler

    configured = SimpleNamespace(async_scheduling=asynchronous)
    vllm_config = SimpleNamespace(diffusion_config=object() if diffuses else None, scheduler_config=configured)
    base = scheduler._scheduler_class(vllm_config)
    assert base.__name__ == name
    assert issubclass(scheduler._metered(base), base)


def test_an_engine_whose_ring_can_not_be_created_serves_unmetered(
    monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    from etameter.serving import scheduler

    class Scheduler:
        """As much of vLLM's as the hook calls."""

        def __init__(self, vllm_config: Any) -> None:
            self.vllm_config = vllm_config
            self.requests: dict[str, Any] = {}

        def add_request(self, request: Any) -> None:
            self.requests[request.request_id] = request

        def schedule(self) -> Any:
            return SimpleNamespace(total_num_scheduled_tokens=1)

    monkeypatch.setenv("ETAMETER_ENGINE", "../../etc/passwd")
    parallel = SimpleNamespace(data_parallel_rank=0)
    one = scheduler._metered(Scheduler)(SimpleNamespace(parallel_config=parallel))
    one.add_request(SimpleNamespace(request_id="a"))
    assert one.schedule().total_num_scheduled_tokens == 1
    assert "is no name" in warned[0]
    monkeypatch.delenv("ETAMETER_ENGINE")
    scheduler._metered(Scheduler)(SimpleNamespace(parallel_config=parallel))  # a vLLM whose configuration has moved
    assert "AttributeError" in warned[1]
    assert len(warned) == 2


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, ImportError, ZeroDivisionError])
def test_whatever_fails_in_the_meter_stays_there(
    monkeypatch: pytest.MonkeyPatch, warned: list[str], kind: type[Exception]
) -> None:
    from etameter.serving import scheduler

    class Scheduler:
        def __init__(self, vllm_config: Any) -> None:
            self.vllm_config = vllm_config

    def fail(_: Any) -> None:
        raise kind("Invalid device id")

    monkeypatch.setattr(scheduler, "open_ring", fail)
    scheduler._metered(Scheduler)(SimpleNamespace())
    assert warned == [f"etameter: serving goes on unmetered: {kind.__name__}: Invalid device id"]


@pytest.mark.parametrize(
    ("world_size", "rank", "assigned", "shown", "uuids"),
    [
        (2, 0, None, "", ["GPU-0", "GPU-1"]),
        (2, 1, None, "", ["GPU-2", "GPU-3"]),
        (4, 1, None, "", ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        (16, 0, None, "", ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        (1, None, None, "", ["GPU-0"]),
        (2, None, [3, 1], "", ["GPU-3", "GPU-1"]),
        (1, 1, [3, 1], "", ["GPU-1"]),
        (2, 1, [3, 1], "", ["GPU-3", "GPU-1"]),
        (2, None, [7, 5], "4,5,6,7", ["GPU-3", "GPU-1"]),
    ],
)
def test_an_engine_names_those_of_its_devices_that_are_here(
    monkeypatch: pytest.MonkeyPatch,
    world_size: int,
    rank: int | None,
    assigned: list[int] | None,
    shown: str,
    uuids: list[str],
) -> None:
    import torch

    from etameter.serving import scheduler

    def properties(index: int) -> Any:
        assert index < 4, "Invalid device id"
        return SimpleNamespace(uuid=index)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    parallel = SimpleNamespace(world_size=world_size, data_parallel_rank_local=rank, assigned_physical_gpu_ids=assigned)
    assert scheduler._own_gpu_uuids(parallel) == uuids


def test_the_receipt_goes_into_the_ids_of_this_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    from etameter.records import receipt_id_of
    from etameter.serving import in_band

    monkeypatch.setattr(InputProcessor, "assign_request_id", InputProcessor.__dict__["assign_request_id"])
    assert in_band.put_receipts_in_band()
    request = SimpleNamespace(request_id="chatcmpl-1", external_req_id=None)
    token = in_band.receipt_id.set("0123456789abcdef" * 2)
    InputProcessor.assign_request_id(request)
    in_band.receipt_id.reset(token)
    assert receipt_id_of(request.request_id) == "0123456789abcdef" * 2
    assert request.external_req_id == "chatcmpl-1"
    monkeypatch.undo()
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    assert not in_band.put_receipts_in_band()


@pytest.mark.parametrize(
    ("transfer", "prefilled"),
    [
        ({"do_remote_prefill": True, "remote_request_id": f"cmpl-2-{'e' * 32}00000000"}, "e" * 32),
        ({"do_remote_prefill": True, "remote_request_id": f"cmpl-2-{'e' * 32}{'d' * 32}00000000"}, "e" * 32),
        ({"do_remote_prefill": True, "remote_request_id": f"cmpl-2-{'e' * 32}00000000", "transfer_id": "x"}, "e" * 32),
        ({"do_remote_prefill": True, "remote_request_id": "cmpl-2-00000000"}, None),
        ({"do_remote_decode": True, "remote_request_id": f"cmpl-2-{'e' * 32}00000000"}, None),
        ({"do_remote_prefill": True}, None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_who_has_prefilled_a_prompt_goes_into_the_id_too(
    monkeypatch: pytest.MonkeyPatch, transfer: object, prefilled: str | None
) -> None:
    from vllm import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from etameter.records import prefill_receipt_id_of, receipt_id_of
    from etameter.serving import in_band

    monkeypatch.setattr(InputProcessor, "assign_request_id", InputProcessor.__dict__["assign_request_id"])
    assert in_band.put_receipts_in_band()
    params = SamplingParams(extra_args=None if transfer is None else {"kv_transfer_params": transfer})
    request = SimpleNamespace(request_id=f"chatcmpl-{'a' * 32}", external_req_id=None, sampling_params=params)
    token = in_band.receipt_id.set("0123456789abcdef" * 2)
    InputProcessor.assign_request_id(request)
    in_band.receipt_id.reset(token)
    assert receipt_id_of(request.request_id) == "0123456789abcdef" * 2
    assert prefill_receipt_id_of(request.request_id) == prefilled, "whatever the client's own id looks like"


@pytest.mark.parametrize(
    ("transfer", "part"),
    [
        ({"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": "xfer-7"}, "p"),
        ({"do_remote_decode": False, "do_remote_prefill": True, "transfer_id": "xfer-7"}, "d"),
        ({"do_remote_prefill": True, "remote_request_id": "cmpl-2-00000000", "transfer_id": "xfer-7"}, "d"),
        ({"transfer_id": "xfer-7"}, None),
        ({"do_remote_decode": True, "transfer_id": ""}, None),
        ({"do_remote_decode": True, "transfer_id": 7}, None),
    ],
)
def test_a_transfer_that_both_engines_name_goes_into_both_ids(
    monkeypatch: pytest.MonkeyPatch, transfer: dict[str, object], part: str | None
) -> None:
    from vllm import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from etameter.records import prefill_receipt_id_of, receipt_id_of, transfer_of
    from etameter.serving import in_band

    monkeypatch.setattr(InputProcessor, "assign_request_id", InputProcessor.__dict__["assign_request_id"])
    assert in_band.put_receipts_in_band()
    params = SamplingParams(extra_args={"kv_transfer_params": transfer})
    request = SimpleNamespace(request_id=f"cmpl-p{'a' * 32}", external_req_id=None, sampling_params=params)
    token = in_band.receipt_id.set("0123456789abcdef" * 2)
    InputProcessor.assign_request_id(request)
    in_band.receipt_id.reset(token)
    assert receipt_id_of(request.request_id) == "0123456789abcdef" * 2
    assert prefill_receipt_id_of(request.request_id) is None
    key = hashlib.sha256(b"xfer-7").hexdigest()[:32]
    assert transfer_of(request.request_id) == (None if part is None else (part, key)), "the same on both sides"
