"""The drop-in controller for ipyparallel's clients and engines.

front.py               binds the sockets, makes and wires the parts, writes the connection files
config.py              the settings; options.py and settings.py read them as ipcontroller does
connection_files.py    the connection files
controller_context.py  what the parts share: settings, codec, sockets, engines, recorder
engine_registry.py     the registered engines, by uuid and by number
registration.py        engines join and leave, clients are notified and ask questions
heartbeat.py           pings and pongs
tasks.py               the task queue: messages <-> events and effects of the core
retrying_router.py     a ROUTER that retries for engines that are not connected yet
relay.py               direct calls, control messages and output, relayed unchanged
broadcast.py           one call to many engines
queries.py             answers to clients' questions
records/               the records of tasks
dask.py                the Dask scheduler that a client may ask for; its process is dask_scheduler.py
launcher.py            the launchers with which ipcluster and Cluster start the controller
"""
