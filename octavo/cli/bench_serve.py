"""`octavo bench serve`: load on a server that speaks OpenAI's API, and how it bears it."""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from octavo.errors import InvalidRequestError

PERCENTILES = (50, 90, 99)
TOKEN_IDS = range(10, 250)
"""What prompts are made of: ids that every vocabulary has."""
COLOURS = {"time to first token": "#8a4b2a", "time per output token": "#2a6b8a", "whole request": "#5a7a2a"}


@dataclass
class Outcome:
    """One request's times, in seconds from its start."""

    error: str | None = None
    first: float = 0.0
    whole: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def per_token(self) -> float:
        return (self.whole - self.first) / max(1, self.output_tokens - 1)


def prompt_length(kind: str, mean: int, rng: random.Random) -> int:
    """`fixed`, `uniform` between half and one and a half, or `exponential` around the mean."""
    if kind == "uniform":
        return max(1, rng.randint(mean // 2, mean + mean // 2))
    if kind == "exponential":
        return max(1, min(8 * mean, round(rng.expovariate(1 / mean))))
    return mean


async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> Outcome:
    """Send a streaming request and time what comes."""
    outcome, start = Outcome(), time.perf_counter()
    last = start
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return Outcome(error=f"{response.status_code}: {response.text[:200]}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event, now = json.loads(line[6:]), time.perf_counter()
                if "error" in event:
                    return Outcome(error=event["error"]["message"])
                if usage := event.get("usage"):
                    outcome.prompt_tokens, outcome.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                if not event["choices"]:
                    continue
                if not outcome.first:
                    outcome.first = now - start
                else:
                    outcome.gaps.append(now - last)
                last = now
    except httpx.HTTPError as error:
        return Outcome(error=f"{type(error).__name__}: {error}")
    outcome.whole = last - start
    return outcome


async def load(namespace: argparse.Namespace) -> tuple[list[Outcome], float]:
    """All requests' outcomes, and the seconds they took together."""
    rng = random.Random(namespace.seed)
    headers = {"Authorization": f"Bearer {namespace.api_key}"} if namespace.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=namespace.max_concurrency)
    gate = asyncio.Semaphore(namespace.max_concurrency)
    async with httpx.AsyncClient(base_url=namespace.url, headers=headers, limits=limits, timeout=600) as client:
        model = namespace.model or (await _models(client))[0]
        bar = tqdm(total=namespace.num_prompts, unit="request", desc="Load", disable=not sys.stderr.isatty())

        async def guarded(body: dict[str, Any]) -> Outcome:
            async with gate:
                outcome = await one(client, body)
            bar.update(1)
            return outcome

        start, tasks = time.perf_counter(), []
        for _ in range(namespace.num_prompts):
            count = prompt_length(namespace.input_distribution, namespace.input_len, rng)
            body = {
                "model": model,
                "prompt": rng.choices(TOKEN_IDS, k=count),
                "max_tokens": namespace.output_len,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            tasks.append(asyncio.create_task(guarded(body)))
            if namespace.request_rate:
                await asyncio.sleep(rng.expovariate(namespace.request_rate))  # Poisson arrivals
        outcomes = await asyncio.gather(*tasks)
        bar.close()
    return outcomes, time.perf_counter() - start


async def _models(client: httpx.AsyncClient) -> list[str]:
    try:
        answer = await client.get("/v1/models")
        return [card["id"] for card in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise InvalidRequestError(
            f"no server answers at {client.base_url}: {error}. Start one, or give --url."
        ) from error


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """Throughput, and percentiles of the times in milliseconds."""
    good = [o for o in outcomes if o.error is None]

    def percentiles(values: list[float]) -> dict[str, float]:
        if not values:
            return {}
        figures = np.percentile(np.array(values) * 1e3, PERCENTILES)
        named = {f"p{p}": round(float(v), 2) for p, v in zip(PERCENTILES, figures, strict=True)}
        return {"mean": round(float(np.mean(values)) * 1e3, 2), **named}

    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "errors": sorted({o.error for o in outcomes if o.error})[:5],
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(good) / seconds, 2),
        "prompt_tokens_per_second": round(sum(o.prompt_tokens for o in good) / seconds, 1),
        "output_tokens_per_second": round(sum(o.output_tokens for o in good) / seconds, 1),
        "ttft_ms": percentiles([o.first for o in good]),
        "tpot_ms": percentiles([o.per_token for o in good if o.output_tokens > 1]),
        "itl_ms": percentiles([gap for o in good for gap in o.gaps]),
        "e2e_ms": percentiles([o.whole for o in good]),
    }


def plot(outcomes: list[Outcome]) -> str:
    """An SVG picture: for each kind of time, the share of requests that took at most so long."""
    good = [o for o in outcomes if o.error is None]
    kinds = {
        "time to first token": [o.first for o in good],
        "time per output token": [o.per_token for o in good],
        "whole request": [o.whole for o in good],
    }
    width, height, left, low = 720, 360, 60, 320
    positive = [v for values in kinds.values() for v in values if v > 0] or [1.0]
    bottom, top = np.log10(min(positive)), np.log10(max(positive) * 1.05)

    def x(value: float) -> float:
        return float(left + (width - left - 20) * (np.log10(max(value, 10**bottom)) - bottom) / max(1e-9, top - bottom))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for share in (0, 25, 50, 75, 100):
        y = low - 280 * share / 100
        parts.append(f'<path d="M{left} {y}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" font-size="12" text-anchor="end">{share}%</text>')
    for power in range(int(np.floor(bottom)), int(np.ceil(top)) + 1):
        if bottom <= power <= top:
            parts.append(f'<path d="M{x(10**power):.1f} {low - 280}V{low}" stroke="#ddd"/>')
            label = f"{10**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms"
            parts.append(
                f'<text x="{x(10**power):.1f}" y="{low + 18}" font-size="12" text-anchor="middle">{label}</text>'
            )
    for i, (name, values) in enumerate(kinds.items()):
        ordered = sorted(values)
        steps = (f"{x(v):.1f},{low - 280 * (j + 1) / len(ordered):.1f}" for j, v in enumerate(ordered))
        colour = COLOURS[name]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(steps)}"/>')
        parts.append(f'<text x="{left + 10}" y="{60 + 18 * i}" font-size="13" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"])


def run(namespace: argparse.Namespace) -> int:
    outcomes, seconds = asyncio.run(load(namespace))
    result = summary(outcomes, seconds)
    if namespace.save:
        folder = Path(namespace.save)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n")
        (folder / "times.svg").write_text(plot(outcomes))
    if namespace.json:
        print(json.dumps(result))
        return 0
    print(f"{result['requests']} requests in {result['seconds']} s, {result['failed']} failed")
    for message in result["errors"]:
        print(f"  {message}")
    for key, label in (
        ("output_tokens", "output tokens"),
        ("prompt_tokens", "prompt tokens"),
        ("requests", "requests"),
    ):
        print(f"{label} a second: {result[f'{key}_per_second']}")
    print(f"\n{'milliseconds':26s}" + "".join(f"{c:>10s}" for c in ("mean", *(f"p{p}" for p in PERCENTILES))))
    names = {"ttft_ms": "time to first token", "tpot_ms": "time per output token", "itl_ms": "between tokens"}
    for key, label in {**names, "e2e_ms": "whole request"}.items():
        print(f"{label:26s}" + "".join(f"{v:10.2f}" for v in result[key].values()))
    return 0
