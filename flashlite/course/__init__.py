"""The course around the library: exercises, grading, hints. Of the library, only the command line imports it."""
