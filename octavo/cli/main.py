"""The command `octavo`."""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from octavo.cli.flags import (
    add_engine_flags,
    add_flags,
    add_lora_flag,
    add_model_argument,
    add_sampling_flags,
    whole,
)
from octavo.cli.parser import Parser
from octavo.cli.vllm_flags import add_vllm_flags
from octavo.errors import OctavoError
from octavo.logs import log_to_stderr
from octavo.version import __version__

DESCRIPTION = """\
Octavo runs language models: text from a prompt, a conversation, embeddings, a server, measurements.

  octavo generate "The capital of France is" --raw
  octavo generate --image photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf
  octavo chat
  octavo embed "a text" "another"
  octavo transcribe talk.mp3 --model openai/whisper-small
  octavo serve --port 8000
  octavo quantize owner/model model-q4 --to q4
  octavo models
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; of one alone, which is sooner made, where `command` names it."""
    parser = Parser(
        "octavo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="`octavo COMMAND --help` lists each command's options.",
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    adds = _adds()
    for add in [adds[command]] if command in adds else dict.fromkeys(adds.values()):
        add(commands)
    return parser


def _adds() -> dict[str, Callable[[Any], None]]:
    """What adds each command, in the order in which they are listed."""
    return {
        "generate": _generate,
        "chat": _chat,
        "complete": _complete,
        "serve": _serve,
        "run-batch": _run_batch,
        "embed": _embed,
        "transcribe": _transcribe,
        "quantize": _quantize,
        "bench": _bench,
        "models": _models,
        "env": _env,
        "collect-env": _env,
    }


def _generate(commands: Any) -> None:
    generate = commands.add_parser(
        "generate",
        help="answer one prompt, as it comes",
        description="Answer one prompt. Models with a chat template get the prompt as a user message; with --raw the "
        "text is continued as it is. Without --model it is SmolLM2-135M-Instruct, fetched once.",
    )
    generate.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL] [PROMPT]",
        help="the model, as --model takes it, and the prompt; from --file or standard input if left out",
    )
    generate.add_argument("--file", metavar="PATH", help="read the prompt from a file")
    generate.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    for kind, what in (("image", "a picture"), ("video", "a film"), ("audio", "a sound")):
        text = f"{what} to ask about, for models that take it (may repeat)"
        generate.add_argument(f"--{kind}", metavar="FILE", action="append", help=text)
    generate.add_argument("--raw", action="store_true", help="continue the text, without the chat template")
    generate.add_argument("--json", action="store_true", help="print one JSON object with the answer and its numbers")
    add_lora_flag(generate, "answer")
    add_sampling_flags(generate)
    add_engine_flags(generate)


