"""libhandoff for Python: a broker passes a client's connection to a backend, another process.

    Backend, Broker     the two ends
    handoff.aio         the backend's end for asyncio
    handoff.asgi        runs an ASGI application on connections that brokers hand over
"""

from ._library import (Full, HandoffError, TakenBack, reason_name, status_name, version)
from .backend import (KIND_ANY, KIND_DATAGRAM, KIND_SEQPACKET, KIND_STREAM, KIND_UNCONNECTED,
                      Arrival, Backend, Peer)
from .broker import Broker, Verdict
from .reason import Reason
from .status import Status
from .tls import TlsError, TlsSession, TlsSocket

__all__ = [
    "Arrival", "Backend", "Broker", "Full", "HandoffError", "KIND_ANY", "KIND_DATAGRAM",
    "KIND_SEQPACKET", "KIND_STREAM", "KIND_UNCONNECTED", "Peer", "Reason", "Status", "TakenBack",
    "TlsError", "TlsSession", "TlsSocket", "Verdict", "reason_name", "status_name", "version",
]

for _error in Full, HandoffError, TakenBack:
    _error.__module__ = __name__  # as programs name them: tracebacks say that
