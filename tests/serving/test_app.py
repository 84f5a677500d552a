"""Questions and refusals of the service: a real uvicorn on a free loopback port, asked by the standard library."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import uvicorn
from asking import Slow, ask

from mcontriever.serving.app import LARGEST_K, LONGEST_BODY, LONGEST_QUERY, make_app

QUERIES = ["what is coffee", "مشروب", "コーヒー", "kahawa ni nini & what? + 100%"]


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
        ({"q": ""}, "the query is empty; .* give it a text"),
        ({"q": " \u3000"}, "query is empty"),
        ({"q": "\u200b"}, "query is empty"),
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
