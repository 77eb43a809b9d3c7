"""Teaches a tiny model to read drawn pictures and short videos.

    python -m examples.vision.run

``task.py`` draws and asks, ``run.py`` trains with the commands of a real run and scores.
"""
