"""The server: one Trio nursery around one actor that owns the state.

In the order in which a message passes them:

    peer_connection, native
                         the connection of a peer; the ZeroMQ front
    ingress              sorts the received messages by the role of their sender, and keeps their order (R31)
    reader               the base of the three readers: messages in, events out; rejects malformed messages (R25)
    intake, results, notifications
                         the readers of clients, of engines, and of nannies and peers without a session
    events               the server's own events and effects, in addition to the core's
    actor                the turn: events in, effects out
    guarded_scheduler    the core, with recovery from its exceptions (R33)
    session_manager      finds the session of a message; joining, leaving and shutting down
    client_messages, task_specs, queries
                         the handlers of clients' messages; their options, and the views that they query
    engine_messages      the handlers of engines' messages
    sessions             the state of sessions, and the functions that clients sent
    budget, memory       the bytes held for clients; the memory of the machine
    outbox, batching     effects in, messages out: queues, windows, repeated sends
    auditor              deadlines of the core and missed heartbeats, as events
    serve, shutdown      the wiring, the nursery, an orderly end
    config, identity     settings; secrets and connection files
"""
