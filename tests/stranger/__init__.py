"""The stranger's hour: from the files of a release to calls in four languages, without the repository.

``python -m tests.stranger DIST`` prints how many commands and seconds each step takes; docs/releases.md has the table.
"""
