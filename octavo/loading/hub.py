"""Hugging Face's hub and ModelScope: folders of a repository's files, downloaded, or from the cache."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""


@dataclass(frozen=True)
class Wanted:
    """What is to be had of a repository."""

    noun: str
    """What errors call it."""
    choose: Callable[[list[str]], list[str]]
    """Of its files those to download."""
    key_files: Sequence[str]
    """One of them in the cache says that it was downloaded."""
    cached: Sequence[str]
    """Patterns of what else of it may be in the cache."""


def hub_of(args: EngineArgs) -> str:
    """huggingface or modelscope."""
    wants_modelscope = os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")
    return args.hub or ("modelscope" if wants_modelscope else "huggingface")


def hub_name_in(text: str) -> str:
    """`" Did you mean owner/name?"` for an address of a hub's page, or an empty string."""
    found = re.search(r"(?:huggingface\.co|hf\.co|modelscope\.cn)/(?:models/)?([\w.-]+/[\w.-]+)", text)
    return f" Did you mean {found[1]}?" if found else ""


def from_huggingface(repo: str, args: EngineArgs, revision: str | None, wanted: Wanted) -> Path:
    """The folder with a repository's files.

    Raises ModelNotFoundError with what was tried, and what `wanted.choose` raises. The hub client's own error is not
    told with it: it is fifty lines of its HTTP library, and says no more.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    noun = wanted.noun
    tried = f"tried the path {Path(repo).absolute()} and the Hugging Face hub"
    try:
        return _snapshot(repo, args, revision, wanted)
    except CheckpointError:
        raise
    except GatedRepoError:
        raise ModelNotFoundError(
            f"{noun} {repo!r} is gated: accept its terms on its page, then log in with `hf auth login` or give "
            "hf_token."
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFoundError(f"{noun} {repo!r} has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"{noun} {repo!r} was not found: {tried}. Check the spelling; a private {noun} needs hf_token."
        ) from None
    except HFValidationError:
        raise ModelNotFoundError(
            f"{noun} {repo!r} was not found: there is no such path, and it is not a hub name (owner/name)."
            f"{hub_name_in(repo)}"
        ) from None
    except Exception as error:
        # What a missing network raises is up to the hub client's HTTP library; a cold cache has an error of its own.
        raise ModelNotFoundError(
            f"{noun} {repo!r} is not on this disk ({tried}'s cache), and the hub did not answer "
            f"({type(error).__name__}). If this machine has no network, download the {noun} elsewhere and give its "
            "folder's path; offline=True uses only what is in the cache."
        ) from None


def _snapshot(repo: str, args: EngineArgs, revision: str | None, wanted: Wanted) -> Path:
    """A repository's folder, downloaded, or from the cache where the hub may not or does not answer."""
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if args.offline or constants.HF_HUB_OFFLINE:
        return _cached(repo, args, revision, wanted)
    try:
        info = hub.HfApi(token=args.hf_token).model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except Exception:  # the hub does not answer: what was downloaded before serves
        with contextlib.suppress(Exception):
            return _cached(repo, args, revision, wanted)
        raise
    folder = hub.snapshot_download(
        repo,
        revision=revision,
        token=args.hf_token,
        cache_dir=args.download_dir,
        allow_patterns=wanted.choose([sibling.rfilename for sibling in info.siblings or []]),
    )
    return Path(folder)


def _cached(repo: str, args: EngineArgs, revision: str | None, wanted: Wanted) -> Path:
    """The folder that an earlier download made. Raises the hub client's error where there is none."""
    import huggingface_hub as hub

    for name in wanted.key_files:
        file = hub.try_to_load_from_cache(repo, name, cache_dir=args.download_dir, revision=revision)
        if isinstance(file, str):
            return Path(file).parent
    folder = hub.snapshot_download(
        repo,
        revision=revision,
        cache_dir=args.download_dir,
        allow_patterns=[*wanted.cached],
        local_files_only=True,
    )
    return Path(folder)


def from_modelscope(
    repo: str,
    args: EngineArgs,
    revision: str | None,
    patterns: Sequence[str],
    skipped: Sequence[str],
    noun: str = "model",
) -> Path:
    """The folder with those of a repository's files that match one of `patterns` and none of `skipped`.

    Raises ModelNotFoundError with the reason, ConfigError where the package modelscope is not installed.
    """
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise ConfigError("hub='modelscope' needs the package modelscope: pip install 'octavo[modelscope]'.") from error
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=args.download_dir,
            allow_file_pattern=[*patterns],
            ignore_file_pattern=[*skipped],
            local_files_only=args.offline,
        )
    except Exception as error:  # modelscope raises what its HTTP library does, and bare ValueErrors
        raise ModelNotFoundError(
            f"{noun} {repo!r} could not be had from ModelScope ({type(error).__name__}: {error}). "
            f"Without a network, give a folder's path as the {noun}."
        ) from error
    return Path(folder)
