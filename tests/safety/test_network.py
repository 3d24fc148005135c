"""The hub without a network: found out within seconds, and asked no more."""

import http.server
import socket
import threading

import pytest

from dipo_lightning.data.rows import read_rows
from dipo_lightning.errors import InputError
from dipo_lightning.safety.network import bounded_hub, hub_answers


@pytest.fixture
def silent():
    """An address where somebody listens and nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("status", [200, 404])
def test_any_answer_counts(status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert hub_answers(f"http://127.0.0.1:{server.server_port}")
        thread.join()


def test_nobody_there_and_nobody_who_answers(silent, closed):
    assert not hub_answers(closed)
    assert not hub_answers(silent, patience=0.1)


def test_the_libraries_are_offline_only_while_the_hub_is_out_of_reach(closed, monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with bounded_hub():
        assert constants.is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
    assert not constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_hub_name_without_a_network_is_a_sentence_and_no_retries(closed, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", closed)
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(
        InputError, match="nobody/nothing, train: there is no such folder here, and it could not be loaded"
    ):
        read_rows("nobody/nothing")
    assert not slept
