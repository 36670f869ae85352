"""The server: one Trio nursery around one actor that owns the state.

In the order in which a message passes them:

    peer_connection, native
                         the connection of a peer; the ZeroMQ front
    ingress              sorts what arrived into three channels, and keeps the order of arrival (R31)
    reader, intake, results, notifications
                         the three readers: messages in, events out; malformed messages are rejected here (R25)
    events               the server's own events and effects, in addition to the core's
    actor, guarded_scheduler
                         the turn: events in, effects out
    session_manager      which session a message belongs to; joining, leaving and shutting down
    client_messages, engine_messages, task_specs, queries
                         what the messages of sessions mean
    sessions, budget, memory
                         the state: sessions, functions, and the bytes that are held
    outbox, batching     effects in, messages out; windows, gathering, sending again
    auditor              what happens because time passes
    serve, shutdown, config, identity
                         the wiring, the nursery, an orderly end; settings and secrets
"""
