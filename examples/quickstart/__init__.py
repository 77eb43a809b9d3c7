"""The quickstart makes, trains, scores and exports a tiny model on a CPU.

    python -m examples.quickstart.run

``run`` is the command, ``task`` writes its data, and ``tokenizer`` builds its tokenizer.
"""
