"""The only modules that use sockets: bytes in, bytes out.

connection_info.py    connection files: the address and credentials of a scheduler
private_files.py      directories and files that only this user can have created
scratch.py            temporary directories that are removed also when their owner is killed
reachability.py       why an address does not answer, for error messages
curve.py              CURVE keys and ZAP replies
endpoint.py           creation of ZeroMQ sockets: accepted addresses and options
multipart.py          the receive loop of ZeroMQ sockets
connection_limits.py  how many connections a process admits, and which one is closed at a limit
zmq_monitor.py        the connection limits on a ZeroMQ socket
zmq_socket.py         ZeroMQ under Trio and asyncio (scheduler, async client, nanny)
zmq_blocking.py       ZeroMQ without an event loop (worker, blocking client)
zmq_socket_set.py     bound ZeroMQ sockets of any kind on one context, for fronts with another protocol
zmq_admission.py      which connections to such sockets are admitted
websocket.py          a WebSocket server on Trio
websocket_meter.py    limits on what a WebSocket connection makes the scheduler read
handshake_queue.py    a rate limit on WebSocket handshakes without a token
"""