def _chat(commands: Any) -> None:
    chat = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="Talk with a model. /help lists the commands; Ctrl-C stops an answer, twice leaves. Of a pipe, "
        "each line is a message, and answers alone are printed.",
    )
    add_model_argument(chat)
    chat.add_argument("--url", help="a running server of OpenAI's API to talk with, instead of a model here")
    chat.add_argument("--api-key", metavar="KEY", help="the server's (default: OCTAVO_API_KEY or OPENAI_API_KEY)")
    chat.add_argument("--model-name", dest="model", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # vLLM's
    chat.add_argument("--system", "--system-prompt", metavar="TEXT", help="a system message at the beginning")
    chat.add_argument("--quick", metavar="TEXT", help="answer this one message, and end")
    chat.add_argument(
        "--markdown", action=argparse.BooleanOptionalAction, default=True, help="show Markdown as such (default: yes)"
    )
    chat.add_argument(
        "--history", action=argparse.BooleanOptionalAction, default=True, help="keep what you type for the next time"
    )
    add_lora_flag(chat, "answer", several=True)
    add_sampling_flags(chat, {"max_tokens": "as the context holds"}, without=("n",))
    add_engine_flags(chat)


def _serve(commands: Any) -> None:
    from octavo.server.server_options import ServerOptions

    serve = commands.add_parser(
        "serve",
        help="an OpenAI-compatible server, with a page to chat",
        description="Serve a model over HTTP: OpenAI's API with vLLM's extensions, a chat page at /, statistics at "
        "/stats, numbers for Prometheus at /metrics. SIGTERM and Ctrl-C let running requests finish first.",
    )
    add_model_argument(serve)
    add_flags(serve, ServerOptions, "server")
    add_vllm_flags(serve, ("server",))
    add_engine_flags(serve)


def _complete(commands: Any) -> None:
    complete = commands.add_parser(
        "complete",
        help="text that goes on, from a running server",
        description="Have a running server of OpenAI's API continue a text, or each line of standard input.",
    )
    complete.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL] [TEXT]",
        help="the model's name there, and the text; lines of standard input if left out",
    )
    complete.add_argument("--url", default="http://127.0.0.1:8000/v1", help="where it is (default: %(default)s)")
    complete.add_argument(
        "--model-name", "--model", metavar="NAME", help="its model (default: the first that it lists)"
    )
    complete.add_argument("--api-key", metavar="KEY", help="the server's (default: OCTAVO_API_KEY or OPENAI_API_KEY)")
    complete.add_argument("-q", "--quick", metavar="TEXT", help="the text, as vLLM has it")
    complete.add_argument("--stats", action="store_true", help="say how long it took, and tokens a second")
    add_sampling_flags(complete)


def _run_batch(commands: Any) -> None:
    from octavo.server.server_options import ServerOptions

    batch = commands.add_parser(
        "run-batch",
        help="answer a file of requests in OpenAI's Batch format",
        description="Answer the requests of a file as a server would, lines of JSON with custom_id, url and body. "
        "Answers come into another file in the same order, each with its custom_id.",
    )
    add_model_argument(batch)
    batch.add_argument("-i", "--input-file", required=True, metavar="FILE", help="a path, an http(s) URL, or -")
    batch.add_argument(
        "-o", "--output-file", required=True, metavar="FILE", help="a path, an http(s) URL to PUT it to, or -"
    )
    batch.add_argument("--output-tmp-dir", metavar="FOLDER", help="where files of URLs lie meanwhile")
    batch.add_argument("--max-inflight", type=whole, help="most requests at a time (default: 1024, or more)")
    batch.add_argument("--enable-metrics", action="store_true", help="numbers for Prometheus at --host and --port")
    add_flags(batch, ServerOptions, "answers")
    add_vllm_flags(batch, ("server",))
    add_engine_flags(batch)


def _embed(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="embeddings of texts",
        description="Embed texts: the arguments, or the lines of --file or standard input. Prints a JSON object each, "
        "with the text and its embedding.",
    )
    embed.add_argument(
        "texts",
        nargs="*",
        metavar="[MODEL] [TEXT ...]",
        help="texts to embed; without --model, a first one that names a model (a folder, .gguf file, owner/name) is it",
    )
    embed.add_argument("--file", metavar="PATH", help="read texts from a file, a line each (.jsonl: JSON lines)")
    embed.add_argument(
        "--jsonl",
        action="store_true",
        help="lines are JSON: a string, or an object with its text under 'text', whose other keys are kept",
    )
    embed.add_argument("--output", metavar="PATH", help="write to a .jsonl file, or an array to a .npy file")
    embed.add_argument("--dimensions", type=int, help="keep only the first so many values (Matryoshka models)")
    embed.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale embeddings to length one (default: as the model's files say, or yes)",
    )
    embed.add_argument("--prompt-name", metavar="NAME", help="which of the model's own prompts stands before each text")
    add_lora_flag(embed, "embed")
    add_engine_flags(embed)


