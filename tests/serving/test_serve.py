"""A real uvicorn on a free loopback port, asked by the standard library's clients."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
import uvicorn

from mcontriever.cli import main
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.errors import run_command
from mcontriever.retrieval import EmbedSettings, IndexSettings, Searcher, build_index, embed
from mcontriever.serving import server
from mcontriever.serving.app import LARGEST_K, LONGEST_BODY, LONGEST_QUERY, make_app

ROWS = {
    "en": ["Coffee is a drink made from roasted beans.", "Penicillin was found by Fleming in 1928.", "Rain falls."],
    "sw": ["Kahawa ni kinywaji kinachotengenezwa kwa mbegu zilizokaangwa."],
    "ar": ["القهوة مشروب يصنع من حبوب محمصة"],
    "ja": ["コーヒーは焙煎した豆から作る飲み物です。"],
}
QUERIES = ["what is coffee", "مشروب", "コーヒー", "kahawa ni nini & what? + 100%"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66)
    encoder = Encoder.random(shape, Tokenizer.train([text for texts in ROWS.values() for text in texts] * 3, 90))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh weights give all texts about the same vector
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    save(encoder, folder / "model")
    (folder / "corpus").mkdir()
    for code, texts in ROWS.items():
        rows = [{"_id": f"{code}{number}", "title": code, "text": text} for number, text in enumerate(texts)]
        (folder / f"corpus/corpus.{code}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    places = {name: str(folder / name) for name in ("corpus", "vectors", "index")}
    embed(EmbedSettings(checkpoint=str(folder / "model"), corpus=places["corpus"], out=places["vectors"]))
    return build_index(IndexSettings(vectors=places["vectors"], out=places["index"], lexical=False))


@pytest.fixture(scope="module")
def searcher(index):
    return Searcher.open(index, device="cpu")


@contextmanager
def running(searcher):
    """The port of a server over that searcher."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(make_app(searcher), log_config=None, lifespan="off"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(searcher):
    with running(searcher) as port:
        yield port


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


def address(**fields):
    return "/search?" + urllib.parse.urlencode(fields)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(("k", "language"), [(6, None), (2, "en")])
def test_both_methods_answer_as_the_searcher_does(port, searcher, query, k, language):
    fields = {"q": query, "k": k} | ({"language": language} if language else {})
    expected = [asdict(hit) for hit in searcher.search(query, k, language)]
    assert list(expected[0]) == ["id", "title", "text", "language", "score", "rank"]
    assert ask(port, address(**fields))[:2] == (200, {"results": expected})
    assert ask(port, "/search", fields)[:2] == (200, {"results": expected})


def test_concurrent_requests_get_what_they_get_alone(port):
    wanted = [(query, k) for query in QUERIES for k in range(1, 7)] * 2
    alone = [ask(port, address(q=query, k=k))[:2] for query, k in wanted]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: ask(port, "/search", {"q": each[0], "k": each[1]})[:2], wanted))
    assert together == alone
    assert {status for status, _ in alone} == {200}


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


def test_searches_wait_for_each_other_and_health_for_none():
    slow = Slow()
    with running(slow) as port, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, port, "/search?q=x") for _ in range(4)]
        assert slow.entered.wait(20)
        assert ask(port, "/healthz")[:2] == (200, {"status": "ok", "passages": 1})
        slow.go.set()
        assert [each.result()[:2] for each in asked] == [(200, {"results": []})] * 4
    assert slow.most == 1


def test_a_bug_of_ours_is_a_500_that_tells_nothing_and_the_next_request_is_answered(caplog):
    slow = Slow()
    slow.go.set()
    with running(slow) as port:
        status, said, _ = ask(port, "/search?q=break")
        assert status == 500
        assert "secret" not in said["error"]
        assert ask(port, "/search?q=x")[0] == 200
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "q is missing; it is the question"),
        ({"q": ""}, "query is empty; give at least one word"),
        ({"q": " \u3000"}, "query is empty"),
        ({"q": "x" * (LONGEST_QUERY + 1)}, f"q must have at most {LONGEST_QUERY} characters, got 'xxx"),
        ({"q": "x", "k": 0}, "k must be greater than or equal to 1, got "),
        ({"q": "x", "k": LARGEST_K + 1}, f"k must be less than or equal to {LARGEST_K}, got "),
        ({"q": "x", "k": 7}, "only 6 passages to search; give a k of at most 6"),
        ({"q": "x", "k": 2, "language": "ja"}, "only 1 passages"),
        ({"q": "x", "k": "many"}, "k must be a valid integer, .* got 'many'"),
        ({"q": "x", "language": "fi"}, "no passage is in language 'fi'; there are: ar, en, ja, sw"),
        ({"q": "x", "langauge": "en"}, "unknown field 'langauge'; did you mean 'language'"),
        ({"q": "x", "\n\x1b": "en"}, r"unknown field '\\n\\x1b'; known: q, k, language"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(port, fields, said):
    for status, answer, _ in (ask(port, address(**fields)), ask(port, "/search", fields)):
        assert status == 422
        assert list(answer) == ["error"]
        assert re.search(said, answer["error"])
        assert answer["error"].isprintable()
        assert len(answer["error"]) < 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"q": ', "must be a JSON object"),
        (b"\xff\xfe{", "."),
        (b"[]", "must be a JSON object"),
        (b"", "must be a JSON object"),
        (b'{"q": 7}', "q must be a valid string, got '7'"),
        (b'{"q": "\\ud800", "k": 1}', "q .*, got '.ud800'"),
        (b"[" * 60_000, "."),
    ],
)
def test_bodies_that_are_no_question(port, body, said):
    status, answer, _ = ask(port, "/search", body)
    assert status in (400, 422)
    assert re.search(said, answer["error"])


