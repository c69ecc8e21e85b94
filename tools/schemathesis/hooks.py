"""Makes Schemathesis send gzipped bodies, which openapi.yaml cannot describe."""

import gzip
import json
from typing import Any

from hypothesis import strategies as st

import schemathesis

texts = st.text(min_size=1, max_size=20)
events = st.fixed_dictionaries({"external_user_id": texts, "name": texts}, optional={"other": texts})
# A generator is registered for a media type, not for an endpoint, so each body is valid at both
# endpoints: a batch ignores other members at its top level, and an event may have them.
bodies = st.builds(lambda event, events: event | {"events": events}, events, st.lists(events, min_size=1, max_size=3))
gzipped = bodies.map(lambda body: gzip.compress(json.dumps(body).encode(), mtime=0))

GZIP_TYPES = ("application/gzip", "application/octet-stream")
for media_type in GZIP_TYPES:
    schemathesis.openapi.media_type(media_type, gzipped)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """With these types, Content-Encoding must be gzip. No schema can express this."""
    if case.media_type in GZIP_TYPES and case.headers.get("Content-Encoding", "identity") == "identity":
        case.headers["Content-Encoding"] = "gzip"
