"""Serving is here so that programs that are not Python, or not on this machine, can ask an index over HTTP."""

from __future__ import annotations

from .server import ServeSettings, serve

__all__ = ["ServeSettings", "serve"]
