"""Statistics of scores: pass@k, intervals, differences, significance, selection.

Pure functions of counts. docs/statistics.md has the methods and the reasons for them.
"""
