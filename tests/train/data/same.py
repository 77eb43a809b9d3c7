"""Rows in the forms in which people have them, each beside the row of OpenAI messages that it means."""

import json

from tests.processing.conversations import WEATHER, assistant, system, tool, user

ARGUMENTS = {"city": "Köln", "days": 3, "exact": True, "more": {"units": ["C", "F"], "limit": 0.5}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
TEXT_CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}}
FUNCTION = WEATHER["function"]
PARAMETERS = FUNCTION["parameters"]
BARE_CALL = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
PLAIN = {"messages": [user("2 + 2?"), assistant("4")]}
TURNS = {"messages": [user("2 + 2?"), assistant("4"), user("And 3?"), assistant("5", reasoning_content="2 + 3")]}
TOOLS = {
    "messages": [user("Weather?"), assistant("", tool_calls=[CALL]), tool("sunny"), assistant("Sunny.")],
    "tools": [WEATHER],
}


def with_call(message):
    return {"messages": [TOOLS["messages"][0], message, *TOOLS["messages"][2:]], "tools": [WEATHER]}


def with_tools(**columns):
    return {"messages": TOOLS["messages"]} | columns


def with_arguments(arguments):
    function = {"name": "get_weather", "arguments": arguments}
    return with_call(assistant(None, tool_calls=[{"type": "function", "function": function}]))


def with_function(**changed):
    return with_tools(tools=[{"type": "function", "function": FUNCTION | changed}])


def chat(*messages, **columns):
    return {"messages": list(messages)} | columns


def shares(*pairs, **columns):
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]} | columns


def parts(*given):
    return chat(user([{"type": "text", "text": "2 + 2?"}]), assistant(list(given)))


REASONED = chat(user("2 + 2?"), assistant("4", reasoning_content="two and two"))
BRIEF = chat(system("Be brief."), *PLAIN["messages"])
FIRST_OFF = chat(user("2 + 2?"), assistant("5", weight=0), user("Sure?"), assistant("4", weight=1))


def first_off(**key):
    return chat(user("2 + 2?"), assistant("5", **key), user("Sure?"), assistant("4"))


