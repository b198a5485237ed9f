"""Images in archives and WebDataset shards, read where they lie."""
