"""Items of every type as JSON, and the JSON that reading them returns."""

import json
from pathlib import Path

SAMPLES = {
    line["name"]: line["item"]
    for line in map(json.loads, (Path(__file__).parents[1] / "cases" / "samples.jsonl").read_text().splitlines())
}

ITEM_TYPES = set(
    """message function_call function_call_output file_search_call web_search_call image_generation_call
    computer_call computer_call_output tool_search_call tool_search_output additional_tools
    configuration_update reasoning program program_output compaction code_interpreter_call local_shell_call
    local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output
    mcp_list_tools mcp_approval_request mcp_approval_response mcp_call custom_tool_call
    custom_tool_call_output""".split()
)

# Keys, by the `type` of their object, in which null is a value.
NULL_KEPT = {
    ("computer_screenshot", "image_url"),
    ("computer_screenshot", "file_id"),
    ("image_generation_call", "result"),
    ("image_generation_user_error", "param"),
    ("double_click", "keys"),
    ("tool_search_call", "call_id"),
    ("tool_search_output", "call_id"),
    ("code_interpreter_call", "code"),
    ("code_interpreter_call", "outputs"),
    ("shell_call", "environment"),
    ("shell_call_output", "max_output_length"),
    (None, "timeout_ms"),
    (None, "max_output_length"),
}

FREE_JSON = {
    ("additional_tools", "tools"),
    ("tool_search_output", "tools"),
    ("tool_search_call", "arguments"),
    ("mcp_tool_execution_error", "content"),
    ("json_schema", "schema"),
    (None, "input_schema"),
}


def without_nulls(value):
    """``value`` without keys that are null, except where null is a value and in free JSON."""
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type") if isinstance(value.get("type"), str) else None
    return {
        key: child if (kind, key) in FREE_JSON else without_nulls(child)
        for key, child in value.items()
        if child is not None or (kind, key) in NULL_KEPT
    }


def as_stored(item):
    """The JSON that reading ``item`` returns, computed without the code under test."""
    if item.get("type") is None and "role" in item:
        item = {**item, "type": "message"}
    if not isinstance(item.get("type"), str) or item["type"] not in ITEM_TYPES:
        return item
    if item["type"] == "message" and isinstance(item.get("content"), str):
        assistant = item["role"] == "assistant"
        part = {"type": "output_text" if assistant else "input_text", "text": item["content"]}
        more: dict[str, list[object]] = {"annotations": [], "logprobs": []} if assistant else {}
        item = {**item, "content": [part | more]}
    return without_nulls(item)


def strictly(value):
    """A value that compares equal for equal JSON only: Python takes True for 1."""
    if isinstance(value, dict):
        return {key: strictly(child) for key, child in value.items()}
    if isinstance(value, list):
        return [strictly(child) for child in value]
    return (isinstance(value, bool), value)
