"""What Schemathesis cannot learn from openapi.yaml: how to send a gzipped batch."""

import gzip
import json

import schemathesis
from hypothesis import strategies as st

texts = st.text(min_size=1, max_size=20)
events = st.fixed_dictionaries({"external_user_id": texts, "name": texts}, optional={"other": texts})
batches = st.lists(events, min_size=1, max_size=3).map(lambda events: {"events": events})
gzipped = batches.map(lambda batch: gzip.compress(json.dumps(batch).encode(), mtime=0))

GZIP_TYPES = ("application/gzip", "application/octet-stream")
for media_type in GZIP_TYPES:
    schemathesis.openapi.media_type(media_type, gzipped)


@schemathesis.hook
def before_call(context, case, kwargs):
    """With these types Content-Encoding must be gzip; no schema can say so, only its description."""
    if case.media_type in GZIP_TYPES and case.headers.get("Content-Encoding", "identity") == "identity":
        case.headers["Content-Encoding"] = "gzip"