def _transcribe(commands: Any) -> None:
    transcribe = commands.add_parser(
        "transcribe",
        help="what is said in sounds and films, of any length",
        description="Write down what is said in sounds (of films, in their sound), by a Whisper model. The text goes "
        "to standard output, or with --output into a file for each.",
    )
    transcribe.add_argument(
        "files", nargs="+", metavar="[MODEL] FILE ...", help="the model, as --model takes it, and sounds or films"
    )
    transcribe.add_argument("--language", help="what is spoken, such as en or German (default: found out)")
    transcribe.add_argument(
        "--task",
        dest="speech_task",
        choices=("transcribe", "translate"),
        default="transcribe",
        help="write down what is said, or translate it into English (default: transcribe)",
    )
    transcribe.add_argument("--prompt", metavar="TEXT", help="text that could stand before it: names, spellings")
    formats = ("text", "srt", "vtt", "tsv", "json")
    transcribe.add_argument("--format", choices=formats, default="text", help="default: text; json has all numbers")
    transcribe.add_argument(
        "--output", metavar="FOLDER", help="write NAME.txt, NAME.srt ... there, instead of standard output"
    )
    transcribe.add_argument(
        "--temperature", type=float, help="one for all windows (default: 0, and higher ones where text seems unsound)"
    )
    transcribe.add_argument(
        "--condition-on-previous-text",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether a window sees the text before it (default: yes)",
    )
    add_lora_flag(transcribe, "transcribe")
    add_engine_flags(transcribe, without=("task",))


def _quantize(commands: Any) -> None:
    quantize = commands.add_parser(
        "quantize",
        help="write a model in fewer bits",
        description="Write a model in fewer bits: a folder of floats as compressed-tensors (q4, int8), which vLLM "
        "reads too, or as a GGUF file; a GGUF file as one of another type. With --text, measure what it costs.",
    )
    quantize.add_argument("source", metavar="MODEL", help="the model, as --model takes it")
    quantize.add_argument("out", metavar="OUT", help="the folder to write, or the GGUF file (.gguf)")
    quantize.add_argument("--to", required=True, metavar="KIND", help="q4, int8, or a GGUF type like Q4_0")
    quantize.add_argument("--text", metavar="FILE", help="print the perplexity of this text before and after")
    add_engine_flags(quantize)


def _bench(commands: Any) -> None:
    from octavo.cli.bench_flags import add_bench

    add_bench(commands)


def _models(commands: Any) -> None:
    models = commands.add_parser("models", help="the architectures that Octavo has")
    models.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="default: text")


def _env(commands: Any) -> None:
    environment = commands.add_parser(
        "env", aliases=["collect-env"], help="this machine, the versions, and which operations run here"
    )
    environment.add_argument("--json", action="store_true", help="print one JSON object")


def _command(name: str, kind: str | None = None) -> Callable[[argparse.Namespace], int]:
    """The function behind a command, imported only now: each needs other libraries."""
    if name == "generate":
        from octavo.cli.generate import run
    elif name == "chat":
        from octavo.cli.chat.session import run
    elif name == "serve":
        from octavo.cli.serve import run
    elif name == "run-batch":
        from octavo.cli.run_batch import run
    elif name == "complete":
        from octavo.cli.complete import run
    elif name == "quantize":
        from octavo.cli.quantize import run
    elif name == "embed":
        from octavo.cli.embed import run
    elif name == "transcribe":
        from octavo.cli.transcribe_files import run
    elif name == "bench" and kind == "serve":
        from octavo.cli.bench_serve import run
    elif name == "bench":
        from octavo.cli.bench import run
    elif name == "models":
        from octavo.cli.models import run
    else:
        from octavo.cli.env import run
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Errors are one line on stderr, without a stack."""
    log_to_stderr(level=logging.WARNING)
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(given[0] if given else None)
    try:
        namespace = parser.parse_args(given)
        if namespace.command is None:
            parser.print_help()
            return 0
        # What is imported stays: looking through it for garbage takes a tenth of the time, and finds nothing.
        gc.disable()
        run = _command(namespace.command, getattr(namespace, "kind", None))
        gc.freeze()
        gc.enable()
        return run(namespace)
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`octavo generate | head`): there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