# kind -> name -> (row, what it means)
SAME = {
    "JSON as text": {
        "arguments": (with_call(assistant(None, tool_calls=[TEXT_CALL])), TOOLS),
        "a bare call": (with_call(assistant(None, tool_calls=[{**TEXT_CALL["function"]}])), TOOLS),
        "a call": (with_call(assistant(None, tool_calls=[BARE_CALL])), TOOLS),
        "calls": (with_call(assistant(None, tool_calls=json.dumps([TEXT_CALL]))), TOOLS),
        "tools": (with_tools(tools=json.dumps([WEATHER])), TOOLS),
        "each tool": (with_tools(tools=[json.dumps(WEATHER)]), TOOLS),
        "a function": (with_tools(tools=[{"type": "function", "function": json.dumps(FUNCTION)}]), TOOLS),
        "parameters": (with_function(parameters=json.dumps(PARAMETERS)), TOOLS),
        "properties": (
            with_function(parameters=PARAMETERS | {"properties": json.dumps(PARAMETERS["properties"])}),
            TOOLS,
        ),
        "messages": ({"messages": json.dumps(TOOLS["messages"]), "tools": [WEATHER]}, TOOLS),
        "each message": ({"messages": [*map(json.dumps, TOOLS["messages"])], "tools": [WEATHER]}, TOOLS),
    },
    "roles": {
        "developer": (chat({"role": "developer", "content": "Be brief."}, *PLAIN["messages"]), BRIEF),
        "function_call": (
            with_call(assistant(None, function_call={"name": "get_weather", "arguments": json.dumps(ARGUMENTS)})),
            TOOLS,
        ),
        "role function": (
            chat(
                *TOOLS["messages"][:2],
                {"role": "function", "name": "get_weather", "content": "sunny"},
                TOOLS["messages"][3],
                tools=[WEATHER],
            ),
            TOOLS,
        ),
        "human and gpt": (chat({"role": "human", "content": "2 + 2?"}, {"role": "gpt", "content": "4"}), PLAIN),
        "model": (chat(user("2 + 2?"), {"role": "model", "content": "4"}), PLAIN),
    },
    "parts": {
        "text": (parts({"type": "text", "text": "4"}), PLAIN),
        "no type": (parts({"text": "4"}), PLAIN),
        "several": (parts({"type": "text", "text": "4"}, {"type": "text", "text": ""}), PLAIN),
        "output_text": (parts({"type": "output_text", "text": "4"}), PLAIN),
        "null beside": (parts({"type": "text", "text": "4", "image": None, "thinking": None}), PLAIN),
        "thinking": (parts({"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}), REASONED),
        "reasoning": (parts({"type": "reasoning", "text": "two and two"}, {"type": "text", "text": "4"}), REASONED),
    },
    "reasoning": {
        "thinking": (chat(user("2 + 2?"), assistant("4", thinking="two and two")), REASONED),
        "reasoning": (chat(user("2 + 2?"), assistant("4", reasoning="two and two")), REASONED),
        "both": (chat(user("2 + 2?"), assistant("4", reasoning="two and two", thinking="two and two")), REASONED),
        "inside": (chat(user("2 + 2?"), assistant("<think>\ntwo and two\n</think>\n\n4")), REASONED),
        "inside beside an empty key": (
            chat(user("2 + 2?"), assistant("<think>two and two</think>4", reasoning_content="")),
            REASONED,
        ),
    },
    "ShareGPT": {
        "human": (shares(("human", "2 + 2?"), ("gpt", "4")), PLAIN),
        "user": (shares(("user", "2 + 2?"), ("assistant", "4")), PLAIN),
        "turns": (
            shares(("human", "2 + 2?"), ("gpt", "4"), ("human", "And 3?"), ("gpt", "<think>2 + 3</think>5")),
            TURNS,
        ),
        "system": (shares(("system", "Be brief."), ("human", "2 + 2?"), ("gpt", "4")), BRIEF),
        "system column": (shares(("human", "2 + 2?"), ("gpt", "4"), system="Be brief."), BRIEF),
        "empty system column": (shares(("human", "2 + 2?"), ("gpt", "4"), system="", tools=""), PLAIN),
        "tools": (
            shares(
                ("human", "Weather?"),
                ("function_call", BARE_CALL),
                ("observation", "sunny"),
                ("gpt", "Sunny."),
                tools=json.dumps([WEATHER]),
            ),
            TOOLS,
        ),
        "tool": (
            shares(
                ("human", "Weather?"),
                ("function_call", f"[{BARE_CALL}]"),
                ("tool", "sunny"),
                ("gpt", "Sunny."),
                tools=[WEATHER],
            ),
            TOOLS,
        ),
        "thought before a call": (
            shares(
                ("human", "Weather?"),
                ("function_call", f"<think>\nHm.\n</think>\n\n{BARE_CALL}"),
                ("observation", "sunny"),
                ("gpt", "Sunny."),
                tools=[WEATHER],
            ),
            with_call(assistant("", reasoning_content="Hm.", tool_calls=[CALL])),
        ),
        "role and content": ({"conversations": PLAIN["messages"]}, PLAIN),
        "as text": (
            {"conversations": json.dumps([{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}])},
            PLAIN,
        ),
    },
    "Alpaca": {
        "all": ({"instruction": "2 + 2?", "input": "", "output": "4"}, PLAIN),
        "no input": ({"instruction": "2 + 2?", "output": "4"}, PLAIN),
        "input": ({"instruction": "Add.", "input": "2, 2", "output": "4"}, chat(user("Add.\n2, 2"), assistant("4"))),
        "system": ({"instruction": "2 + 2?", "input": None, "output": "4", "system": "Be brief."}, BRIEF),
        "history": (
            {"instruction": "And 3?", "input": "", "output": "<think>2 + 3</think>5", "history": [["2 + 2?", "4"]]},
            TURNS,
        ),
        "the whole text beside": ({"instruction": "2 + 2?", "input": "", "output": "4", "text": "Below is ..."}, PLAIN),
    },
    "prompt and completion": {
        "strings": ({"prompt": "2 + 2?", "completion": "4"}, PLAIN),
        "messages": ({"prompt": [user("2 + 2?")], "completion": [assistant("4")]}, PLAIN),
        "one message": ({"prompt": [user("2 + 2?")], "completion": assistant("4")}, PLAIN),
        "messages and string": ({"prompt": [system("Be brief."), user("2 + 2?")], "completion": "4"}, BRIEF),
        "answers in the prompt": (
            {"prompt": FIRST_OFF["messages"][:3], "completion": [assistant("4")]},
            FIRST_OFF,
        ),
        "tools": ({"prompt": TOOLS["messages"][:1], "completion": TOOLS["messages"][1:], "tools": [WEATHER]}, TOOLS),
    },
    "columns": {
        "system": (chat(*PLAIN["messages"], system="Be brief."), BRIEF),
        "system_prompt": (chat(*PLAIN["messages"], system_prompt="Be brief."), BRIEF),
        "system twice": (chat(*BRIEF["messages"], system="Be brief."), BRIEF),
        "tool_defs": (with_tools(tool_defs=[WEATHER]), TOOLS),
        "functions": (with_tools(functions=[FUNCTION]), TOOLS),
        "functions as text": (with_tools(functions=json.dumps([FUNCTION])), TOOLS),
        "thinking off": (chat(*PLAIN["messages"], chat_template_kwargs={"enable_thinking": False}), PLAIN),
        "thinking on": (chat(*REASONED["messages"], chat_template_kwargs={"enable_thinking": True}), REASONED),
        "thinking column": (chat(*REASONED["messages"], enable_thinking=True), REASONED),
        "unknown": (chat(*PLAIN["messages"], id="x", score=0.5), PLAIN),
    },
    "weights": {
        "weight": (first_off(weight=0), FIRST_OFF),
        "weight as a fraction of one": (first_off(weight=0.0), FIRST_OFF),
        "loss": (first_off(loss=0), FIRST_OFF),
        "loss as truth": (first_off(loss=False), FIRST_OFF),
        "loss_mask": (first_off(loss_mask=0), FIRST_OFF),
        "step_loss_mask": (first_off(step_loss_mask=0), FIRST_OFF),
        "trainable": (first_off(trainable=False), FIRST_OFF),
        "train": (first_off(train=False), FIRST_OFF),
        "training": (first_off(training=False), FIRST_OFF),
        "masked": (first_off(masked=True), FIRST_OFF),
        "of ShareGPT": (
            {
                "conversations": [
                    {"from": "human", "value": "2 + 2?"},
                    {"from": "gpt", "value": "5", "weight": 0},
                    {"from": "human", "value": "Sure?"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            FIRST_OFF,
        ),
    },
    "nulls": {
        "keys of messages": (
            chat(user("2 + 2?") | {"tool_calls": None, "name": None}, assistant("4", tool_calls=None, weight=None)),
            PLAIN,
        ),
        "arguments": (with_arguments(ARGUMENTS | {"x": None}), TOOLS),
        "deep in arguments": (with_arguments(ARGUMENTS | {"more": ARGUMENTS["more"] | {"x": None}}), TOOLS),
        "tools": (with_tools(tools=[{**WEATHER, "strict": None}]), TOOLS),
        "columns": (chat(*PLAIN["messages"], tools=None, system=None, text=None, conversations=None), PLAIN),
    },
}
