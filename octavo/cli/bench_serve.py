"""`octavo bench serve`: load on a server that speaks OpenAI's API, and how it bears it."""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from octavo.cli.bench_flags import SENT
from octavo.cli.bench_prompts import file_prompts
from octavo.cli.flags import take_model
from octavo.cli.vllm_flags import say_vllm_flags
from octavo.errors import ConfigError, InvalidRequestError
from octavo.option_types import as_mapping

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
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


@dataclass
class Target:
    """Where requests go, and as what.

    Args:
        namespace: the flags.

    Raises ConfigError for flags that cannot be.
    """

    namespace: argparse.Namespace
    url: str = ""
    endpoint: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    texts: list[str] | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        given = self.namespace
        self.url = (given.url or f"http://{given.host}:{given.port}").rstrip("/").removesuffix("/v1")
        self.endpoint = given.endpoint or CHATS if "chat" in given.backend else given.endpoint or COMPLETIONS
        if self.endpoint not in (CHATS, COMPLETIONS):
            raise ConfigError(f"--endpoint {self.endpoint} is not measured; give {COMPLETIONS} or {CHATS}.")
        if given.api_key:
            self.headers["Authorization"] = f"Bearer {given.api_key}"
        self.headers |= dict(pair.partition("=")[::2] for pair in given.header)
        self.more = {name: value for name in SENT if (value := getattr(given, name)) is not None}
        self.more = {"temperature": 0, **self.more, **as_mapping(given.extra_body, "--extra-body")}
        if given.chat_template_kwargs:
            self.more["chat_template_kwargs"] = as_mapping(given.chat_template_kwargs, "--chat-template-kwargs")
        if (found := file_prompts(given)) is not None:
            self.texts = [text for text, _ in found]

    @property
    def is_chat(self) -> bool:
        return self.endpoint == CHATS

    def body(self, model: str, rng: random.Random, number: int) -> dict[str, Any]:
        """A request."""
        given = self.namespace
        body = {"model": model, "max_tokens": given.output_len, "ignore_eos": True, "stream": True, **self.more}
        body["stream_options"] = {"include_usage": True}
        if self.texts is not None:
            prompt: Any = self.texts[number % len(self.texts)]
        else:
            count = prompt_length(given.input_distribution, given.input_len, rng)
            spread = int(count * given.random_range_ratio)
            prompt = [17 + i % 200 for i in range(given.random_prefix_len)]
            prompt += rng.choices(TOKEN_IDS, k=max(1, count + (rng.randint(-spread, spread) if spread else 0)))
        if not self.is_chat:
            return {**body, "prompt": prompt}
        text = prompt if isinstance(prompt, str) else " ".join(f"w{token}" for token in prompt)
        body["logprobs"] = bool(body.get("logprobs"))
        return {**body, "messages": [{"role": "user", "content": text}]}


async def one(client: httpx.AsyncClient, target: Target, body: dict[str, Any]) -> Outcome:
    """Send a streaming request and time what comes."""
    outcome, start = Outcome(), time.perf_counter()
    last, headers = start, {"X-Request-Id": f"{target.namespace.request_id_prefix}{next(target.numbers)}"}
    try:
        async with client.stream("POST", target.endpoint, json=body, headers=headers) as response:
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
    rng, target = random.Random(namespace.seed), Target(namespace)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=namespace.max_concurrency)
    gate = asyncio.Semaphore(namespace.max_concurrency)
    options: dict[str, Any] = {"headers": target.headers, "limits": limits, "verify": not namespace.insecure}
    async with httpx.AsyncClient(base_url=target.url, timeout=600, **options) as client:
        model = namespace.model or (await _models(client, namespace.ready_check_timeout_sec))[0]
        for number in range(namespace.num_warmups):
            await one(client, target, target.body(model, rng, number))
        is_quiet = namespace.disable_tqdm or not sys.stderr.isatty()
        bar = tqdm(total=namespace.num_prompts, unit="request", desc="Load", disable=is_quiet)

        async def guarded(body: dict[str, Any]) -> Outcome:
            async with gate:
                outcome = await one(client, target, body)
            bar.update(1)
            return outcome

        start, tasks = time.perf_counter(), []
        for number in range(namespace.num_prompts):
            tasks.append(asyncio.create_task(guarded(target.body(model, rng, number))))
            if namespace.request_rate and math.isfinite(namespace.request_rate):
                shape = namespace.burstiness  # gamma's; 1 is an exponential, of Poisson arrivals
                await asyncio.sleep(rng.gammavariate(shape, 1 / (namespace.request_rate * shape)))
        outcomes = await asyncio.gather(*tasks)
        bar.close()
    return outcomes, time.perf_counter() - start


