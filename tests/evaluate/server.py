"""A real HTTP server that speaks the chat-completions API; its answers come from a function of the prompt."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextlib.contextmanager
def chat_server(answer: Callable[[dict], tuple[int, dict]]) -> Iterator[tuple[str, list[dict]]]:
    """Yield (base URL, requests received). ``answer(body)`` gives status and JSON."""
    received: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, reply = answer(body)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str, top: dict[str, float] | None = None) -> tuple[int, dict]:
    """A successful reply with 10 prompt and 2 completion tokens."""
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top:
        best = [{"token": token, "logprob": value} for token, value in top.items()]
        choice["logprobs"] = {"content": [{**best[0], "top_logprobs": best}]}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}
