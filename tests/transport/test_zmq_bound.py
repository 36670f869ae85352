"""Sockets of fronts: who may take whose place."""

from __future__ import annotations

import pytest
import trio
import zmq

from trio_sched.transport import curve
from trio_sched.transport.zmq_bound import SocketSet


@pytest.mark.parametrize("secured", [False, True])
def test_a_second_peer_of_the_same_name_takes_over_with_curve_only(secured: bool) -> None:
    keys = curve.new_keys(()).server if secured else None
    context = zmq.Context()

    def connected(address: str) -> zmq.Socket[bytes]:
        peer = context.socket(zmq.DEALER)
        peer.linger = 0
        peer.routing_id = b"engine"
        if keys is not None:
            peer.curve_publickey, peer.curve_secretkey = zmq.curve_keypair()
            peer.curve_serverkey = keys.public.encode()
        peer.connect(address)
        return peer

    async def main() -> None:
        with SocketSet(keys) as sockets, trio.fail_after(20):
            router = sockets.bind("router", "tcp://127.0.0.1:0", mandatory=True)
            first = connected(router.address)
            first.send(b"first")
            assert await router.receive() == [[b"engine", b"first"]]
            second = connected(router.address)
            second.send(b"second")
            if secured:
                assert await router.receive() == [[b"engine", b"second"]]
            else:
                with trio.move_on_after(0.3):
                    raise AssertionError(f"it was heard: {await router.receive()}")
            assert router.send([b"engine", b"for you"])
            router.flush()
            there, elsewhere = (second, first) if secured else (first, second)
            assert there.poll(10_000)
            assert there.recv() == b"for you"
            assert not elsewhere.poll(50)
            first.close()
            second.close()

    trio.run(main)
    context.term()
