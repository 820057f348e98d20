"""What the operator's options add to requests that do not say it themselves."""

from octavo.server.chat_options import ChatOptions
from octavo.server.protocol import ChatRequest, Conversation, Request, Sampling, StreamOptions


def fill_in(request: Request, options: ChatOptions) -> None:
    """Add to a request what the options say; once, however often it is called."""
    if request._is_filled_in:
        return
    request._is_filled_in = True
    if isinstance(request, Conversation):
        request._default_variables = options.default_chat_template_kwargs
    if isinstance(request, ChatRequest):
        request.reasoning_effort = options.effort(request.reasoning_effort)
    if isinstance(request, Sampling):
        request.return_tokens_as_token_ids = request.return_tokens_as_token_ids or options.return_tokens_as_token_ids
        if options.enable_force_include_usage and request.stream:
            request.stream_options = request.stream_options or StreamOptions()
            request.stream_options.include_usage = True
