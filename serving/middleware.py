"""Energy in vLLM's responses.

    vllm serve MODEL --middleware etameter.serving.middleware.EnergyMiddleware

Chat, plain completions and embeddings get a top-level `energy` object. In a stream it stands in the final usage chunk where the client asked for
usage, else in the last chunk with a `finish_reason`; no chunk is added. Everything else of a response stays byte for byte as it was,
and a response that is no success is not touched at all. Where the meter has no figure within 25 ms, `energy` is null and
`energy_reason` says why, and `energy_receipt_id` under which id `/energy/{receipt_id}` may know it later. With `ETAMETER_SETTLE_RESPONSES=1`
the end of a response waits up to 300 ms for its settled figure. With `ETAMETER_RECEIPT_TOKEN` receipts are only for who bears that token.

A request is recognised in the scheduler by a fresh receipt id, which `in_band` has vLLM insert in the id that it makes for its engine. Before
an engine that tells nothing (`proxy`), the middleware itself tells `Arrivals` of the tokens that go by.

What requests and responses say stays here, unless `ETAMETER_CLASSIFY` is 1: then the meter is told both once, when the response ends, to
find out how much of it was slack.

Where there are budgets, the head of a response says how those stand that its request draws on (`X-Etameter-Budget`), as the meter last told;
nothing where the meter is away, and no request is ever refused.

The meter is told, too, that a client went before its answer was complete, and that a client asks again what it was just answered: of the earlier
question only a keyed hash is kept, in this process, for some minutes.
"""

import hmac
import logging
import os
import re
from collections.abc import Iterable

from etameter.config import socket_path

from . import outside
from .arms import Arms
from .arrivals import Arrivals
from .asgi import BODY, HEAD, Application, Receive, Scope, Send
from .braking import Braking
from .budgets import Budgets
from .exchange import Exchange, energy_field
from .in_band import put_receipts_in_band
from .link import METER_AWAY, METER_LATE, Answer, MeterLink, answer_in
from .retries import Retries

logger = logging.getLogger("vllm.etameter")

RECEIPT_WAIT_S = 1.0
EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", EMBEDDINGS})
RECEIPT_PATH = re.compile(r"/energy/([0-9a-f]{32})")
UNAUTHORIZED = "token_required"
STATUS = {METER_AWAY: 503, METER_LATE: 503, UNAUTHORIZED: 401}
"""Of the answer to who asks for a receipt, by why there is none; 404 for any other reason."""


class EnergyMiddleware:
    """Pure ASGI. Costs a request one look at its body and one message each to open it and to ask for its energy."""

    def __init__(self, app: Application, arrivals: Arrivals | None = None) -> None:
        """`arrivals` are told what comes from an engine that tells nothing itself; so are those of `outside`."""
        self.app = app
        self.arrivals = arrivals = arrivals or outside.arrivals()
        self.budgets = Budgets.from_environment()
        self.link = MeterLink(socket_path(), budgets=bool(self.budgets))
        self.arms = Arms.from_environment()
        self.answering: Application = Braking(app, self.arms)
        self.settle = os.environ.get("ETAMETER_SETTLE_RESPONSES") == "1"
        self.receipt_token = os.environ.get("ETAMETER_RECEIPT_TOKEN", "").encode()
        self.classify = os.environ.get("ETAMETER_CLASSIFY") == "1"
        self.in_band = arrivals is not None or put_receipts_in_band()
        self.retries = Retries()
        self._checked_engine = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind in {"http", "lifespan"}:
            self.link.start()
        if kind != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["method"] == "POST" and path in ENDPOINTS:
            self._check_engine(scope)
            await Exchange(self, scope, receive, send, embeds=path == EMBEDDINGS).serve(scope)
        elif scope["method"] == "GET" and path.startswith("/energy/"):
            # The server logs the path when the response begins: who knows a receipt's id may read it.
            scope["path"] = f"{scope.get('root_path', '')}/energy/"
            scope["raw_path"] = scope["path"].encode()
            await self._answer_receipt(path, scope["headers"], send)
        else:
            await self.app(scope, receive, send)

    def _check_engine(self, scope: Scope) -> None:
        """NIXL's push connector finds a request's other half by its engine id less the last 9 characters: ids stay as they are there. Its pull connector compares whole ones."""
        if self._checked_engine:
            return
        self._checked_engine = True
        vllm_config = getattr(getattr(scope.get("app"), "state", None), "vllm_config", None)
        transfer = getattr(vllm_config, "kv_transfer_config", None)
        connectors = (getattr(transfer, name, None) for name in ("kv_connector", "kv_connector_extra_config"))
        if self.in_band and any("nixlpush" in str(each).lower() for each in connectors):  # alone, or one of several
            self.in_band = False
            logger.warning(
                "etameter: responses carry no energy: NIXL's push connector compares the engine's request ids"
            )

    async def _answer_receipt(self, path: str, headers: Iterable[tuple[bytes, bytes]], send: Send) -> None:
        match = RECEIPT_PATH.fullmatch(path)
        if not self._may_read(headers):
            answer = Answer(None, UNAUTHORIZED)
        elif match is None:
            answer = Answer(None, "no_such_receipt")
        else:
            answer = await answer_in(RECEIPT_WAIT_S, self.link.receipt(match[1]))
        status = 200 if answer.energy is not None else STATUS.get(answer.reason or "", 404)
        body = b"{" + energy_field(answer) + b"}"
        about = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == STATUS[UNAUTHORIZED]:
            about.append((b"www-authenticate", b"Bearer"))
        await send({"type": HEAD, "status": status, "headers": about})
        await send({"type": BODY, "body": body})

    def _may_read(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether who asks bears the token, if there has to be one."""
        borne = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, token = borne.partition(b" ")
        return not self.receipt_token or (
            scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.receipt_token)
        )
