"""Receipt ids inside vLLM's engine: whoever serves a request sets `receipt_id`, and vLLM inserts it in the id that it makes for its engine.

Ids that clients see, or choose, stay as they are and decide nothing.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from etameter.records import Part, receipt_id_of

logger = logging.getLogger("vllm.etameter")

receipt_id: ContextVar[str | None] = ContextVar("etameter_receipt_id", default=None)
"""The receipt id of the request that this task serves."""


class _Probe:
    """A request to try vLLM's id assignment with."""

    def __init__(self) -> None:
        self.request_id = "probe"
        self.external_req_id: str | None = None


def put_receipts_in_band() -> bool:
    """Let vLLM insert the receipt id in the engine ids it makes: ``<id>-<8 hex>`` becomes ``<id>-<receipt id><8 hex>``.

    Where another engine has prefilled the prompt, that request's receipt id follows: ``<id>-<receipt id><its receipt id><8 hex>``. Where both engines know
    a name of the transfer instead, a letter for the part that the request has in it and a hash of the name do: ``<id>-<receipt id>p<32 hex><8 hex>``.

    False, with one warning, where this vLLM does not make its ids like that.
    """
    try:
        from vllm.v1.engine.input_processor import InputProcessor
    except ImportError as failure:
        logger.warning("etameter: responses carry no energy: %s", failure)
        return False
    assign = InputProcessor.__dict__.get("assign_request_id")
    if not isinstance(assign, staticmethod):
        expected = False
    elif assign.__func__.__module__ == __name__:
        return True  # an application with two of these middlewares, or built twice
    else:
        expected = _assigns_as_expected(assign.__func__)
    if expected:
        InputProcessor.assign_request_id = staticmethod(_with_receipt(assign.__func__))
    else:
        logger.warning(
            "etameter: responses carry no energy: this vLLM makes its engine's request ids in an unknown way"
        )
    return expected


def _with_receipt(assign: Callable[[Any], None]) -> Callable[[Any], None]:
    def assign_request_id(request: Any) -> None:
        assign(request)
        receipt = receipt_id.get()
        if receipt is not None:
            request.request_id = f"{request.request_id[:-8]}{receipt}{_other_half(request)}{request.request_id[-8:]}"

    return assign_request_id


def _other_half(request: Any) -> str:
    """What tells the request that another engine has prefilled for this one, or will decode: its receipt id where the connector names it by that engine's
    id, as NIXL's does, or the transfer where the router names that, as for Mooncake's. Empty where there is none.
    """
    extra = getattr(getattr(request, "sampling_params", None), "extra_args", None) or {}
    transfer = extra.get("kv_transfer_params") or {}
    if not isinstance(transfer, Mapping):
        return ""
    decodes, name = bool(transfer.get("do_remote_prefill")), transfer.get("transfer_id")
    prefilled = receipt_id_of(str(transfer.get("remote_request_id"))) if decodes else None
    if prefilled is not None:
        return prefilled
    if not isinstance(name, str) or not name or not (decodes or transfer.get("do_remote_decode")):
        return ""
    part: Part = "d" if decodes else "p"
    return part + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]


def _assigns_as_expected(assign: Callable[[Any], None]) -> bool:
    probe = _Probe()
    try:
        assign(probe)
    except (AttributeError, TypeError, ValueError):
        return False
    return probe.external_req_id == "probe" and re.fullmatch(r"probe-[0-9a-f]{8}", probe.request_id) is not None
