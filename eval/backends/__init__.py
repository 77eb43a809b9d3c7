"""Who writes the responses: our engine, or a server that speaks OpenAI's protocol."""
