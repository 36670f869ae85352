"""The clients: a blocking `concurrent.futures.Executor`, and an asynchronous client for trio and asyncio.

Has no imports: an engine imports `client.conditions` and must not load the rest.
"""
