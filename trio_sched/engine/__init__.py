"""Engines: the worker processes that run the tasks, and the nanny that supervises the workers of one machine.

nanny.py                 the nanny, with its connection to the scheduler: hello, heartbeats, reports of worker deaths
worker_supervisor.py     supervision of one worker process: start, watch, restart, stop
worker.py                a worker process: its start, its signals, its exit
loop.py                  the common base of the two loops
single.py                the loop of a worker with one slot: tasks run in the main thread
pool.py                  the loop of a worker with several slots: tasks run in threads
scheduler_connection.py  a worker's connection to the scheduler: hello, results until acknowledged, recall, reconnection
runner.py                running one call: function, arguments, environment
results.py               building the result of a call, from its value or its exception
capture.py               capturing what a task prints
control_messages.py      messages from a nanny to its worker
worker_status.py         the state that a worker records in shared memory for its nanny
exit_reason.py           the reason of a worker's exit, in words
host.py                  measurements of the machine: processors, memory, out-of-memory kills
"""
