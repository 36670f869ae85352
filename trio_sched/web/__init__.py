"""The WebSocket front: the messages of the native wire as JSON text or msgpack binary, for browsers and other
languages.

messages.py   conversion between one WebSocket message and one message of the native wire with its frames
front.py      the front: authentication, and a connection object for each peer
"""
