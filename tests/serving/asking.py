"""What the tests here ask a server with, and a searcher that answers when it is told to."""

import json
import threading
import urllib.error
import urllib.request


def ask(port, path, body=None, method=None, **headers):
    """(status, JSON, headers) of a request; a body is sent as JSON unless it is bytes or chunks already."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.loads(response.read()), response.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


class Slow:
    """A searcher that waits to be let go, and knows how many were in it at once."""

    def __init__(self):
        self.inside, self.most, self.entered, self.go = 0, 0, threading.Event(), threading.Event()

    def __len__(self):
        return 1

    def search(self, q, k, language):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        assert self.go.wait(20)
        self.inside -= 1
        if q == "break":
            raise RuntimeError("a bug at /home/secret")
        return []
