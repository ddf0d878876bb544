"""An artifact over any number of images: every input ends as one row of results or of errors.

`job.run(Request(...))` is the whole job; the command `vitrail batch` shows it.
"""
