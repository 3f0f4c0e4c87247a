"""Commands of `ssd-ray`: `app` holds the pipeline's, `plan` and `grading` those without a run directory."""
