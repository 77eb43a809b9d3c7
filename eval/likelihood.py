"""Choices by log-likelihood: which of them a base model finds most likely."""

from collections.abc import Sequence
from typing import Any

from eval.backends.base import Backend
from eval.tasks.base import Document


def choose(documents: Sequence[Document], backend: Backend) -> list[dict[str, Any]]:
    """Lets a model choose, and returns the scored samples as ``make_sample`` does, with ``log_likelihoods``.

    ``accuracy`` takes the most likely choice, ``accuracy_norm`` the most likely by byte of its text. Of equal ones the
    first counts. All documents have choices.
    """
    likelihoods = []
    for document in documents:
        assert document.likelihood is not None, "a run checks the style of every document before it begins"
        likelihoods.append(document.likelihood)
    samples = []
    for document, asked, sums in zip(documents, likelihoods, backend.score(likelihoods), strict=True):
        by_byte = [value / len(choice.encode()) for value, choice in zip(sums, asked.choices, strict=True)]
        best, best_by_byte = (max(range(len(values)), key=values.__getitem__) for values in (sums, by_byte))
        samples.append(
            {
                "id": document.id,
                "group": document.group,
                "repeat": 0,
                "response": asked.choices[best],
                "thinking": None,
                "prediction": asked.labels[best],
                "target": document.target,
                "correct": best in asked.gold,
                "outcome": "ok",
                "finish_reason": None,
                "metrics": {
                    "accuracy": [float(best in asked.gold)],
                    "accuracy_norm": [float(best_by_byte in asked.gold)],
                },
                "log_likelihoods": sums,
                "multiple_closes": 0,
                "engine": backend.fingerprint,
                "template": None,
            }
        )
    return samples
