"""stage=invoke: send a request to the endpoint and print the answer with its thinking.

python -m ftkit experiment=tiny stage=invoke invoke.prompt='今日は月曜日です。3日後は何曜日ですか？'
"""

from __future__ import annotations

from rich.text import Text

from ftkit.console import console
from ftkit.data.conversations import system_message
from ftkit.errors import StageError
from ftkit.serving.client import build_payload, read_answer, score
from ftkit.stages import Context, Made


def run(context: Context) -> Made:
    """Print the question, the thinking and the answer.

    Raises:
        StageError: the endpoint is not running, refuses the request, or does not answer in time.
    """
    config = context.config
    name = config.deployment.endpoint_name
    target = context.platform.target()
    if target is None:
        raise StageError(f"the endpoint {name} is not running", cure="stage=deploy,invoke")
    payload = build_payload(config.invoke, target.server, system_message(config.dataset))
    timeout_s = config.deployment.request_timeout_ms / 1000
    body = score(target.scoring_uri, payload, timeout_s=timeout_s, key=target.key, log=target.log or None)
    answer = read_answer(body, target.server, target.scoring_uri)
    asked = payload.get("prompt") or payload["messages"][-1]["content"]
    for label, text in (("question", asked), ("thinking", answer.thinking), ("answer", answer.output)):
        console().print(Text.assemble((f"{'':13}{label:<10}", "dim"), text or "–"), soft_wrap=True)
    how = "ended by itself" if answer.finish_reason == "stop" else "cut off at invoke.max_new_tokens"
    return Made(f"{answer.completion_tokens} tokens after {answer.prompt_tokens} of prompt, {how}")
