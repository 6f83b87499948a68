"""vLLM's scheduler with a pen: each iteration, and what it computes for whom, is written to the ring.

    vllm serve MODEL --scheduler-cls etameter.serving.scheduler.metered_scheduler

`metered_scheduler` subclasses the scheduler that vLLM would have chosen, so that asynchronous scheduling stays on. It only writes
and never waits. What goes wrong in the meter ends the metering, with one warning, and never reaches the engine.

Of the tokens that a step computes for a request, `prefill + decode + draft` is the number that vLLM scheduled: prefill are those at
positions of the prompt or computed once before (a preemption threw them away: `recomputed`), draft are speculated ones, decode are
the rest, one a step. `cached` is stated in the request's first step only.
"""

import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etameter.serving import workers
from etameter.serving.ring import RingWriter, Row

# A child of vLLM's logger, which has the handlers of this process.
logger = logging.getLogger("vllm.etameter")

METERING_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, struct.error),
)
"""What the hook may meet: a ring that can't be created or written, a device that torch can't describe, or a vLLM whose internals have moved."""

RING_DIRECTORY = "/dev/shm"  # noqa: S108  # shared memory is where the meter looks for rings

_ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def metered_scheduler(vllm_config: Any, **arguments: Any) -> Any:
    """What vLLM calls in place of its scheduler class, with the same arguments."""
    return _metered(_scheduler_class(vllm_config))(vllm_config=vllm_config, **arguments)


