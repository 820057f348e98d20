"""`octavo generate`: one prompt, one answer."""

import argparse
import json
import sys
from typing import Any

from octavo.cli.answers import Answer, limit_hit, stream_answer
from octavo.cli.flags import adapters_of, check_sampling_flags, engine_args_of, sampling_params_of
from octavo.cli.media_files import Parts, check_parts, named_media, raw_prompt
from octavo.cli.model_argument import text_after_model
from octavo.client.engine_client import KnownEngine
from octavo.errors import InvalidRequestError
from octavo.launch import start_requests
from octavo.media.fetch import MediaFetcher
from octavo.text.chat_prompt import Message
from octavo.text.media_chat import media_chat_prompt


def run(namespace: argparse.Namespace) -> int:
    text, parts = _prompt(namespace), named_media(namespace)
    check_sampling_flags(namespace)
    requests = start_requests(engine_args_of(namespace))
    engine = requests.engine
    params = sampling_params_of(namespace, engine.info.generation_config)
    check_parts(parts, engine.checker.media)
    prompt = _chat_prompt(engine, text, parts, namespace)

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    adapter = next(iter(adapters_of(namespace)), None)
    quiet = (lambda piece: None) if namespace.json else show
    answer = stream_answer(requests, prompt, params, quiet, adapter)
    if namespace.json:
        print(json.dumps(_as_json(answer), ensure_ascii=False))
    else:
        for other in answer.texts[1:]:
            show(f"\n---\n{other}")
        print()
        for i in range(len(answer.texts)):
            if (cut := answer.cut_at(i)) is not None:
                which = f"answer {i + 1}" if len(answer.texts) > 1 else "the answer"
                reason = limit_hit(cut, params, "--max-tokens", "--max-model-len")
                print(f"octavo: {which} was cut after {cut} tokens{reason}", file=sys.stderr)
    answer.check()
    return 0


def _prompt(namespace: argparse.Namespace) -> str:
    text = text_after_model(namespace, namespace.words)
    if text is not None and namespace.file:
        raise InvalidRequestError("give the prompt once: as an argument, or with --file.")
    if text is not None:
        return text
    if namespace.file:
        try:
            with open(namespace.file, encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"--file {namespace.file} cannot be read: {error}") from error
    if sys.stdin.isatty():
        taken = "" if not namespace.words else f" ({namespace.words[0]} was taken as the model)"
        raise InvalidRequestError(
            f'give a prompt: octavo generate "Hello", --file PATH, or text on standard input{taken}.'
        )
    return sys.stdin.read()


def _chat_prompt(engine: KnownEngine, text: str, parts: Parts, namespace: argparse.Namespace) -> Any:
    media = engine.checker.media
    if namespace.raw or engine.tokenizer is None or not engine.tokenizer.chat_templates:
        if namespace.system is not None:
            reason = "--raw continues the prompt alone" if namespace.raw else "this model has no chat template"
            raise InvalidRequestError(f"--system has no effect: {reason}. Leave it out.")
        return raw_prompt(text, parts, media) if parts and media is not None else text
    messages: list[Message] = [{"role": "system", "content": namespace.system}] if namespace.system else []
    content = [*parts, {"type": "text", "text": text}] if parts else text
    return media_chat_prompt(engine.tokenizer, [*messages, {"role": "user", "content": content}], media, MediaFetcher())


def _as_json(answer: Answer) -> dict[str, Any]:
    return {
        "prompt": answer.output.prompt,
        "outputs": [
            {
                "text": text,
                "num_tokens": answer.token_counts[i],
                "finish_reason": answer.finish_reasons[i],
            }
            for i, text in enumerate(answer.texts)
        ],
        "num_prompt_tokens": len(answer.output.prompt_token_ids or []),
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }
