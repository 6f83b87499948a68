"""The server's interface, as far as it is spoken here."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

HEAD: Final = "http.response.start"
BODY: Final = "http.response.body"
CUT: Final = "http.response.cut"
"""Our own type of a message, with which an application says that its response ends here, incomplete."""
