"""The strategist behind an OpenAI-compatible API, on the same engine that plays its episodes.

    request.py   what a client may ask for, checked
    text.py      tokens to text as they come, and where a stop string ends it
    replies.py   from a request to its sampled choices, over the engine; who may wait, and how long
    server.py    HTTP: routes, key, limits, streaming, start and stop
    measures.py  what /metrics tells
    __main__.py  the command: python -m epo_jax.serve --checkpoint=...
"""
