"""From an untrusted file to a model's input: decode, preprocess, photo sets, labels."""
