"""Engines: the processes that run the tasks, and the nanny that watches over those of one machine.

nanny.py       its line to the scheduler: hello, beats, reports of deaths
ward.py        one worker: started, watched, restarted, stopped
worker.py      a worker's start, its threads, its end
single.py      the loop of a worker with one slot: tasks run in the main thread
pool.py        the loop of a worker with several slots: tasks run in threads
link.py        the engine's side of the protocol: hello, results until acknowledged, recall, reconnection
runner.py      running one call: function, arguments, place, result
ends.py        what came of a call, as a message
orders.py      what a nanny tells its worker
capture.py     what a task prints
board.py       what a worker leaves in shared memory for its nanny
machine.py     processors, memory, out-of-memory kills
cause.py       of what a worker died, in words
"""
