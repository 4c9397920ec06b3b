"""A session of openai-agents with its items in the service: `python main.py BASE_URL`, which says `ok` after each step.

The model is a script, for there is no other here; it notes what the runner feeds to it, which is what the API of a real
model would have to accept.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from copy import deepcopy
from typing import Any

from agents import (
    Agent,
    Model,
    ModelResponse,
    OpenAIConversationsSession,
    Runner,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, NotFoundError
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseFunctionWebSearch,
    ResponseOutputMessage,
    ResponseReasoningItem,
)

REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Look it up."}]}
REASONING |= {"encrypted_content": "secret"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
SEARCH |= {"action": {"type": "search", "query": "weather", "queries": ["weather"], "sources": None}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Ulm"}'}
CALL |= {"id": "fc_1", "status": "completed"}


def said(text: str) -> ResponseOutputMessage:
    """A message of the model."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return ResponseOutputMessage.model_validate(message)


class ScriptedModel(Model):
    """Answers with one output after the other.

    Attributes:
        inputs: What it was given each time.
    """

    def __init__(self, *outputs: list[Any]) -> None:
        self._outputs = list(outputs)
        self.inputs: list[list[dict[str, Any]]] = []

    async def get_response(self, *_: Any, input: Any, **__: Any) -> ModelResponse:  # noqa: A002 - the SDK's name
        """Answers with the next output."""
        self.inputs.append(deepcopy(input))
        return ModelResponse(output=self._outputs.pop(0), usage=Usage(), response_id=None)

    async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """Is not used."""
        raise NotImplementedError
        yield


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def done(step: str) -> None:
    """Says that a step has passed."""
    print(f"{step} ok", flush=True)


def shown(item: dict[str, Any]) -> str:
    """What kind of item it is, and who says it."""
    return f"{item.get('type', 'message')} {item.get('role', '')}".strip()


async def session_alone(client: AsyncOpenAI) -> None:
    """More items than a page and a request have are stored in order, read, popped and cleared."""
    session = OpenAIConversationsSession(openai_client=client)
    assert await session.pop_item() is None
    await session.add_items([{"role": "user", "content": str(number)} for number in range(45)])
    read: Any = await session.get_items()
    assert [item["content"][0]["text"] for item in read] == [str(number) for number in range(45)]
    assert (await session.get_items(limit=7)) == read[-7:]
    assert await session.pop_item() == read[-1]
    assert await session.get_items() == read[:-1]
    conversation_id = session.session_id
    again = OpenAIConversationsSession(conversation_id=conversation_id, openai_client=client)
    assert await again.get_items(limit=1) == read[-2:-1]
    await session.clear_session()
    try:
        await client.conversations.retrieve(conversation_id)
    except NotFoundError:
        return
    raise AssertionError("a session that was cleared is still there")


async def two_turns(client: AsyncOpenAI) -> None:
    """A run with reasoning, a search and a tool; the next turn gets all of it, without a key that nobody sent."""
    first = [
        ResponseReasoningItem.model_validate(REASONING),
        ResponseFunctionWebSearch.model_validate(SEARCH),
        ResponseFunctionToolCall.model_validate(CALL),
    ]
    model = ScriptedModel(first, [said("It is sunny.")], [said("You are welcome.")])
    agent = Agent(name="assistant", model=model, tools=[weather])
    session = OpenAIConversationsSession(openai_client=client)
    turn = await Runner.run(agent, "How is the weather in Ulm?", session=session)
    assert turn.final_output == "It is sunny."
    turn = await Runner.run(agent, "Thank you.", session=session)
    assert turn.final_output == "You are welcome."
    assert [shown(item) for item in model.inputs[2]] == [
        "message user",
        "reasoning",
        "web_search_call",
        "function_call",
        "function_call_output",
        "message assistant",
        "message user",
    ]
    _, reasoning, search, call, output, *_ = model.inputs[2]
    assert without_status(reasoning) == REASONING, reasoning
    assert {**search, "action": {**search["action"], "sources": None}} == SEARCH, search
    assert {key: call[key] for key in ("call_id", "name", "arguments")} == {
        key: CALL[key] for key in ("call_id", "name", "arguments")
    }
    assert (output["call_id"], output["output"]) == ("call_1", "sunny in Ulm")
    assert len(await session.get_items()) == 8


def without_status(item: dict[str, Any]) -> dict[str, Any]:
    """An item, and the test fails if it has a status although its type need not have one."""
    assert "status" not in item, item
    return item


async def main(base_url: str) -> None:
    """Does all steps."""
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(base_url=base_url, api_key="unused") as client:
        await session_alone(client)
        done("session")
        await two_turns(client)
        done("turns")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
