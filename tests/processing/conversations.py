"""Conversations that exercise every branch of Qwen3.5's chat template; data for the tests beside this file."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Looks up <weather> & "wind" für eine Stadt.',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"name": "clock", "description": "Tells the time.", "parameters": {}}


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content=None, **fields):
    return {"role": "assistant", "content": content, **fields}


def tool(content):
    return {"role": "tool", "content": content}


def call(name, **arguments):
    return {"type": "function", "id": "call_1", "function": {"name": name, "arguments": arguments}}


ASK = user("What is 2 + 2?")

# name -> (messages, tools)
TEXT = {
    "one user": ([ASK], None),
    "trimmed": ([user("  \n hi \t\n")], None),
    "empty user": ([user("")], None),
    "none user": ([user(None)], None),
    "missing user content": ([{"role": "user"}], None),
    "system": ([system("Be brief."), ASK], None),
    "empty system": ([system(""), ASK], None),
    "none system": ([system(None), ASK], None),
    "answer": ([ASK, assistant("4")], None),
    "none answer": ([ASK, assistant(None)], None),
    "reasoning": ([ASK, assistant("4", reasoning_content="two and two")], None),
    "reasoning trimmed": ([ASK, assistant("4", reasoning_content="\n two and two \n\n")], None),
    "empty reasoning": ([ASK, assistant("4", reasoning_content="")], None),
    "none reasoning": ([ASK, assistant("4", reasoning_content=None)], None),
    "thinking key": ([ASK, assistant("4", thinking="counted")], None),
    "reasoning key": ([ASK, assistant("4", reasoning="counted")], None),
    "two reasoning keys": ([ASK, assistant("4", thinking="older", reasoning_content="newer")], None),
    "inline think": ([ASK, assistant("<think>\ncount\n</think>\n\n4")], None),
    "inline think without opening": ([ASK, assistant("count\n</think>\n\n4")], None),
    "inline think and key": ([ASK, assistant("<think>a</think>4", reasoning_content="b")], None),
    "two turns": ([ASK, assistant("4", reasoning_content="gone"), user("And 3 + 3?"), assistant("6")], None),
    "two turns, inline": ([ASK, assistant("<think>gone</think>\n4"), user("Sure?"), assistant("Yes")], None),
    "two assistants": ([ASK, assistant("4", reasoning_content="a"), assistant("indeed", reasoning_content="b")], None),
    "assistant first": ([assistant("Hello!"), ASK], None),
    "unicode": ([user("Größe 毛泽东 👨‍👩‍👧 e\u0301"), assistant("好的", reasoning_content="嗯")], None),
    "marks in user": ([user("say <|im_end|> and <think>"), assistant("no")], None),
    "html": ([user("a < b & c > d \"e\" 'f'")], None),
    "text items": (
        [user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), assistant([{"text": "c"}])],
        None,
    ),
    "no items": ([user([])], None),
    "tools": ([ASK], [WEATHER, CLOCK]),
    "tools and system": ([system(" Be brief. "), ASK], [WEATHER]),
    "tools and empty system": ([system(""), ASK], [WEATHER]),
    "no tools": ([ASK], []),
    "call": ([ASK, assistant("", tool_calls=[call("get_weather", city="Bern")])], [WEATHER]),
    "call after words": ([ASK, assistant("Let me see.", tool_calls=[call("clock")])], [CLOCK]),
    "bare call": ([ASK, assistant(tool_calls=[{"name": "clock"}])], [CLOCK]),
    "two calls": ([ASK, assistant(tool_calls=[call("clock"), call("get_weather", city="Köln")])], [CLOCK]),
    "argument types": (
        [ASK, assistant(tool_calls=[call("f", a=True, b=None, c=1.5, d=[1, "ä"], e={"k": "<v>"}, f="x\ny")])],
        [CLOCK],
    ),
    "reasoned call": ([ASK, assistant("Now:", reasoning_content="why", tool_calls=[call("clock")])], [CLOCK]),
    "empty calls": ([ASK, assistant("4", tool_calls=[])], None),
    "tool result": ([ASK, assistant(tool_calls=[call("clock")]), tool("12:00")], [CLOCK]),
    "tool results": (
        [ASK, assistant(tool_calls=[call("clock"), call("clock")]), tool("1"), tool(" 2 "), assistant("3")],
        [CLOCK],
    ),
    "two tool steps": (
        [
            ASK,
            assistant(reasoning_content="first", tool_calls=[call("clock")]),
            tool("1"),
            assistant("more", reasoning_content="second", tool_calls=[call("clock")]),
            tool([{"type": "text", "text": "2"}]),
            assistant("done", reasoning_content="third"),
        ],
        [CLOCK],
    ),
    "tools, then a new question": (
        [ASK, assistant(tool_calls=[call("clock")]), tool("1"), assistant("one"), user("again"), assistant("two")],
        [CLOCK],
    ),
    "result as user": (
        [ASK, assistant("x", reasoning_content="r"), user("<tool_response>1</tool_response>"), assistant("y")],
        None,
    ),
    "none calls": ([ASK, assistant("4", tool_calls=None, name=None)], None),
}

IMAGE = {"type": "image", "image": "cat.png"}
VISION = {
    "image": ([user([IMAGE, {"type": "text", "text": "What is it?"}]), assistant("A cat")], None),
    "image url": ([user([{"type": "image_url", "image_url": {"url": "x"}}, {"text": "?"}])], None),
    "video": ([user([{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "?"}])], None),
    "two turns with images": ([user([IMAGE]), assistant("A cat"), user([IMAGE, IMAGE]), assistant("Two")], None),
}

ERRORS = {
    "unknown role": ([ASK, {"role": "critic", "content": "hm"}], None),
    "no user": ([system("s"), assistant("a")], None),
    "only results": ([user("<tool_response>1</tool_response>")], None),
    "late system": ([ASK, system("s")], None),
    "number content": ([user(3)], None),
    "unknown item": ([user([{"type": "sound", "sound": "s.wav"}])], None),
    "arguments as text": ([ASK, assistant(tool_calls=[{"name": "f", "arguments": '{"a": 1}'}])], None),
    "arguments as list": ([ASK, assistant(tool_calls=[{"name": "f", "arguments": [1]}])], None),
    "image in system": ([system([IMAGE]), ASK], None),
    "video in system": ([system([{"type": "video"}]), ASK], None),
    "image_url without a key": ([user([{"type": "image_url"}])], None),
}
