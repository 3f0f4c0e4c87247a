"""Commands of `ssd-ray`: `app` defines them, `options`, `plan` and `grading` serve it."""
