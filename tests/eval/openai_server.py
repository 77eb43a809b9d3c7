"""A server that speaks OpenAI's protocol, writes from a table of word pairs, and can be told to misbehave."""

import contextlib
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

WORDS = np.array([f"w{number}" for number in range(40)])


class FakeServer:
    """What the server does, and what it was asked.

    Args:
      ignores: settings that it reads and does not follow.
      rejects: fields that it answers with 400.
      noise: of the numbers that words are chosen by; from request to request another.
      parses_thinking: whether thinking has a field of its own, rather than standing before ``</think>``.
      usage: whether it counts tokens.
      failures: what happens to the next requests, one each: a status, headers and a body; ``"drop"`` for a connection
        that ends, or ``"half"`` for a stream without an end.
      answers: texts by question; other questions get words without end. Text before ``</think>`` is left out without
        thinking.
      key: which a request must bring.
      models: what it lists; None for a failure of the list.
    """

    def __init__(
        self, *, ignores=(), rejects=(), noise=0.0, parses_thinking=True, usage=True, failures=(), answers=None,
        key=None, models=({"id": "fake"},),
    ):  # fmt: skip
        self.ignores, self.rejects, self.noise = set(ignores), set(rejects), noise
        self.parses_thinking, self.usage, self.key, self.models = parses_thinking, usage, key, models
        self.failures, self.answers = list(failures), answers or {}
        self.bodies, self.running, self.most_running, self.lock = [], 0, 0, threading.Lock()
        self.hold = lambda body: None
        self._shake = np.random.default_rng(0)

    @contextlib.contextmanager
    def serve(self):
        """Serves on a free port; gives the address."""
        handler = type("Handler", (_Handler,), {"fake": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.stop = server.shutdown, server.server_close
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            for action in self.stop:
                action()

    def setting(self, body, name, default):
        return default if name in self.ignores else body.get(name, default)

    def write(self, prompt, body):
        """The text and the finish reason."""
        limit = body.get("max_tokens", 16)
        if prompt in self.answers:
            words = self.answers[prompt].split(" ")
            text = " ".join(words[:limit])
            ends = [end for stop in body.get("stop", ()) if (end := text.find(stop)) >= 0]
            if ends:
                return text[: min(ends)], "stop"
            return text, "stop" if len(words) <= limit else "length"
        rng = np.random.default_rng(self.setting(body, "seed", None))
        logits = np.random.default_rng(zlib.crc32(prompt.encode())).normal(size=(len(WORDS), len(WORDS))) * 2
        with self.lock:
            logits = logits + self.noise * self._shake.normal(size=logits.shape)
        temperature, top_k = body.get("temperature", 1.0), self.setting(body, "top_k", 0)
        penalty, written = self.setting(body, "presence_penalty", 0.0), [0]
        for _ in range(limit):
            scores = logits[written[-1]].copy()
            scores[list(set(written[1:]))] -= penalty
            if temperature:
                scores = scores / temperature + rng.gumbel(size=len(scores))
                if top_k:
                    scores[np.argsort(-logits[written[-1]])[top_k:]] = -np.inf
            written.append(int(scores.argmax()))
        return " ".join(WORDS[written[1:]]), "length"


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, value, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        for pair in dict(headers).items():
            self.send_header(*pair)
        self.end_headers()
        self.wfile.write(body)

    def refused(self):
        if self.fake.key is not None and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self.send(401, {"error": {"message": "no such key"}})
            return True
        return False

    def do_GET(self):
        if self.refused():
            return
        if self.fake.models is None:
            self.send(500, b"no list")
        elif self.path == "/v1/models":
            self.send(200, {"data": list(self.fake.models)})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self):
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        with fake.lock:
            fake.bodies.append(body)
            fake.running += 1
            fake.most_running = max(fake.most_running, fake.running)
            failure = fake.failures.pop(0) if fake.failures else None
        try:
            fake.hold(body)
            self.answer(body, failure)
        finally:
            with fake.lock:
                fake.running -= 1

    def answer(self, body, failure):
        wrong = [name for name in body if name in self.fake.rejects]
        if failure == "drop":
            self.close_connection = True
        elif failure is not None and failure != "half":
            status, headers, value = failure
            self.send(status, value, headers)
        elif wrong:
            self.send(400, {"error": {"message": f"unknown field\n{wrong[0]}"}})
        else:
            self.stream(body, whole=failure is None)

    def stream(self, body, whole):
        is_chat = self.path == "/v1/chat/completions"
        prompt = body["messages"][-1]["content"] if is_chat else body["prompt"]
        if not isinstance(prompt, str):
            prompt = "".join(part.get("text", "") for part in prompt)
        text, reason = self.fake.write(prompt, body)
        thinks = False
        if is_chat:
            switch = body.get("chat_template_kwargs", {}).get("enable_thinking", False)
            thinks = switch and "thinking" not in self.fake.ignores
            parts = text.split("</think>", 1)
            if not thinks:
                text = parts[-1].lstrip("\n")
        pieces = [{"content": text}] if is_chat else [{"text": text}]
        if thinks and self.fake.parses_thinking:
            pieces = [{"reasoning_content": parts[0]}, {"content": parts[1] if len(parts) == 2 else ""}]
        elif is_chat:
            pieces = [{"content": piece} for piece in (text[:7], text[7:])]
            if self.fake.parses_thinking:
                # Some servers take the empty block of the prompt for a thought.
                pieces.insert(0, {"reasoning_content": "\n\n"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.event({"choices": [{"index": 0, "finish_reason": None} | ({"delta": piece} if is_chat else piece)]})
        self.close_connection = True
        if not whole:
            return
        self.event({"choices": [{"index": 0, "finish_reason": reason}]})
        if self.fake.usage:
            counts = {
                "prompt_tokens": len(prompt.split()) + (2 if thinks else 4),
                "completion_tokens": len(text.split()),
            }
            self.event({"choices": [], "usage": counts})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()
