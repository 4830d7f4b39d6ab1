"""The start of test processes."""

import errno
import socket

import pytest
from torch.distributed import TCPStore

from tests.distributed.processes import reserved_port


def test_a_reserved_port_is_given_to_a_store_and_to_no_other_socket():
    """Before, a port was found free, and the next socket of any process could take it."""
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use") as error:
            other.bind(("127.0.0.1", port))
        assert error.value.errno == errno.EADDRINUSE
        store = TCPStore("127.0.0.1", port, 1, is_master=True, wait_for_workers=False)
        store.set("key", "value")
        assert store.get("key") == b"value"
