"""Which answers their users had made anew: the same client asks the same again, soon after it was answered.

Kept of a question is a hash under a key that this process drew at its start and tells nobody, for `WINDOW_S`. Server processes share no key, so
that a retry which another one of them serves is not seen. Requests that carry `X-Etameter-Run` belong to an experiment that asks again on purpose.
"""

import hashlib
import marshal
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

WINDOW_S = 300.0
"""Who asks again later may want to know whether the answer has changed."""
REMEMBERED = 4096
RUN_HEADER = b"x-etameter-run"

_TELLING = frozenset({b"authorization", b"x-api-key", b"x-forwarded-for"})
"""Headers that tell clients apart behind one address."""
_BESIDE_THE_QUESTION = frozenset(
    [
        "stream", "stream_options", "logprobs", "top_logprobs", "return_token_ids", "priority", "request_id", "n", "seed",
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "max_tokens", "max_completion_tokens", "min_tokens",
    ]
)  # fmt: skip
"""A retry may well change how the answer is sampled or sent."""


_PLAIN = 0
"""The version of marshal's format that knows of values alone: the same request makes the same bytes."""


class Retries:
    """Belongs to one event loop. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = os.urandom(32)
        self._answered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        """Hash → receipt id of the answer, and when it was complete."""

    def hash_of(self, client: bytes, request: Mapping[str, Any]) -> bytes | None:
        """Of the question and who asks it; None for one that is nested too deeply."""
        question = sorted(each for each in request.items() if each[0] not in _BESIDE_THE_QUESTION)
        try:
            asked = marshal.dumps(question, _PLAIN)
        except ValueError:
            return None
        hashed = hashlib.blake2b(client, key=self._key, digest_size=16)
        hashed.update(b"\0" + asked)
        return hashed.digest()

    def asked(self, question: bytes) -> str | None:
        """The receipt id of an answer to the same question that was complete lately: it is a retry's, and told once."""
        receipt_id, answered_s = self._answered.pop(question, ("", 0.0))
        return receipt_id if receipt_id and self._clock() - answered_s <= WINDOW_S else None

    def answered(self, question: bytes, receipt_id: str) -> None:
        """A client has its whole answer."""
        self._answered.pop(question, None)
        self._answered[question] = receipt_id, self._clock()
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)


def client_of(scope: MutableMapping[str, Any]) -> bytes | None:
    """What is known of who asks; None for an experiment."""
    headers = scope["headers"]
    told = []
    for name, value in headers:
        if name == RUN_HEADER:
            return None
        if name in _TELLING:
            told.append(name + b":" + value)
    host = (scope.get("client") or ("",))[0]
    return b"\n".join([str(host).encode(), *sorted(told)])
