"""Artifacts over HTTP: one process that speaks HTTP, one process per model that decodes and runs it.

docs/serving.md says how to use it, docs/decisions/serving.md why it is built so. The HTTP process loads no
engine and decodes nothing; whatever a request does to a model's process, the others answer on.
"""
