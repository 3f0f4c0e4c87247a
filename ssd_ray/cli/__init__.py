"""Commands of `ssd-ray`: `app` defines them, helped by `options`, `plan` and `grading`."""
