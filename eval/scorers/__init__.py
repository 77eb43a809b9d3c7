"""Judgement of one response, without models and without files."""
