"""The ids of requests that their clients know.

A receipt id opens the receipt to whoever has it, so it is told to the client alone. Exemplars, the live page and the meter's own port name a
request by the id that vLLM answers with instead. Clients may choose that: what is not of a form that is drawn at random may be guessed, and opens
nothing; nor does an id that two requests had.
"""

import re
from collections import OrderedDict
from typing import Final

REMEMBERED: Final = 65_536
"""Requests that may be open at once, and as many that have ended."""
NAMELESS: Final = 4096
"""Requests that have ended of which a busy server may yet tell the id."""
ROOM: Final = 64
"""Characters of an id; of all that an exemplar says, OpenMetrics allows 128."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]*")
_DRAWN = re.compile(
    r"(?:[a-z]+-)?(?:(?=\d*[A-Za-z])(?:[0-9a-f]{16}|[A-Za-z0-9]{29,})|[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
)
"""What servers name a request by, `chatcmpl-` or the like before it: vLLM by 16 hexadecimal digits, others by 29 characters or more, gateways by a UUID of version 4. What has decimal digits only may count, or be a time."""
_NOBODYS: Final = ""


def printable(public_id: str | None) -> str | None:
    """As much of an id as is shown; None where a client made it up of characters that are not those of ids."""
    return None if public_id is None or not _ID.fullmatch(public_id) else public_id[:ROOM]


class PublicIds:
    """Which public id belongs to which receipt id: of open requests, and of the latest that have ended."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, str] = OrderedDict()
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._nameless: OrderedDict[str, None] = OrderedDict()

    def publish(self, receipt_id: str, public_id: str) -> None:
        """The server has told its client `public_id`."""
        if receipt_id in self._nameless:  # or one of its prompts, of which others may go on
            del self._nameless[receipt_id]
            self._name(receipt_id, public_id)
        self._open[receipt_id] = public_id
        if len(self._open) > REMEMBERED:
            self._open.popitem(last=False)

    def end(self, receipt_id: str) -> str | None:
        """The public id of a request that has ended, if that was told already. From then on `receipt_of` knows it."""
        public_id = self._open.pop(receipt_id, None)
        if public_id is None:
            self._nameless[receipt_id] = None
            if len(self._nameless) > NAMELESS:
                self._nameless.popitem(last=False)
        else:
            self._name(receipt_id, public_id)
        return public_id

    def _name(self, receipt_id: str, public_id: str) -> None:
        name = printable(public_id)
        if name is not None and _DRAWN.fullmatch(name):
            self._ended[name] = receipt_id if self._ended.get(name, receipt_id) == receipt_id else _NOBODYS
            self._ended.move_to_end(name)
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def receipt_of(self, name: str) -> str | None:
        """The receipt id of an ended request, by what of its public id is shown; None where that may be another's."""
        return self._ended.get(name) or None
