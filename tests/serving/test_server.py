"""The command `serve`: it stops on a signal when it has answered, and what keeps it from starting is one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from asking import Slow, ask

from mcontriever.cli import main
from mcontriever.errors import run_command
from mcontriever.retrieval import Searcher
from mcontriever.serving import server


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
