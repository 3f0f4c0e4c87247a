"""Judge an answer: extract its program, run the tests of its problem, compare the outputs.

- `judge` grades one answer; `strict` and `lcb_compat` are the two profiles.
- `comparison`, `evalplus_comparison`, `final_number`: rules by which outputs are equal.
- `expected_outputs`: values that a reference solution returns.
- `humaneval_check`: tests in the form `check(candidate)`.
- `outcomes`, `blocks`, `output_limit`: results, blocks that are no program, limits of output.
"""