def _scheduler_class(vllm_config: Any) -> Any:
    """The class that vLLM takes when no other is named."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    if getattr(vllm_config, "diffusion_config", None) is not None:
        from vllm.v1.core.sched import diffusion_scheduler  # absent from older versions, as are its models

        return diffusion_scheduler.DiffusionAsyncScheduler if asynchronous else diffusion_scheduler.DiffusionScheduler
    if asynchronous:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def _metered(base: Any) -> Any:
    class MeteredScheduler(base):  # type: ignore[misc]  # the base is known at run time only
        """Tells a `StepWriter` of what the scheduler decides."""

        def __init__(self, *args: Any, **arguments: Any) -> None:
            super().__init__(*args, **arguments)
            self._steps: StepWriter | None = None
            self._leaving: list[Any] | None = None
            """Requests that finish while outputs are looked through; None at other times."""
            self._note(self._begin)

        def _begin(self) -> None:
            ring = open_ring(self.vllm_config)
            logger.info(
                "etameter: metering %s into %s. vLLM's warning about a custom scheduler class does not concern it: "
                "asynchronous scheduling stays as configured (%s).",
                base.__name__,
                ring.path,
                "on" if self.vllm_config.scheduler_config.async_scheduling else "off",
            )
            self._steps = StepWriter(ring)

        def add_request(self, request: Any) -> None:
            super().add_request(request)
            if self._steps is not None:
                self._steps.arrived.append((request, time.monotonic_ns()))

        def schedule(self, *args: Any, **arguments: Any) -> Any:
            output = super().schedule(*args, **arguments)
            t_ns = time.monotonic_ns()
            if self._steps is not None and output.total_num_scheduled_tokens:
                self._note(self._steps.dispatched, output, self.requests, t_ns)
            return output

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            t_ns = time.monotonic_ns()
            if self._steps is not None:  # before vLLM trims what was sampled
                self._note(self._steps.done, scheduler_output, model_runner_output, t_ns)
            leaving: list[Any] = []
            self._leaving = leaving
            try:
                return super().update_from_output(scheduler_output, model_runner_output)
            finally:
                self._leaving = None
                if leaving and self._steps is not None:
                    self._note(self._steps.finished, leaving, time.monotonic_ns())

        def _free_request(self, request: Any, *args: Any, **arguments: Any) -> Any:
            # The one place that every finished request passes, whether it stopped by itself or was aborted.
            if self._leaving is not None:
                self._leaving.append(request)
            elif self._steps is not None:
                self._note(self._steps.finished, (request,), time.monotonic_ns())
            return super()._free_request(request, *args, **arguments)

        def shutdown(self) -> None:
            super().shutdown()
            if self._steps is not None:
                self._steps.ring.close()
                self._steps = None

        def _note(self, write: Callable[..., None], *what: Any) -> None:
            try:
                write(*what)
            except METERING_FAILURES as failure:
                self._steps = None
                logger.warning("etameter: serving goes on unmetered: %s: %s", type(failure).__name__, failure)

    return MeteredScheduler


class _Tracked:
    """What the rows of one request need from step to step."""

    __slots__ = ("furthest", "lora_id", "number", "preemptions", "prefill_end", "recompute_end", "told")

    def __init__(self, number: int, lora_id: int, prompt_tokens: int) -> None:
        self.number = number
        self.lora_id = lora_id
        self.prefill_end = prompt_tokens
        """Positions below it are prefill, those from it on are decode."""
        self.recompute_end = 0
        """Positions below it had been computed before the last preemption."""
        self.furthest = -1
        """End of the positions computed up to the step `told`; -1 before the first. Each step since then added one."""
        self.told: int | None = None
        """The last step that it has a row of its own in; None where it had no part in the last step."""
        self.preemptions = 0


class StepWriter:
    """Translates vLLM's scheduler outputs to the ring's records: of a step what it does not share with the one before it.

    A step shares with it the requests of both that go on decoding, one token each. So long as nothing else happens, what a step costs here is a
    comparison of two lists of ids.
    """

    def __init__(self, ring: RingWriter) -> None:
        self.ring = ring
        self._tracked: dict[str, _Tracked] = {}
        self.arrived: list[tuple[Any, int]] = []
        """Requests that have come to the scheduler since the last step, and when. A session that streams its input comes once for each part."""
        self._in_flight: dict[int, int] = {}  # id() of a scheduler output that waits for its results → step id
        self._next_step = 0
        self._ids: list[str] = []
        """The requests of the last step, in vLLM's order, which is kept in `_running` too."""
        self._running: dict[str, _Tracked] = {}
        self._ended: list[str] = []
        """Requests that have finished since the last step."""
        self._partial: set[str] = set()
        """Requests of the last step whose prefill goes on."""
        self._unsure = False
        """Drafts were verified, or rejected: where requests stand has to be told of all of them."""

    def dispatched(self, output: Any, requests: Mapping[str, Any], t_ns: int) -> None:
        """The step of `output` begins. `requests` have been advanced by it, as `schedule()` leaves them."""
        step_id = self._next_step
        self._next_step = step_id + 1
        self._in_flight[id(output)] = step_id
        self._take_in()
        ids = list(output.num_scheduled_tokens)
        # Preempted ones are new again, or resumed; a session whose prompt has grown is new again, too.
        begun = [new.req_id for new in output.scheduled_new_reqs]
        begun += output.scheduled_cached_reqs.resumed_req_ids
        drafted = output.scheduled_spec_decode_tokens
        is_sure = not (self._unsure or drafted or self.ring.keyframe_due)
        if (
            is_sure
            and not (begun or self._partial or output.scheduled_encoder_inputs)
            and output.total_num_scheduled_tokens == len(ids)
            and ids == self._ids
        ):
            self.ring.advance(step_id, t_ns)
            return
        gone, new = self._change(begun, ids, step_id - 1)
        told = self._unlike(output, new) if is_sure else ids
        rows = self._rows(output, requests, told, step_id)
        if is_sure:
            self.ring.advance(step_id, t_ns, rows, gone)
        else:
            self.ring.dispatch(step_id, t_ns, rows)
        self._unsure = bool(drafted)

    def _take_in(self) -> None:
        """Give numbers to the requests that have come."""
        for request, arrived_ns in self.arrived:
            request_id, prompt_tokens, lora = request.request_id, request.num_prompt_tokens, request.lora_request
            if request_id not in self._tracked:
                number = self.ring.open_request(request_id, prompt_tokens, arrived_ns)
                self._tracked[request_id] = _Tracked(number, lora.lora_int_id if lora else 0, prompt_tokens)
        self.arrived.clear()

    def _change(self, begun: Sequence[str], ids: list[str], last_step: int) -> tuple[list[int], Sequence[str]]:
        """Part with requests of the last step, and take in those that begin. Numbers of the former, ids of the latter."""
        running, tracked = self._running, self._tracked
        gone = []
        for request_id in (*self._ended, *begun):
            state = running.pop(request_id, None)
            if state is not None:
                gone.append(_left(state, last_step))
        self._ended = []
        self._ids = ids
        if ids == [*running, *begun]:
            for request_id in begun:
                running[request_id] = tracked[request_id]
            return gone, begun
        # Some were preempted, or it is not their turn.
        gone += [_left(running[request_id], last_step) for request_id in running.keys() - set(ids)]
        self._running = {request_id: tracked[request_id] for request_id in ids}
        return gone, [request_id for request_id in ids if request_id not in running]

    def _unlike(self, output: Any, new: Sequence[str]) -> Sequence[str]:
        """The requests of the step that do something else than go on decoding."""
        scheduled = output.num_scheduled_tokens
        told = new
        if self._partial or output.scheduled_encoder_inputs:
            more = (each for each in (*self._partial, *output.scheduled_encoder_inputs) if each in scheduled)
            told = list(dict.fromkeys((*new, *more)))
        if output.total_num_scheduled_tokens - len(scheduled) != sum([scheduled[each] - 1 for each in told]):
            several = (each for each, tokens in scheduled.items() if tokens != 1)
            told = list(dict.fromkeys((*told, *several)))
        return told

    def _rows(self, output: Any, requests: Mapping[str, Any], told: Sequence[str], step_id: int) -> list[Row]:
        """A row for each of `told`, which have part in the step."""
        running, scheduled = self._running, output.num_scheduled_tokens
        drafted, encoded = output.scheduled_spec_decode_tokens, output.scheduled_encoder_inputs
        rows: list[Row] = []
        partial = set()
        for request_id in told:
            request, state, tokens = requests[request_id], running[request_id], scheduled[request_id]
            end = request.num_computed_tokens
            start = end - tokens
            state.told = step_id
            state.prefill_end = max(state.prefill_end, request.num_prompt_tokens)  # a session's prompt grows
            if drafted or request.num_preemptions != state.preemptions:
                rows.append(_row(state, request, start, tokens, output))
            elif start >= state.prefill_end:
                rows.append((state.number, 0, tokens, 0, 0, 0, 0, start, state.lora_id))
                state.furthest = end
                continue
            elif end <= state.prefill_end and start >= state.recompute_end and not encoded:
                cached = start if state.furthest < 0 else 0
                rows.append((state.number, tokens, 0, cached, 0, 0, 0, start, state.lora_id))
                state.furthest = end
            else:
                rows.append(_row(state, request, start, tokens, output))
            if end < state.prefill_end:
                partial.add(request_id)
        self._partial = partial
        return rows

    def done(self, output: Any, results: Any, t_ns: int) -> None:
        """The results of the step of `output` have come."""
        step_id = self._in_flight.pop(id(output), None)
        if step_id is None:
            return  # nothing was scheduled in it
        accepted = []
        if output.scheduled_spec_decode_tokens:
            self._unsure = True
        for request_id in output.scheduled_spec_decode_tokens:
            state = self._tracked.get(request_id)
            if state is None or not results.sampled_token_ids:
                continue  # aborted meanwhile, or a step that samples nothing
            kept = max(len(results.sampled_token_ids[results.req_id_to_index[request_id]]) - 1, 0)
            state.furthest += kept
            accepted.append((state.number, kept))
        self.ring.done(step_id, t_ns, accepted)

    def finished(self, requests: Iterable[Any], t_ns: int) -> None:
        """These requests leave the scheduler. Their last step may be on the GPU still."""
        self._take_in()
        ends = []
        for request in requests:
            request_id = request.request_id
            state = self._tracked.pop(request_id, None)
            if state is not None:
                self._ended.append(request_id)
                ends.append((state.number, request.num_output_tokens, str(request.get_finished_reason())))
        self.ring.finish_all(t_ns, ends)


