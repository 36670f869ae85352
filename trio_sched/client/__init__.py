"""The clients: a blocking `concurrent.futures.Executor` and an asynchronous one for trio and asyncio.

Empty on purpose: an engine imports `client.functional` and must not pay for the rest.
"""
