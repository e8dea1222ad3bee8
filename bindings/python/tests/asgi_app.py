"""An ASGI application of the tests, without a framework: it tells what it is told."""

import asyncio
import json

state = {"lifespan": "none"}


async def app(scope, receive, send):
    await {"lifespan": lifespan, "http": http, "websocket": websocket}[scope["type"]](
        scope, receive, send)


async def lifespan(scope, receive, send):
    assert (await receive())["type"] == "lifespan.startup"
    state["lifespan"] = "up"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    print("lifespan: down", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def broken(scope, receive, send):
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.failed", "message": "as the test wants it"})


def told(scope):
    return {name: scope[name] for name in ("client", "server", "scheme", "extensions", "path")}


async def http(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        for number in range(10):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await asyncio.sleep(0.1)
        answer = b""
    elif scope["path"] == "/big":
        answer = bytes(int(scope["query_string"]))
    elif scope["path"] == "/echo":
        answer = body
    else:
        answer = json.dumps({**told(scope), "lifespan": state["lifespan"]}).encode()
    await send({"type": "http.response.body", "body": answer})


async def websocket(scope, receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(told(scope))})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
