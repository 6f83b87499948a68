"""The meter's HTTP server: the live page, `/events`, `/metrics`, `/energy/{request_id}`, `/health` and `/ready`."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Final

from aiohttp import web

from etameter.export.events import Events
from etameter.export.socket import Answer

ENTRANCE: Final = "index.html"
TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SECURITY: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
OWN_SITES: Final = frozenset({"same-origin", "none"})
"""What a browser says of a request that no other site's page has made."""

_HOST = re.compile(r"\[([0-9a-f:.]+)\](?::\d+)?|([^:]*)(?::\d+)?", re.IGNORECASE)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(
    *,
    host: str,
    render: Callable[[str | None], tuple[bytes, str]],
    answer: Callable[[str], Answer],
    health: Callable[[], tuple[bool, Mapping[str, object]]],
    events: Events,
    receipt_token: str | None = None,
) -> web.Application:
    """Serve on `host`. Receipts are only for who bears `receipt_token`, where there is one. `render` gives the exposition for an Accept header, `answer` a receipt for its own id or its request's public one, `health` whether the meter is well, and what it knows.

    On a loopback address only requests to one are answered: a page from elsewhere whose name was made to point here (DNS
    rebinding) names itself in the Host header.
    """
    assets = _assets()
    names = LOCAL_NAMES | {host} if _is_loopback(host) else None

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if names is not None and named(request.headers.get("Host", "")) not in names:
            return web.Response(status=403, text=f"this meter answers to {', '.join(sorted(names))} only\n")
        return await handler(request)

    async def asset(request: web.Request) -> web.Response:
        name = request.match_info.get("name", ENTRANCE)
        if name not in assets:
            raise web.HTTPNotFound
        body, tag = assets[name]
        headers = {**SECURITY, "ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=TYPES[name.rpartition(".")[2]], charset="utf-8", headers=headers)

    async def listen(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES:
            raise web.HTTPForbidden(text="only this meter's own page may listen here\n")
        return await events.serve(request)

    async def state(_: web.Request) -> web.Response:
        well, about = health()
        return web.json_response(about, status=200 if well else 503)

    async def ready(_: web.Request) -> web.Response:
        """Whether the meter is well and every counter has changed once: from then on it can measure."""
        well, about = health()
        return web.json_response(about, status=200 if well and not about["awaiting_first_edge"] else 503)

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = render(request.headers.get("Accept"))
        told = web.Response(body=body, headers={"Content-Type": content_type})
        told.enable_compression()  # where it is accepted: a tenth of the bytes, made beside the event loop
        return told

    async def receipt(request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        borne = scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode(), (receipt_token or "").encode()
        )
        if receipt_token is not None and not borne:
            refusal = {"energy": None, "energy_reason": "token_required"}
            return web.json_response(refusal, status=401, headers={"WWW-Authenticate": "Bearer"})
        energy, reason = answer(request.match_info["request_id"])
        return web.json_response({"energy": energy, "energy_reason": reason}, status=200 if energy is not None else 404)

    served = web.Application(middlewares=[guard])
    served.cleanup_ctx.append(events.running)
    served.on_shutdown.append(events.stop)
    served.add_routes(
        [
            web.get("/", asset),
            web.get("/page/{name}", asset),
            web.get("/events", listen),
            web.get("/health", state),
            web.get("/ready", ready),
            web.get("/metrics", metrics),
            web.get("/energy/{request_id}", receipt),
        ]
    )
    return served


def named(host_header: str) -> str | None:
    """The name or address in a Host header, in lower case, without port and brackets; None where it has no such form."""
    found = _HOST.fullmatch(host_header.strip())
    return None if found is None else (found[1] or found[2]).lower()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _assets() -> dict[str, tuple[bytes, str]]:
    """The files of the page, with their tags."""
    found = {}
    for file in resources.files("etameter.export").joinpath("page").iterdir():
        body = file.read_bytes()
        found[file.name] = body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return found
