"""`mcontriever serve INDEX`: what lies between the command line and the application of `app.py`.

The index is opened and verified before the port is bound, so that whoever can connect gets answers. Uvicorn has no
time-out for slow headers: connections are bounded, and a proxy belongs in front of a port that others can reach.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from dataclasses import dataclass

from ..errors import UsageError, require
from ..retrieval import Searcher
from ..settings import in_range

_CONNECTIONS = 256  # more are answered 503
_SECONDS_TO_FINISH = 10  # what a running request has when the server is told to stop


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Answer questions from an index over HTTP."""

    index: str
    """folder written by `mcontriever index`"""
    checkpoint: str = ""
    """the encoder that made the index; by default where the index says it was"""
    device: str = ""
    """cpu, cuda, cuda:1 ...; by default a GPU where there is one"""
    host: str = "127.0.0.1"
    """address to listen on; the default is reached from this machine only"""
    port: int = 8000
    """port to listen on; 0 takes a free one"""

    def __post_init__(self) -> None:
        in_range("port", self.port, 0, 65535)


def serve(settings: ServeSettings) -> None:
    """Open the index, listen, and answer until SIGTERM or Ctrl-C; running requests are finished first."""
    uvicorn = require("uvicorn", "serve", "serving")
    require("fastapi", "serve", "serving")
    from .app import make_app

    searcher = Searcher.open(settings.index, checkpoint=settings.checkpoint or None, device=settings.device or None)
    config = uvicorn.Config(
        make_app(searcher),
        log_config=None,  # warnings and errors only, on standard error
        access_log=False,  # questions are private
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    with contextlib.closing(_listen(settings.host, settings.port)) as listener:
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        sys.stderr.write(f"{settings.index}: {len(searcher)} passages on {where}/search?q=...; Ctrl-C stops\n")
        sys.stderr.flush()
        # Uvicorn stops gracefully and then raises the signal again: both end here, and the exit code is 0.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
    sys.stderr.write("stopped\n")


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]
        raise UsageError(f"cannot listen on {host}, port {port}: {why}; choose another --host or --port") from error
