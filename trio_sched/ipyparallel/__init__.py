"""The drop-in controller: what real ipyparallel clients and engines talk to.

front.py         binds every socket, writes the connection files, runs the parts
desk.py          what the parts share: settings, codec, sockets, who is registered
registration.py  engines come and go, clients connect and ask
heartbeat.py     which engines are alive
tasks.py         the task queue: messages <-> events and effects of the core
relay.py         direct calls, control and output, passed on as they came
broadcast.py     one call to many engines
records/         what became of each task, for later questions
"""
