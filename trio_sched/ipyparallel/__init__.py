"""The drop-in controller: what real ipyparallel clients and engines talk to.

front.py         binds every socket, writes the connection files, runs the parts
config.py        its settings; options.py and settings.py read them as ipcontroller does
files.py         the connection files
desk.py          what the parts share: settings, codec, sockets, who is registered
roster.py        engines by uuid and by number
registration.py  engines come and go, clients connect and ask
heartbeat.py     which engines are alive
tasks.py         the task queue: messages <-> events and effects of the core
patient.py       a ROUTER that waits for engines that are not connected yet
relay.py         direct calls, control and output, passed on as they came
broadcast.py     one call to many engines
monitor.py       what the parts tell of messages that pass, to
records/         what became of each task, for later questions, which
queries.py       answers
launcher.py      how ipcluster and Cluster start it
"""
