"""pydantic-ai, with two instructions, chat completions and responses."""

from __future__ import annotations

import asyncio

from common import QUESTION, SYSTEM, URL, refused, same, some
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Form(BaseModel):
    a: int


provider = OpenAIProvider(base_url=URL, api_key="-")
for model in (OpenAIChatModel("tiny", provider=provider), OpenAIResponsesModel("tiny", provider=provider)):
    agent = Agent(model, system_prompt=SYSTEM, model_settings={"temperature": 0})
    result = agent.run_sync(QUESTION)
    same(result.output)
    some(agent.run_sync(QUESTION, message_history=result.all_messages()).output)

    async def streamed(agent: Agent = agent) -> str:
        async with agent.run_stream(QUESTION) as stream:
            return "".join([text async for text in stream.stream_text(delta=True)])

    same(asyncio.run(streamed()))
    two = Agent(model, system_prompt=(SYSTEM, "短く答えて"), instructions="丁寧に", model_settings={"temperature": 0})

    @two.tool_plain
    def double(a: int) -> int:
        """Doubles."""
        return 2 * a

    some(two.run_sync(QUESTION).output)
    structured = Agent(model, output_type=Form)
    refused(lambda structured=structured: structured.run_sync(QUESTION), "tool_choice")
