"""The one place where the result row's columns stand. docs/formats.md documents them; a test holds the two together."""

import pyarrow as pa

#: Raised when a column changes its meaning or type; added columns do not raise it.
FORMAT_VERSION = 1

#: One row per input row, in this order; the input's own columns follow.
COLUMNS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("request_hash", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("reasoning", pa.string()),
        pa.field("tool_calls", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("cached_tokens", pa.int64()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("latency_s", pa.float64()),
        pa.field("model", pa.string()),
        pa.field("endpoint", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("trace_id", pa.string()),
        pa.field("raw_response", pa.string()),
    ],
    metadata={"kubeflow_llm_inference.format_version": str(FORMAT_VERSION)},
)

#: Keys of the Parquet metadata that hold, as JSON, what the results were asked for, and how their run went.
SETTINGS_KEY = b"kubeflow_llm_inference.settings"
RUN_KEY = b"kubeflow_llm_inference.run"

#: Key of the address of a row's trace, with `{trace_id}` where the column's value goes; absent when nothing was traced.
TRACE_URL_KEY = b"kubeflow_llm_inference.trace_url"
