"""All that knows transformers: the attention interface, masks, and which modules of a model are attention."""
