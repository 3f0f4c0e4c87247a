"""A local web application over run directories and graded files; it only reads.

    directories ─runs→ runs and sources ─index→ rows in DuckDB ─queries→ pages

- `runs` names runs, `summaries` describes them, `index` reads columns of their answers.
- `filters` and `queries` select answers, `answers` reads one.
- `pages` renders, `app` routes, `security` refuses, `server` starts.
"""
