"""Lists that OpenAI's API gives a page at a time."""

from typing import Any

from fastapi.responses import Response

from octavo.server.event_stream import json_response
from octavo.server.request_errors import NotFoundError


def page(objects: list[dict[str, Any]], limit: int, after: str | None) -> Response:
    """So many of a list, from behind one of its ids. Raises NotFoundError for another id."""
    first = 0
    if after is not None:
        found = next((i for i, one in enumerate(objects) if one["id"] == after), None)
        if found is None:
            raise NotFoundError(f"there is no {after!r:.80} to list from.")
        first = found + 1
    data = objects[first : first + limit]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return json_response({"object": "list", "data": data, **ends, "has_more": first + limit < len(objects)})
