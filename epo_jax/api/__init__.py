"""Models behind an OpenAI-compatible API: a client that survives what servers do.

    settings.py    what a configuration says about one such model
    client.py      `ApiClient.complete`: cache, budget, limits, retries, pauses around single tries
    structured.py  `ask`: an answer that fits a schema and passes a check, asked again where it does not
    exchange.py    one try: one HTTP request, told as an `Answer` or a `Fault`
    cache.py, budget.py (both on database.py), limits.py, breaker.py, totals.py, clock.py    the parts of the client
    failures.py    what can go wrong, and for whom: a try, a call, or the run
"""
