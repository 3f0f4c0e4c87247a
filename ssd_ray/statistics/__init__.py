"""Statistics of scores: pass@k, intervals, differences between arms, significance, selection.

Pure functions of counts; docs/statistics.md says which method and why.
"""
