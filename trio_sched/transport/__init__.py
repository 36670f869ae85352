"""The only files that touch sockets: bytes in, bytes out.

connection.py     connection files: how a peer finds a scheduler and proves that it may talk to it
curve.py          key pairs, CURVE options, and who is let in
multipart.py      the loop that takes messages out of a ZeroMQ socket
connection_limits.py  how many connections a process admits, and which gives way
zmq_monitor.py    counting the connections of a ZeroMQ socket, and closing one
local_gate.py     turning newcomers away from a local socket without accepting them
zmq_socket.py     ZeroMQ under trio and asyncio (scheduler, async client, nanny)
zmq_bound.py      bound ZeroMQ sockets of any kind on one context, for fronts that speak somebody else's protocol
zmq_blocking.py   ZeroMQ without an event loop (worker, blocking client)
websocket.py      WebSocket server, on trio
"""
