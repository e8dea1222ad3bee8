#!/usr/bin/env python3
"""asgi_backend.py SOCKET: a FastAPI application whose clients nginx, or another broker, hands over.

From a checkout, after `make`:

    PYTHONPATH=bindings/python LD_LIBRARY_PATH=build/lib examples/python/asgi_backend.py SOCKET

With several processes, in the directory of this file:

    python3 -m handoff.asgi asgi_backend:app /run/app/ --workers 4

It needs FastAPI, uvicorn and, for WebSockets, websockets or wsproto.
"""

import asyncio
import sys

import handoff.asgi
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

SERVED_BY = {"X-Served-By": "handoff-asgi"}

app = FastAPI()


@app.get("/hello")
def hello(request: Request):
    """The client's address is what the broker says. Of X-Forwarded-For nothing is believed."""
    return PlainTextResponse(f"hello {request.client.host}\n", headers=SERVED_BY)


@app.post("/echo")
async def echo(request: Request):
    return Response(await request.body(), headers=SERVED_BY)


@app.get("/events")
async def events(n: int, ms: int = 0):
    async def each():
        for number in range(1, n + 1):
            if ms and number > 1:
                await asyncio.sleep(ms / 1000)
            yield f"data: {number}\n\n"
    return StreamingResponse(each(), media_type="text/event-stream", headers=SERVED_BY)


@app.websocket("/socket")
async def socket(websocket: WebSocket):
    await websocket.accept()
    try:
        await websocket.send_text(f"hello {websocket.client.host}, {websocket.url.scheme}")
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    handoff.asgi.run(app, sys.argv[1], access_log=False)