def _left(state: _Tracked, last_step: int) -> int:
    """The number of a request that took part up to `last_step`."""
    if state.told is not None:
        state.furthest += last_step - state.told
        state.told = None
    return state.number


def _row(state: _Tracked, request: Any, start: int, tokens: int, output: Any) -> Row:
    """What the step of `output` computes of a request, in any case: `tokens` from `start` on."""
    drafts = len(output.scheduled_spec_decode_tokens.get(request.request_id, ()))
    encoder = sum(map(request.get_num_encoder_embeds, output.scheduled_encoder_inputs.get(request.request_id, ())))
    tokens -= drafts
    if request.num_preemptions != state.preemptions:
        state.preemptions = request.num_preemptions
        # The last sampled token has not been computed yet. Drafts under way may have let `furthest` run ahead.
        state.recompute_end = min(state.furthest, request.num_tokens - 1)
        state.prefill_end = max(state.prefill_end, state.recompute_end)
    cached = 0
    if state.furthest < 0:
        cached = min(start, request.num_prompt_tokens)
    prefill = min(max(state.prefill_end - start, 0), tokens)
    recomputed = min(max(state.recompute_end - start, 0), tokens)
    state.furthest = max(state.furthest, start + tokens)
    return (state.number, prefill, tokens - prefill, cached, recomputed, drafts, encoder, start, state.lora_id)


