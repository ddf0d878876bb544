"""Where candidates come from: one file per source, all behind the protocol of `source.py`.

Adding a source is one new file and an option of the command line that makes it.
"""
