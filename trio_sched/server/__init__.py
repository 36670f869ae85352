"""The server: one Trio nursery around one actor that owns the state.

In the order in which a message meets them:

    links, native        a peer's connection; the ZeroMQ front and its pump
    hub                  sorts what came into three lanes, and brings events to the actor in R31's order
    reader, intake, results, notifications
                         the three readers: messages in, events out; what cannot be read is dropped here (R25)
    happenings           the server's own events and effects, beside the core's
    actor, reception, queries
                         the turn: the core for tasks, reception for sessions, queries for views
    sessions, functions  who is here, and the functions that they sent
    outbox, parcels      effects in, messages out; windows, gathering, sending again
    auditor, alarm       what happens because time passes
    serve, config, identity
                         all of it put together: settings, secrets, the nursery, an orderly end
"""