def test_no_field_is_dropped_in_silence(port):
    for path, body in (("/search?q=a&q=b&k=1", None), ("/search?k=2", {"q": "x", "k": 1})):
        status, answer, _ = ask(port, path, body)
        assert (status, "every field once" in answer["error"]) == (422, True)


def test_a_body_that_is_not_called_json_is_not_read(port):
    status, answer, _ = ask(port, "/search", b'{"q": "x", "k": 1}', Content_Type="text/plain")
    assert (status, answer) == (422, {"error": "the body must be a JSON object, sent as application/json"})


def send(port, size, chunked):
    data = b"x" * size
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = iter([data[at : at + 4096] for at in range(0, size, 4096)]) if chunked else data
    try:
        connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(port, chunked):
    assert send(port, LONGEST_BODY, chunked) == 422
    assert send(port, LONGEST_BODY + 1, chunked) == 413
    assert send(port, 10 * LONGEST_BODY, chunked) == 413
    assert send(port, 10_000_000, chunked) in (413, None)  # None: cut off while it was still sending
    assert ask(port, "/healthz")[0] == 200


def test_a_client_that_leaves_half_way_harms_nobody(port):
    for half in (b"POST /search HTTP/1.1\r\n", b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(half)
    assert ask(port, address(q="x", k=1))[0] == 200


def test_walking_the_routes(port, searcher):
    app = make_app(searcher)
    routes = {(route.path, method) for route in app.routes for method in route.methods}
    assert {route for route in routes if route[1] != "HEAD"} == {
        ("/openapi.json", "GET"),
        ("/healthz", "GET"),
        ("/search", "GET"),
        ("/search", "POST"),
    }
    for path, method in [*routes, ("/nowhere", "GET"), ("/search", "DELETE"), ("/search", "OPTIONS")]:
        if method == "HEAD":
            continue
        status, answer, headers = ask(
            port, path, {} if method == "POST" else None, method, Origin="http://elsewhere.example"
        )
        assert status == {"/search": 422, "/nowhere": 404}.get(path, 200) if method in ("GET", "POST") else 405
        assert status == 200 or list(answer) == ["error"]
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_openapi_states_types_and_limits(port):
    told = ask(port, "/openapi.json")[1]
    schemas = told["components"]["schemas"]
    assert set(schemas["Hit"]["properties"]) == {"id", "title", "text", "language", "score", "rank"}
    assert schemas["Question"]["additionalProperties"] is False
    assert (schemas["Question"]["properties"]["k"]["maximum"], schemas["Question"]["required"]) == (LARGEST_K, ["q"])
    assert [each["name"] for each in told["paths"]["/search"]["get"]["parameters"]] == ["q", "k", "language"]
    refusal = told["paths"]["/search"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
    assert refusal == {"$ref": "#/components/schemas/Refusal"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_finishes_what_runs_and_stops_on_a_signal(index, monkeypatch, capsys, name):
    port, slow, answers = free_port(), Slow(), []
    monkeypatch.setattr(Searcher, "search", lambda _, *question: slow.search(*question))

    def client():
        asking = threading.Thread(target=lambda: answers.append(ask(port, "/search?q=x")[:2]))
        asking.start()
        assert slow.entered.wait(20)
        os.kill(os.getpid(), getattr(signal, name))
        threading.Timer(0.3, slow.go.set).start()
        asking.join(20)

    def when_open():
        # Uvicorn takes the signals before it answers, so a first answer makes it safe to send one.
        for _ in range(400):
            try:
                ask(port, "/healthz")
                break
            except OSError:
                threading.Event().wait(0.05)
        client()

    before = signal.getsignal(signal.SIGTERM)
    helper = threading.Thread(target=when_open)
    helper.start()
    assert run_command(main, ["serve", str(index), "--port", str(port)]) == 0
    helper.join(20)
    assert answers == [(200, {"results": []})]
    assert signal.getsignal(signal.SIGTERM) == before
    lines = capsys.readouterr().err.splitlines()
    assert f"6 passages on http://127.0.0.1:{port}/search" in lines[0]
    assert lines[1:] == ["stopped"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_port_in_use_or_an_address_of_others_is_one_line(index, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command(main, ["serve", str(index), "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"mcontriever: error: cannot listen on 127.0.0.1, port {port}: Address already in use; "
        "choose another --host or --port\n"
    )
    assert run_command(main, ["serve", str(index), "--host", "192.0.2.1"]) == 2
    assert "cannot listen on 192.0.2.1" in capsys.readouterr().err
    assert run_command(main, ["serve", str(index), "--port", "70000"]) == 2
    assert "port must lie in [0, 65535]" in capsys.readouterr().err


def test_an_index_that_does_not_open_binds_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(server, "_listen", lambda *_: pytest.fail("the port was bound first"))
    assert run_command(main, ["serve", str(tmp_path)]) == 1
    assert "not an index" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_without_the_extra_its_name_is_said(index, library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    assert run_command(main, ["serve", str(index)]) == 1
    assert f"serving needs {library}: pip install 'mcontriever[serve]'" in capsys.readouterr().err


def test_the_extra_is_imported_only_when_serving():
    code = "import sys, mcontriever.serving; sys.exit(repr({'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
