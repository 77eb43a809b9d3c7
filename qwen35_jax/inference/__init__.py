"""Generation: sampling, the batched engine, conversations, and the acceptance of MTP drafts."""
