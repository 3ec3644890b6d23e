"""Evaluation of prompt following: prompt sets, judges, studies over settings, and their reports."""
