"""Hourly grid intensity from Electricity Maps, kept beside the results, so that each hour is asked for once.

The token is read from ``ELECTRICITY_MAPS_TOKEN`` and goes into the request's header alone: no file and no message holds
it. ``ELECTRICITY_MAPS_URL`` names another server of the same interface (``GET /carbon-intensity/past-range``, at most
ten days of hours a request).
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..store import atomic

TOKEN, URL = "ELECTRICITY_MAPS_TOKEN", "ELECTRICITY_MAPS_URL"
SERVER = "https://api.electricitymaps.com/v3"
HOUR, MOST_HOURS, PATIENCE_S = 3600, 240, 20.0


class Unanswered(Exception):
    """The service gave no figures, for a reason without the token."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes to the server that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Hours:
    """The hours that are known of one zone: Unix second of the hour's start → (g/kWh, when it was fetched)."""

    def __init__(self, zone: str, folder: str | Path) -> None:
        """``folder``: where they are kept, as ``electricity-maps-<zone>.csv``. Raises UserError for a damaged file."""
        self.zone = zone
        self.path = Path(folder) / f"electricity-maps-{zone}.csv"
        self.known: dict[int, tuple[float, str]] = {}
        if not self.path.is_file():
            return
        try:
            with open(self.path, encoding="utf-8", newline="") as handle:
                for row in csv.DictReader(handle):
                    start = int(dt.datetime.fromisoformat(row["utc"]).timestamp())
                    self.known[start] = (_grams(row["g_per_kwh"]), row["fetched_utc"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); remove it to ask again") from None

    def fetch(self, hours: Iterable[int], env: Mapping[str, str] = os.environ) -> None:
        """Ask for the ``hours`` that are not known, and keep them. Raises Unanswered."""
        for span in _spans(sorted(set(hours) - self.known.keys())):
            self._ask(span, env)

    def mean(self, times: Sequence[float], joules: Sequence[float]) -> tuple[float, str]:
        """(g/kWh weighted by the joules spent at each time, its source with when it was fetched). Raises Unanswered."""
        if not times:
            raise Unanswered("no power trace says when it ran")
        hours = [hour_of(t) for t in times]
        missing = [hour for hour in hours if hour not in self.known]
        if missing:
            raise Unanswered(f"no figure for {_iso(min(missing))}")
        total = math.fsum(joules)
        weights = joules if total > 0 else [1.0] * len(hours)
        mean = math.fsum(self.known[h][0] * w for h, w in zip(hours, weights, strict=True)) / math.fsum(weights)
        fetched = max(self.known[hour][1] for hour in hours)
        return mean, f"Electricity Maps, {self.zone}, fetched {fetched}"

    def _ask(self, span: tuple[int, int], env: Mapping[str, str]) -> None:
        token = env.get(TOKEN)
        if not token:
            raise Unanswered(f"{TOKEN} is not set")
        server = env.get(URL, SERVER).rstrip("/")
        if not server.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise Unanswered(f"{URL} is not https: the token is not sent there")
        query = urllib.parse.urlencode({"zone": self.zone, "start": _iso(span[0]), "end": _iso(span[1] + HOUR)})
        request = urllib.request.Request(f"{server}/carbon-intensity/past-range?{query}", headers={"auth-token": token})
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE_S) as answer:
                data = json.loads(answer.read(10_000_000))
            found = {hour_of(_stamp(row["datetime"])): row["carbonIntensity"] for row in data["data"]}
            found = {hour: _grams(value) for hour, value in found.items() if value is not None}
        except urllib.error.HTTPError as error:
            raise Unanswered(f"HTTP {error.code}") from None
        except (OSError, urllib.error.URLError) as error:
            raise Unanswered(str(getattr(error, "reason", error))) from None
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswered(f"its answer is not understood ({type(error).__name__})") from None
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.known |= {hour: (value, now) for hour, value in found.items() if span[0] <= hour <= span[1]}
        self._keep()

    def _keep(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["utc", "g_per_kwh", "fetched_utc"])
        writer.writerows([_iso(hour), value, fetched] for hour, (value, fetched) in sorted(self.known.items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path, text.getvalue())


def hour_of(t: float) -> int:
    return int(t // HOUR) * HOUR


def _spans(hours: Sequence[int]) -> list[tuple[int, int]]:
    """First and last hour of each request."""
    spans: list[tuple[int, int]] = []
    for hour in hours:
        if spans and hour - spans[-1][0] < MOST_HOURS * HOUR and hour - spans[-1][1] <= 24 * HOUR:
            spans[-1] = (spans[-1][0], hour)
        else:
            spans.append((hour, hour))
    return spans


def _iso(hour: int) -> str:
    return dt.datetime.fromtimestamp(hour, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _stamp(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


def _grams(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"g/kWh is {value}")
    return number
