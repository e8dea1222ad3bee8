"""The application that decides: who asks, and may they have an answer. It ends after milliseconds.

    uvicorn front:app --uds /run/app/front.sock

To a client that may, it answers X-Accel-Redirect. nginx then hands the client's connection to
stream.py, which holds it for as long as the answer takes. What stream.py must know goes in
X-Handoff-Data, which nginx puts into the metadata: no client can write there.
"""

import json

from fastapi import FastAPI, Header, HTTPException, Response

USERS = {"token-of-ada": "ada", "token-of-bob": "bob"}  # a real one asks its database

app = FastAPI()


def user_of(authorization: str) -> str:
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or token not in USERS:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    return USERS[token]


@app.get("/chat/events")
@app.get("/chat/socket")  # a WebSocket begins as a GET, too
def chat(prompt: str = "", authorization: str = Header("")):
    data = {"user": user_of(authorization), "prompt": prompt[:1000]}
    return Response(headers={"X-Accel-Redirect": "/stream/", "X-Handoff-Data": json.dumps(data)})
