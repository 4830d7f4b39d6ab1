"""The start of test processes."""

import errno
import socket
import time

import pytest
from torch.distributed import TCPStore, distributed_c10d

from tests.distributed.processes import reserved_port, run


def test_a_reserved_port_is_given_to_a_store_and_to_no_other_socket():
    """Before, a port was found free, and the next socket of any process could take it."""
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use") as error:
            other.bind(("127.0.0.1", port))
        assert error.value.errno == errno.EADDRINUSE
        store = TCPStore("127.0.0.1", port, 1, is_master=True, wait_for_workers=False)
        store.set("key", "value")
        assert store.get("key") == b"value"


def ask_later(rank):
    """Ask the store, which rank 0 holds, when rank 0 has nothing more to do."""
    if rank:
        time.sleep(0.3)
        assert distributed_c10d._get_default_store().add("asked", 1) == 1


def test_the_store_is_there_until_every_process_has_returned():
    """Before, it ended with rank 0, under groups that slower processes were still making."""
    run(2, ask_later)
