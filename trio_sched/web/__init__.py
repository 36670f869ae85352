"""The WebSocket front: the messages of the native wire as JSON text or msgpack binary, for browsers and other
languages.

messages.py   one WebSocket message <-> one message of the native wire with its frames
front.py      the front itself: who may come in, and a link for each peer
"""
