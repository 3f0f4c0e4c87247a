"""Grading of answers: judges, sandboxes, and pools of graders."""
