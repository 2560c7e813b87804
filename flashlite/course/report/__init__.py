"""The report that a student hands in: a template, filled with what this student's commands have left."""