def open_ring(vllm_config: Any) -> RingWriter:
    """The ring of this engine, at ``$ETAMETER_RING_DIR/etameter-<engine>.ring``.

    Raises:
        OSError: the file can't be created.
        ValueError: ETAMETER_ENGINE is no name.
    """
    parallel = vllm_config.parallel_config
    rank = getattr(parallel, "data_parallel_index", parallel.data_parallel_rank)
    engine = os.environ.get("ETAMETER_ENGINE") or f"engine-{rank}"
    if "ETAMETER_ENGINE" in os.environ and rank:
        engine = f"{engine}-{rank}"  # ranks share their environment
    if not _ENGINE_NAME.fullmatch(engine):
        raise ValueError(f"ETAMETER_ENGINE={engine!r} is no name: use letters, digits, '.', '_' and '-'")
    model = vllm_config.model_config
    directory = Path(os.environ.get("ETAMETER_RING_DIR") or RING_DIRECTORY)
    return RingWriter(
        directory / f"etameter-{engine}.ring",
        engine=engine,
        model=str(model.served_model_name),
        dtype=str(model.dtype).removeprefix("torch."),
        gpu_uuids=_gpu_uuids(vllm_config),
        details=_details(vllm_config),
    )


def _gpu_uuids(vllm_config: Any) -> list[str]:
    """The devices of this engine in the order of its workers, in which those of a pipeline's stage follow each other; of this machine alone where others don't tell theirs."""
    parallel = vllm_config.parallel_config
    told = workers.gpu_uuids(vllm_config) if workers.are_spread(parallel) else None
    return _own_gpu_uuids(parallel) if told is None else told


def _own_gpu_uuids(parallel: Any) -> list[str]:
    """Those that are in this machine.

    vLLM's platform counts devices in NVML's order, which is not CUDA's where GPUs differ: it would name a GPU of somebody else.
    """
    import torch  # vLLM has loaded it

    if not torch.cuda.is_available():
        return []
    assigned = getattr(parallel, "assigned_physical_gpu_ids", None)  # by --device-ids, or by Ray
    devices = _visible(assigned) if assigned else range(torch.cuda.device_count())
    first = (parallel.data_parallel_rank_local or 0) * parallel.world_size
    if first + parallel.world_size > len(devices):
        first = 0  # the launcher shows each rank its own devices only
    own = devices[first : first + parallel.world_size]  # what is missing is another machine's
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in own]


def _visible(assigned: Sequence[int]) -> Sequence[int]:
    """CUDA's numbers in this process of devices that are named by those that they have without CUDA_VISIBLE_DEVICES."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not shown:
        return assigned
    from vllm.platforms import current_platform

    physical = [current_platform.device_control_id_to_physical_device_id(each) for each in shown.split(",")]
    return [physical.index(each) for each in assigned]


def _details(vllm_config: Any) -> dict[str, int | float | str]:
    """Numbers of the model from which a first guess of its step's cost can be made. What a model does not have is left out."""
    import vllm

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    text = model.hf_text_config
    experts, ranks = model.get_num_experts(), parallel.data_parallel_size
    details = {
        "num_layers": getattr(text, "num_hidden_layers", None),
        "hidden_size": model.get_hidden_size(),
        "num_attention_heads": getattr(text, "num_attention_heads", None),
        "num_kv_heads": model.get_total_num_kv_heads(),
        "head_dim": model.get_head_size(),
        "intermediate_size": getattr(text, "intermediate_size", None),
        "vocab_size": model.get_vocab_size(),
        "num_experts": experts or None,
        "expert_size": getattr(text, "moe_intermediate_size", None),
        "experts_per_token": getattr(text, "num_experts_per_tok", None),
        "sliding_window": model.get_sliding_window(),
        "weights_bytes": _weights_bytes(Path(model.model)),
        "quantization": model.quantization,
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "max_model_len": model.max_model_len,
        "max_num_batched_tokens": vllm_config.scheduler_config.max_num_batched_tokens,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": ranks,
        # Alike in all ranks of one server, whose experts' layers run in step. Those of a dense model are on their own.
        "data_parallel_group": getattr(vllm_config, "instance_id", None) if experts and ranks > 1 else None,
        "async_scheduling": int(bool(vllm_config.scheduler_config.async_scheduling)),
        "vllm_version": vllm.__version__,
        "tokenizer": getattr(model, "tokenizer", None),
    }
    return {name: value for name, value in details.items() if isinstance(value, int | float | str)}


def _weights_bytes(directory: Path) -> int | None:
    """What one pass over the weights reads, where the model is a local directory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors")) or None
