"""Judge an answer: extract its program, run it on the tests of its problem, compare what comes out.

- `judge` grades one answer; `strict` and `lcb_compat` are the two profiles.
- `comparison`, `evalplus_comparison`, `final_number`: rules by which outputs are equal.
- `expected_outputs` and `humaneval_check`: tests that need a reference solution, or call `check`.
- `outcomes`, `blocks`, `output_limit`: names of what happened, blocks that are no program, limits.
"""
