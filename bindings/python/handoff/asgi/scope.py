"""What an ASGI application is told about a connection: from what the broker says, and never from the
client's headers, which no proxy has set or removed.

docs/protocol.md has the metadata of the nginx modules, `handoff_metadata default`.
"""

from __future__ import annotations

import functools
import json
import ssl
from typing import Any, NamedTuple

from ..backend import Arrival

VERSIONS = {"TLSv1": 0x0301, "TLSv1.1": 0x0302, "TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class Unusable(ValueError):
    """The metadata does not say who the client is."""


class Facts(NamedTuple):
    """Of one connection: `client` and `server` as in an ASGI scope, or None to ask the socket."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    secure: bool
    extensions: dict[str, Any]


def facts_of(arrival: Arrival) -> Facts:
    """A broker that sends no metadata has nothing between itself and the client: then it is as with
    any server, and the socket's addresses are the client's and the server's. Other metadata raises
    Unusable if it cannot be read, because the socket's addresses may be those of a load balancer."""
    said = {}
    client, server, secure = None, None, arrival.tls
    if arrival.metadata:
        try:
            said = json.loads(arrival.metadata)
            client = _text(said["client"]["address"]), _port(said["client"]) or 0
            if "server" in said:
                server = _text(said["server"]["address"]), _port(said["server"])
            secure = said.get("scheme", "https" if arrival.tls else "http") == "https"
            tls = said.get("tls", {})
            extensions = {"tls": _tls(tls)} if secure else {}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Unusable(f"metadata that does not say who the client is: {error!r}") from None
    else:
        extensions = {"tls": _tls({})} if secure else {}
    correlation = arrival.correlation.decode("utf-8", "replace")
    service = arrival.service.decode("utf-8", "replace")
    extensions["handoff"] = {"metadata": said, "correlation": correlation, "service": service}
    return Facts(client, server, secure, extensions)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no address")
    return value


def _port(end: dict[str, Any]) -> int | None:
    port = end.get("port")
    if port is not None and (type(port) is not int or not 0 < port < 65536):
        raise TypeError(f"{port!r} is no port")
    return port


def _tls(said: dict[str, Any]) -> dict[str, Any]:
    """The extension "tls" of ASGI. nginx tells no certificates, but whether the client's is good."""
    verify = said.get("client_certificate", {}).get("verify", "SUCCESS")
    return {
        "server_cert": None,
        "client_cert_chain": (),
        "client_cert_name": None,
        "client_cert_error": None if verify == "SUCCESS" else _text(verify),
        "tls_version": VERSIONS.get(said.get("version", "")),
        "cipher_suite": _ciphers().get(said.get("cipher", "")),
    }


@functools.lru_cache(maxsize=None)
def _ciphers() -> dict[str, int]:
    """The numbers of the cipher suites, by OpenSSL's names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return {cipher["name"]: cipher["id"] & 0xffff for cipher in context.get_ciphers()}
