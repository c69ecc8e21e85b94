"""What Schemathesis cannot learn from openapi.yaml: how to send a gzipped body."""

import gzip
import json
from typing import Any

from hypothesis import strategies as st

import schemathesis

texts = st.text(min_size=1, max_size=20)
events = st.fixed_dictionaries({"external_user_id": texts, "name": texts}, optional={"other": texts})
# What is generated depends on the media type alone, so each body is both: a batch ignores other
# members at its top level, and an event passes them on.
bodies = st.builds(lambda event, events: event | {"events": events}, events, st.lists(events, min_size=1, max_size=3))
gzipped = bodies.map(lambda body: gzip.compress(json.dumps(body).encode(), mtime=0))

GZIP_TYPES = ("application/gzip", "application/octet-stream")
for media_type in GZIP_TYPES:
    schemathesis.openapi.media_type(media_type, gzipped)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """With these types Content-Encoding must be gzip; no schema can say so, only its description."""
    if case.media_type in GZIP_TYPES and case.headers.get("Content-Encoding", "identity") == "identity":
        case.headers["Content-Encoding"] = "gzip"
