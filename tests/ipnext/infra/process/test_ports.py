"""Ports are picked free and remembered."""

import multiprocessing
import os
import socket
import tempfile

import pytest

from ipnext.errors import Conflict
from ipnext.infra.process.ports import PortBook, is_free, release, reserve
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("listeners", "subprocesses")


def test_a_directory_of_locks_that_is_somebody_elses_is_not_used(tmp_path, monkeypatch):
    """Among the temporary files anybody may have made it before, as a link for one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"ipnext-ports-{os.geteuid()}").symlink_to(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(Conflict, match="set TMPDIR"):
        reserve(23)
    assert not list(elsewhere.iterdir())


def test_a_name_keeps_its_port_over_a_restart(tmp_path):
    port = PortBook(tmp_path / "ports.json").port("router")
    assert PortBook(tmp_path / "ports.json").port("router") == port


def test_names_have_ports_of_their_own(tmp_path):
    book = PortBook(tmp_path / "ports.json")
    assert len({book.port(f"host-{n}") for n in range(20)}) == 20


def test_a_port_that_somebody_took_is_replaced(tmp_path):
    book = PortBook(tmp_path / "ports.json")
    port = book.port("router")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)
        assert book.port("router") != port


def test_a_forgotten_name_gives_its_port_back(tmp_path):
    book = PortBook(tmp_path / "ports.json")
    book.port("host")
    book.forget("host")
    assert book.recall("host") is None


def test_a_damaged_book_is_begun_anew(tmp_path):
    (tmp_path / "ports.json").write_text("[1, 2")
    assert PortBook(tmp_path / "ports.json").port("router") > 0


def reserve_and_wait(port, told, held):
    """In another process: hold a port until told to end."""
    told.put(reserve(port))
    held.wait()


def test_a_port_picked_by_another_process_is_not_picked_again_though_nobody_listens_yet(tmp_path):
    book = PortBook(tmp_path / "ports.json")
    port = book.port("api")
    release(port)
    context = multiprocessing.get_context("spawn")
    told, held = context.Queue(), context.Event()
    other = context.Process(target=reserve_and_wait, args=(port, told, held))
    other.start()
    try:
        assert told.get(timeout=PATIENCE_SECONDS)
        assert is_free(port)
        assert book.port("api") != port
    finally:
        held.set()
        other.join()
    assert reserve(port), "the end of its process gives it back"
    release(port)
