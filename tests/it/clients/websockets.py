# A client with websockets, from PyPI: python3 websockets.py PORT TOKEN. It fails by raising.
import json
import sys

sys.path.pop(0)  # This file has the name of the package.
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

port, token = sys.argv[1:]
TIMEOUT = 60


def url(query):
    return f"ws://127.0.0.1:{port}/v3/ws?{query}"


def receive(socket):
    return json.loads(socket.recv(timeout=TIMEOUT))


def close_of(socket):
    try:
        while True:
            socket.recv(timeout=TIMEOUT)
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason


with connect(url(f"sessionId=s&afterSeq=0&token={token}")) as socket:
    assert receive(socket)["event"] == "session.snapshot"
    socket.send(json.dumps({"type": "turn.submit", "sessionId": "s", "content": "hi"}))
    seq, turn = 1, None
    while True:
        message = receive(socket)
        if message.get("type") == "ack":
            turn = message["turnId"]
            continue
        seq += 1
        assert message["seq"] == seq, message
        if message["event"] == "turn.error":
            assert message["payload"]["turnId"] == turn
            break
    updated = receive(socket)
    assert updated["event"] == "session.updated", updated
    assert "activeTurnId" not in updated["payload"]["snapshot"]
    assert socket.ping(b"are you there").wait(TIMEOUT)
    socket.send(['{"type":', " " * 200000, '"ping"}'])
    assert receive(socket)["event"] == "heartbeat"
    socket.send(b"binary")
    assert close_of(socket) == (1003, "messages are texts")

with connect(url(f"sessionId=s&token={token}")) as socket:
    socket.send("x" * 1048577)
    assert close_of(socket)[0] == 1009

with connect(url("sessionId=s&token=wrong")) as socket:
    assert receive(socket) == {"error": "Unauthorized"}
    assert close_of(socket) == (4001, "unauthorized")
