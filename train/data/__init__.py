"""From files of conversations to packed batches of token ids, on the host."""
