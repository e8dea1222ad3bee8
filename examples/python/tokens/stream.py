"""The backend that streams: tokens of a language model, as server-sent events or over a WebSocket.

    python3 -m handoff.asgi stream:app /run/app/stream/ --workers 2 --header 'Connection: close'

front.py has allowed the first request of each connection, and sees no other. So each answer ends its
connection, and nginx asks front.py about the next one.
"""

import asyncio
import json

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection

app = FastAPI()


def allowed(connection: HTTPConnection) -> dict:
    """What front.py has said. It is in the metadata, which only nginx writes."""
    said = connection.scope["extensions"]["handoff"]["metadata"]
    if "data" not in said:
        raise HTTPException(403)
    return {**json.loads(said["data"]), "client": connection.client.host}


async def tokens(said: dict):
    """Stands for the model: one word after the other."""
    for word in f"{said['user']} at {said['client']} asks: {said['prompt']}".split():
        yield word
        await asyncio.sleep(0.02)


@app.get("/chat/events")
async def events(request: Request):
    said = allowed(request)

    async def each():
        async for token in tokens(said):
            yield f"data: {json.dumps(token)}\n\n"
        yield "event: end\ndata:\n\n"
    return StreamingResponse(each(), media_type="text/event-stream",
                             headers={"Cache-Control": "no-store"})


@app.websocket("/chat/socket")
async def socket(websocket: WebSocket):
    said = allowed(websocket)
    await websocket.accept()
    try:
        async for token in tokens(said):
            await websocket.send_json(token)
        await websocket.close()
    except WebSocketDisconnect:
        pass
