"""Grid intensity from Electricity Maps, of which a local server stands in the place."""

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from test_carbon_series import NOON, trace

from distill_energy.config.load import load_config
from distill_energy.errors import UserError
from distill_energy.ledger.carbon import apply_grid
from distill_energy.ledger.electricity_maps import Hours

SECRET = "tok-12345-secret"
GRID = {"electricity_maps": "FR", "g_per_kwh": 50.0, "source": "ours"}


class Service:
    """The service's interface as documented: hours of [start, end), the token in a header."""

    def __init__(self):
        self.asked, self.mode = [], "right"
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlparse(self.path)
                query = {key: value[0] for key, value in parse_qs(url.query).items()}
                service.asked.append((url.path, query, self.headers.get("auth-token")))
                if service.mode == "redirect":
                    self.send_response(302)
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                    self.end_headers()
                    return
                if self.headers.get("auth-token") != SECRET or service.mode == "down":
                    self.send_response(401 if service.mode != "down" else 503)
                    self.end_headers()
                    return
                start, end = (dt.datetime.fromisoformat(query[key]) for key in ("start", "end"))
                rows = []
                while start < end:
                    # 100 g/kWh before 13:00 UTC, 400 after
                    value = 100 if start.hour < 13 else 400
                    rows.append({"datetime": start.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "carbonIntensity": value})
                    start += dt.timedelta(hours=1)
                if service.mode == "hole":
                    rows = rows[:1]
                body = json.dumps({"zone": query["zone"], "data": rows}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>" if service.mode == "garbage" else body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service(monkeypatch):
    found = Service()
    monkeypatch.setenv("ELECTRICITY_MAPS_TOKEN", SECRET)
    monkeypatch.setenv("ELECTRICITY_MAPS_URL", found.url)
    yield found
    found.server.shutdown()
    found.server.server_close()


def rows_of(tmp_path, minutes=(1000.0,) * 120):
    return [{"total_j": sum(minutes), "path": trace(tmp_path / "x", list(minutes))}]


def test_weighted_by_when_the_joules_were_spent_and_asked_for_once(tmp_path, service):
    """20 kJ before 13:00, 60 kJ after."""
    rows = rows_of(tmp_path, [1000.0] * 20 + [0.0] * 40 + [1000.0] * 60)
    apply_grid(rows, {"pue": 1.2, "grid": GRID}, tmp_path / "grid", ask=True)
    assert rows[0]["intensity_g_per_kwh"] == pytest.approx(325.0)
    assert rows[0]["co2e_g"] == pytest.approx(80_000 / 3.6e6 * 1.2 * 325.0)
    assert rows[0]["grid_source"].startswith("Electricity Maps, FR, fetched 20")
    ((path, query, token),) = service.asked
    assert path == "/carbon-intensity/past-range" and token == SECRET
    assert query == {"zone": "FR", "start": "2026-01-01T12:00:00Z", "end": "2026-01-01T14:00:00Z"}
    again = rows_of(tmp_path, [1000.0] * 20 + [0.0] * 40 + [1000.0] * 60)
    apply_grid(again, {"pue": 1.2, "grid": GRID}, tmp_path / "grid", ask=True)
    assert again == rows and len(service.asked) == 1, "kept beside the results"
    apply_grid(again, {"pue": 1.2, "grid": GRID}, tmp_path / "grid")
    assert again == rows, "who only reads needs neither network nor token"


def test_the_token_is_in_no_file_and_no_row(tmp_path, service):
    rows = rows_of(tmp_path)
    for service.mode in ("right", "down", "garbage"):
        apply_grid(rows, {"grid": GRID}, tmp_path / f"grid-{service.mode}", ask=True)
        assert SECRET not in json.dumps(rows)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("down", "HTTP 503"),
        ("garbage", "not understood"),
        ("hole", "no figure for 2026-01-01T13:00:00Z"),
        ("redirect", "HTTP 302"),
    ],
)
def test_a_failure_falls_back_to_what_is_configured_and_says_why(tmp_path, service, mode, reason):
    service.mode = mode
    rows = rows_of(tmp_path)
    apply_grid(rows, {"pue": 1.0, "grid": GRID}, tmp_path / "grid", ask=True)
    assert rows[0]["intensity_g_per_kwh"] == 50.0 and rows[0]["co2e_g"] > 0
    assert rows[0]["grid_source"] == f"ours (Electricity Maps, FR: {rows[0]['grid_source'].partition('FR: ')[2]}"
    assert reason in rows[0]["grid_source"]
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ELECTRICITY_MAPS_TOKEN", "", "ELECTRICITY_MAPS_TOKEN is not set"),
        ("ELECTRICITY_MAPS_TOKEN", "wrong", "HTTP 401"),
        ("ELECTRICITY_MAPS_URL", "http://127.0.0.1:9", "refused"),
        ("ELECTRICITY_MAPS_URL", "http://example.org", "not https"),
    ],
)
def test_without_token_or_server_too(tmp_path, service, monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    rows = rows_of(tmp_path)
    apply_grid(rows, {"grid": {"electricity_maps": "FR"}}, tmp_path / "grid", ask=True)
    assert rows[0]["intensity_g_per_kwh"] == 475.0, "no table is configured: the world's mean, and said"
    assert reason in rows[0]["grid_source"] and "world average" in rows[0]["grid_source"]


def test_a_row_without_a_trace_falls_back(tmp_path, service):
    rows = [{"total_j": 5.0, "path": str(tmp_path / "none")}, {"total_j": 5.0, "path": None}]
    apply_grid(rows, {"grid": GRID}, tmp_path / "grid", ask=True)
    assert [row["intensity_g_per_kwh"] for row in rows] == [50.0, 50.0] and service.asked == []
    assert all("no power trace" in row["grid_source"] for row in rows)


def test_requests_are_of_ten_days_at_most(tmp_path, service):
    start = int(NOON.timestamp())
    hours = Hours("FR", tmp_path)
    hours.fetch(range(start, start + 300 * 3600, 3600))
    assert len(service.asked) == 2 and len(hours.known) == 300
    hours.fetch([start + 1000 * 3600])
    assert len(service.asked) == 3 and len(Hours("FR", tmp_path).known) == 301


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "electricity-maps-FR.csv").write_text("utc,g_per_kwh,fetched_utc\nx,1,y\n")
    with pytest.raises(UserError, match=r"electricity-maps-FR\.csv"):
        Hours("FR", tmp_path)


@pytest.mark.parametrize("grid", ["electricity_maps: ../x", "electricity_maps: FR, series: a.csv"])
def test_configuration(repo, tmp_path, grid):
    text = (repo / "config.yaml").read_text()
    assert "  grid: {country: null}" in text
    (tmp_path / "c.yaml").write_text(text.replace("  grid: {country: null}", f"  grid: {{{grid}}}"))
    with pytest.raises(UserError, match="grid"):
        load_config(tmp_path / "c.yaml")
