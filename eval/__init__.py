"""Scoring of models and of stored responses; run from the checkout with ``python -m eval.run``."""
