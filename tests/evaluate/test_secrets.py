"""The judge's key is in no file, whatever the server answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distill_energy.config import parse_config
from distill_energy.errors import UserError
from distill_energy.evaluate import judges, stage

from .support import benchmarks, context

KEY = "sk-verysecret-0123456789"


class Handler(BaseHTTPRequestHandler):
    """Echoes what it was sent, in the way that its path asks for."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        way = self.server.way
        sent = self.headers.get("Authorization", "")
        self.server.seen.append(sent)
        if way == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            self.end_headers()
            return
        content = {"choices": [{"message": {"content": f"A, as {sent} says"}}]}
        status, data = (200, json.dumps(content)) if way == "answer" else (401, f"bad key: {sent}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = []

    def start(way, elsewhere=None):
        one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        one.way, one.elsewhere, one.seen = way, elsewhere, []
        threading.Thread(target=one.serve_forever, daemon=True).start()
        made.append(one)
        return one, f"http://127.0.0.1:{one.server_port}/v1"

    yield start
    for one in made:
        one.shutdown()
        one.server_close()


def everything_in(folder: Path) -> str:
    """Every file's bytes as text, Parquet decoded."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
            if path.suffix == ".parquet":
                found.append(json.dumps(pq.read_table(path).to_pylist(), default=str))
                found.append(str(pq.read_schema(path).metadata))
    return "\n".join(found)


@pytest.mark.parametrize("way", ["refuse", "answer", "redirect"])
def test_the_key_is_in_no_file_and_goes_to_no_other_host(tmp_path, monkeypatch, server, capfd, way):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(judges, "RETRIES", 1)
    thief, thief_url = server("answer")
    _, url = server(way, f"{thief_url.replace('127.0.0.1', 'localhost')}/chat/completions")
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps([{"instruction": "Say it.", "output": "it"}]))
    judge = {"kind": "openai", "model": "m", "base_url": url}
    suite = benchmarks(
        b={"kind": "alpaca_eval", "judge": judge, "reference": str(reference), "max_new_tokens": 2},
        choice={"kind": "choice", "items": 2},
    )
    said = []
    ctx = context(tmp_path / "stage", suite)
    ctx.log = said.append
    ended = ""
    try:
        ended = json.dumps(stage.main(ctx))
    except UserError as error:
        ended = str(error)
    assert KEY not in everything_in(tmp_path) + ended + "\n".join(said) + "".join(capfd.readouterr())
    assert thief.seen == []
    assert (way == "answer") == ("b.score" in ended), ended


@pytest.mark.parametrize("url", ["https://me:pass@host/v1", "https://host/v1?key=1", "host/v1", "ftp://host"])
def test_credentials_in_a_url_are_refused(repo, url):
    import yaml

    data = yaml.safe_load((repo / "config.yaml").read_text())
    judge = {"kind": "openai", "model": "m", "base_url": url}
    data["evaluation"]["benchmarks"]["b"] = {"kind": "alpaca_eval", "judge": judge, "reference": "r.json"}
    data["evaluation"]["suites"]["demo"].append("b")
    with pytest.raises(UserError, match="base_url") as caught:
        parse_config(data)
    assert "me:pass" not in str(caught.value) and "key=1" not in str(caught.value)
