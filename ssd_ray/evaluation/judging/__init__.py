"""Judge an answer: extract its program, run the tests of its problem, compare the outputs.

- `judge` grades one answer; `strict` and `lcb_compat` are the two profiles.
- `comparison`, `evalplus_comparison`, `final_number`: rules of equality for outputs.
- `expected_outputs`: return values of a reference solution.
- `source_texts`: source texts of a program and of a check.
- `humaneval_check`: tests in the form `check(candidate)`.
- `outcomes`, `blocks`, `output_limit`: results, blocks other than the program, limits of output.
"""