async def _models(client: httpx.AsyncClient, seconds: int = 0) -> list[str]:
    """The server's models, once it answers, for which it has so many seconds."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with contextlib.suppress(httpx.HTTPError):
            if (await client.get("/health")).status_code == 200:
                break
        await asyncio.sleep(0.2)
    try:
        answer = await client.get("/v1/models")
        return [card["id"] for card in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise InvalidRequestError(
            f"no server answers at {client.base_url}: {error}. Start one, or give --url."
        ) from error


def summary(outcomes: list[Outcome], seconds: float, ranks: Sequence[float] = PERCENTILES) -> dict[str, Any]:
    """Throughput, and percentiles of the times in milliseconds."""
    good = [o for o in outcomes if o.error is None]

    def percentiles(values: list[float]) -> dict[str, float]:
        if not values:
            return {}
        figures = np.percentile(np.array(values) * 1e3, ranks)
        named = {f"p{p:g}": round(float(v), 2) for p, v in zip(ranks, figures, strict=True)}
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


NAMES = {"ttft": "ttft_ms", "tpot": "tpot_ms", "itl": "itl_ms", "e2el": "e2e_ms"}
"""What vLLM calls the times."""


def check(namespace: argparse.Namespace) -> None:
    """Raises ConfigError for flags that cannot be."""
    say_vllm_flags(namespace)
    ranks_of(namespace)
    limits_of(namespace)
    for name in ("num_prompts", "max_concurrency", "output_len", "input_len"):
        if getattr(namespace, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(namespace, name)} must be at least 1.")
    for name in ("request_rate", "burstiness"):
        if (value := getattr(namespace, name)) is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be above 0.")
    if not 0 <= namespace.random_range_ratio < 1:
        raise ConfigError(f"--random-range-ratio {namespace.random_range_ratio} must be at least 0 and below 1.")
    if wrong := [pair for pair in [*namespace.header, *namespace.metadata] if "=" not in pair]:
        raise ConfigError(f"{wrong[0]!r:.60} must be NAME=VALUE.")
    for name in (namespace.percentile_metrics or "").split(","):
        if name and name not in NAMES:
            raise ConfigError(f"--percentile-metrics: {name!r:.40} is unknown; there are {', '.join(NAMES)}.")


def ranks_of(namespace: argparse.Namespace) -> list[float]:
    """The percentiles that are told. Raises ConfigError for what are none."""
    try:
        ranks = [float(one) for one in namespace.metric_percentiles.split(",")]
        if all(0 <= one <= 100 for one in ranks):
            return ranks
    except ValueError:
        pass
    raise ConfigError(f"--metric-percentiles {namespace.metric_percentiles!r:.60} must be numbers such as 50,99.")


def limits_of(namespace: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of each time within which a request is good. Raises ConfigError."""
    limits = dict[str, float]()
    for pair in namespace.goodput:
        name, _, value = pair.partition(":")
        try:
            limits[{"ttft": "first", "tpot": "per_token", "e2el": "whole"}[name]] = float(value)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"--goodput {pair!r:.60} must be ttft:MS, tpot:MS or e2el:MS.") from error
    return limits


def is_good(outcome: Outcome, limits: dict[str, float]) -> bool:
    """Whether a request was answered within all limits."""
    return outcome.error is None and all(getattr(outcome, name) * 1e3 <= most for name, most in limits.items())


def write_result(namespace: argparse.Namespace, result: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Write a result where vLLM's flags say. Raises ConfigError where that cannot be."""
    about = dict(pair.partition("=")[::2] for pair in namespace.metadata)
    told = {"label": namespace.label, "model": namespace.model, "num_prompts": namespace.num_prompts, **about, **result}
    if namespace.save_detailed:
        told["requests_detailed"] = [dataclasses.asdict(one) for one in outcomes]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    model = str(namespace.model or "model").rpartition("/")[2]
    path = Path(namespace.result_dir or ".") / (
        namespace.result_filename or f"{namespace.backend}-{model}-{stamp}.json"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if namespace.append_result else "w") as file:
            file.write(json.dumps(told) + "\n")
    except OSError as error:
        raise ConfigError(f"--result-dir: {path} cannot be written: {error}") from error


def run(namespace: argparse.Namespace) -> int:
    take_model(namespace, namespace.served)
    check(namespace)
    outcomes, seconds = asyncio.run(load(namespace))
    result = summary(outcomes, seconds, ranks_of(namespace))
    if namespace.goodput:
        result["goodput"] = round(sum(is_good(one, limits_of(namespace)) for one in outcomes) / seconds, 2)
    if namespace.save_result or namespace.save_detailed or namespace.append_result:
        write_result(namespace, result, outcomes)
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
    print(f"\n{'milliseconds':26s}" + "".join(f"{c:>10s}" for c in ("mean", *(f"p{p:g}" for p in ranks_of(namespace)))))
    names = {"ttft_ms": "time to first token", "tpot_ms": "time per output token", "itl_ms": "between tokens"}
    told = [NAMES[name] for name in (namespace.percentile_metrics or ",".join(NAMES)).split(",") if name]
    for key, label in {**names, "e2e_ms": "whole request"}.items():
        if key not in told:
            continue
        print(f"{label:26s}" + "".join(f"{v:10.2f}" for v in result[key].values()))
    return 0
