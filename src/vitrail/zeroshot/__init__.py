"""Zero-shot classifiers: class names and prompts -> text embeddings -> a linear head without a text tower."""
