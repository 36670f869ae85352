"""The clients: a blocking `concurrent.futures.Executor`, and an asynchronous client for trio and asyncio.

Has no imports: an engine imports `client.functional` and must not load the rest.
"""
